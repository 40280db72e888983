using System.CommandLine;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary><c>inference inspect</c>: what a model folder holds, what it will need, and everything that is wrong with it. Loads no weights.</summary>
internal static class InspectCommand
{
    private static readonly int[] ContextsDefault = [4096, 131_072, 1_048_576];

    public static Command Create()
    {
        var folder = new Argument<string?>("folder")
        {
            Description = "Model folder. Default: the model that ships with the server.",
            Arity = ArgumentArity.ZeroOrOne,
        };
        var contexts = new Option<string?>("--context")
        {
            Description = "Context lengths to give the memory for. Default: 4096,131072,1048576, as far as the model goes.",
            HelpName = "n,n,...",
        };
        var format = new Option<string?>(Settings.KvFormat.CommandLine)
        {
            Description = $"{Settings.KvFormat.Help} Default: {Settings.KvFormat.Default}.",
            HelpName = "format",
        };
        var json = new Option<bool>("--json") { Description = "Print one JSON object instead of tables." };
        var command = new Command("inspect", "Print what a model folder holds, the memory it needs and what is wrong with it.") { folder, contexts, format, json };
        command.HasExamples("inference inspect", "inference inspect my-model --context 8192,65536 --kv-format fp8", "inference inspect my-model --json");
        command.Runs((parsed, _) => Task.FromResult(
            Run(parsed.GetValue(folder) ?? ShippedModels.EmbeddedFolder, parsed.GetValue(contexts), parsed.GetValue(format), parsed.GetValue(json))));
        return command;
    }

    private static int Run(string folder, string? contextList, string? format, bool json)
    {
        var asked = contextList is null ? null : InputFile.Numbers(contextList, "--context", 1, int.MaxValue);
        var inspection = ModelInspection.Of(folder, Format(format));
        int limit = inspection.Config?.ContextMax ?? int.MaxValue;
        if (asked?.FirstOrDefault(c => c > limit) is > 0 and var tooLong)
            throw new InputException($"--context: {tooLong} is more than the {limit} positions of this model; give at most that.");
        int[] contexts = asked ?? [.. ContextsDefault.Where(c => c < limit).Append(limit).Distinct().Take(ContextsDefault.Length)];
        if (json) InspectionJson.Write(inspection, contexts);
        else if (inspection.Config is not null) InspectionTables.Write(inspection, contexts);
        return Verdict(inspection);
    }

    private static KvRowFormat? Format(string? text)
    {
        if (text is null || text == Settings.KvFormat.Default) return null;
        foreach (var (format, name) in KvRowFormats.Names)
            if (name == text) return format;
        throw new InputException($"{Settings.KvFormat.CommandLine}: '{text}' is none of auto, {string.Join(", ", KvRowFormats.Names.Values)}.");
    }

    private static int Verdict(ModelInspection inspection)
    {
        if (inspection.Problems.Count == 0) return Verb.Done;
        Console.Error.WriteLine(inspection.Problems.Count == 1
            ? "error: this folder cannot be served:" : $"error: this folder cannot be served, for {inspection.Problems.Count} reasons:");
        foreach (string problem in inspection.Problems)
        {
            string[] lines = problem.Split('\n', StringSplitOptions.RemoveEmptyEntries);
            for (int i = 0; i < lines.Length; i++) Console.Error.WriteLine((i == 0 ? "  - " : "    ") + lines[i]);
        }
        return Verb.BadInput;
    }
}

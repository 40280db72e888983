using System.CommandLine;
using Inference.Runtime.Engine;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// <c>inference bench</c>: how fast a model runs here, in this process, without network and without text: token ids in, token ids out. Every
/// combination of the lists is one cell: all its requests are of one shape, and so many of them run at a time.
/// </summary>
internal static class BenchCommand
{
    public static Command Create()
    {
        var prompts = ListOption("--prompt-tokens", "Lengths of the prompts.", "128,1024");
        var outputs = ListOption("--output-tokens", "Lengths of the answers.", "64");
        var concurrencies = ListOption("--concurrency", "Requests at a time.", "1,4,16");
        var requests = Numbers.Whole("--requests", "Requests per cell. Default: twice the concurrency, at least 4.", 1, 1_000_000);
        var seed = Numbers.Seed("--seed", "Of the random prompts. Default: 1.");
        var json = new Option<string?>("--json") { Description = "Write all figures to this file; - for standard output instead of the table.", HelpName = "file" };
        var command = new Command("bench", "Measure throughput and latency of a model on this machine.") { prompts, outputs, concurrencies, requests, seed, json };
        var settings = new SettingOptions(command, [Settings.Model, Settings.Dummy, Settings.Backend, Settings.Threads, Settings.StepTokensMax, Settings.KvFormat]);
        command.HasExamples(
            "inference bench",
            "inference bench --prompt-tokens 512 --output-tokens 128 --concurrency 1,8 --json bench.json",
            "inference bench --model my-model --threads 8",
            "inference bench --model deepseek-v4-1b --dummy");
        command.Runs((parsed, cancel) => RunAsync(
            settings.Reader(parsed).ReadModel(),
            new BenchPlan(
                List(parsed.GetValue(prompts)!, "--prompt-tokens"), List(parsed.GetValue(outputs)!, "--output-tokens"),
                List(parsed.GetValue(concurrencies)!, "--concurrency"), parsed.GetValue(requests), parsed.GetValue(seed) ?? 1),
            parsed.GetValue(json), cancel));
        return command;
    }

    private static Option<string> ListOption(string name, string help, string value) =>
        new(name) { Description = help, HelpName = "n,n,...", DefaultValueFactory = _ => value };

    private static int[] List(string text, string option) => InputFile.Numbers(text, option, 1, 1 << 28);

    private static async Task<int> RunAsync(ModelOptions options, BenchPlan plan, string? json, CancellationToken cancel)
    {
        // Before the work: a path that cannot be written should not cost a measurement.
        using var file = json is null ? null : json == "-" ? Console.OpenStandardOutput() : Create(json);
        using var loaded = ModelOnBackend.Load(options, asServed: true);
        var report = BenchReport.Begin(loaded, options, plan);
        await using var engine = await BenchEngine.StartAsync(loaded, options, plan, cancel);
        using (var progress = new BenchProgress(plan.Cells.Count))
            foreach (var cell in plan.Cells)
            {
                progress.Begin(cell, plan.RequestsOf(cell));
                report.Cells.Add(await engine.MeasureAsync(cell, plan, progress.Ended, cancel));
            }
        if (json is not "-") BenchTables.Write(report);
        if (file is not null) report.WriteJson(file);
        return Verb.Done;
    }

    private static FileStream Create(string path)
    {
        try
        {
            return File.Create(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new InputException($"--json: '{path}' cannot be written: {e.Message}", e);
        }
    }
}

/// <summary>One shape of load.</summary>
internal sealed record BenchCell(int PromptTokens, int OutputTokens, int Concurrency);

/// <summary>What a user asked to be measured.</summary>
internal sealed record BenchPlan(int[] PromptTokens, int[] OutputTokens, int[] Concurrency, int? Requests, ulong Seed)
{
    private const int RequestsMin = 4, RoundsDefault = 2;

    /// <summary>In the order in which they run.</summary>
    public IReadOnlyList<BenchCell> Cells { get; } =
        [.. from p in PromptTokens from o in OutputTokens from c in Concurrency select new BenchCell(p, o, c)];

    public int LengthMax => PromptTokens.Max() + OutputTokens.Max();

    /// <summary>The same on every machine, another for every cell, so that no cell meets the prompts of one before.</summary>
    public int SeedOf(BenchCell cell) => unchecked((int)((((Seed * 1_000_003) + (ulong)cell.PromptTokens) * 1_000_003 + (ulong)cell.OutputTokens) * 1_000_003) + cell.Concurrency);

    public int RequestsOf(BenchCell cell) => Requests ?? Math.Max(RequestsMin, RoundsDefault * cell.Concurrency);
}

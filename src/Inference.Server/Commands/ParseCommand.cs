using System.CommandLine;
using Inference.Runtime.Chat;
using Inference.Runtime.Models;

namespace Inference.Server.Commands;

/// <summary><c>inference parse</c>: the message that a raw completion means. Loads no weights.</summary>
internal static class ParseCommand
{
    private const string EndOfSequence = "<｜end▁of▁sentence｜>";

    public static Command Create()
    {
        var completion = new Option<string>("--completion")
        {
            Description = "UTF-8 file with what followed the prompt, end token included; - for standard input.",
            HelpName = "file",
            Required = true,
        };
        var mode = new Option<string>("--thinking-mode")
        {
            Description = "How the prompt ended: thinking if it opened the reasoning, else chat.",
            HelpName = "chat|thinking",
            DefaultValueFactory = _ => "chat",
        };
        var lenient = new Option<bool>("--lenient") { Description = "Keep what can be read of a completion that breaks the format, as the server does." };
        var json = new Option<bool>("--json") { Description = "Print the message as one JSON object." };
        var command = new Command("parse", "Print the message that a raw completion means.") { completion, mode, lenient, json };
        var folder = new FolderOption(command);
        command.HasExamples(
            "inference parse --completion answer.txt --thinking-mode thinking --json",
            "inference parse --completion cut-off.txt --lenient");
        command.Runs((parsed, cancel) =>
        {
            folder.Open(parsed); // the only served family has one format
            return Task.FromResult(Run(parsed.GetValue(completion)!, parsed.GetValue(mode)!, parsed.GetValue(lenient), parsed.GetValue(json)));
        });
        return command;
    }

    private static int Run(string file, string mode, bool lenient, bool json)
    {
        string text = InputFile.Text(file, "--completion");
        // Editors end a file with a line end; no completion has one behind its end token.
        if (text.TrimEnd('\r', '\n') is var trimmed && trimmed.EndsWith(EndOfSequence, StringComparison.Ordinal)) text = trimmed;
        var message = DeepSeekV4ChatEncoding.Parse(
            text, ConversationJson.ReadThinkingMode(mode), lenient ? CompletionParsing.Lenient : CompletionParsing.Strict);
        using var output = new ResultOutput();
        if (json) output.Text(ParsedMessageJson.Write(message) + "\n");
        else output.Text(Plain(message));
        return Verb.Done;
    }

    private static string Plain(ParsedMessage message)
    {
        var parts = new List<string>();
        if (message.ReasoningContent.Length > 0) parts.Add($"[reasoning]\n{message.ReasoningContent}");
        if (message.Content.Length > 0) parts.Add($"[content]\n{message.Content}");
        parts.AddRange(message.ToolCalls.Select(c => $"[tool call] {c.Name}\n{c.Arguments}"));
        parts.AddRange(message.UnfinishedToolCalls.Select(c => $"[unfinished tool call] {c.Name}\n{c.Arguments}"));
        return string.Join("\n", parts) + "\n";
    }
}

using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// <c>inference score</c>: what a model thinks of a given text, position by position, straight from model and backend. Needs a tokenizer only for
/// a text. Prints each position as soon as it is known.
/// </summary>
internal static class ScoreCommand
{
    private const int TopDefault = 5, ChunkDefault = 256;

    public static Command Create()
    {
        var ids = new Option<string?>("--token-ids")
        {
            Description = "Token ids separated by commas; @FILE reads them from a file.",
            HelpName = "1,5,11",
        };
        var text = new Option<string?>("--text")
        {
            Description = "UTF-8 file to tokenize and score; - for standard input. Control tokens written in it count.",
            HelpName = "file",
        };
        var top = new Option<string>("--top")
        {
            Description = "How many of the most likely next tokens to list, or all.",
            HelpName = "n|all",
            DefaultValueFactory = _ => $"{TopDefault}",
        };
        var chunk = Numbers.Whole("--chunk", $"Tokens processed at a time; changes speed and memory, never a number. Default: {ChunkDefault}.", 1, 1 << 20);
        var draft = new Option<bool>("--draft") { Description = "Also list what the draft block predicts for the token after the next." };
        var json = new Option<bool>("--json") { Description = "One JSON object per position instead of a table." };
        var command = new Command("score", "Print the log-probability of each token of a text and the most likely next tokens.")
        {
            ids, text, top, draft, json, chunk,
        };
        var settings = new SettingOptions(command, [Settings.Model, Settings.Backend, Settings.Threads]);
        command.HasExamples(
            "inference score --token-ids 0,1015,76,113 --top 3",
            "inference score --model models/pebble --text story.txt --json",
            "inference score --model my-checkpoint --token-ids @ids.txt --top all --draft --json");
        command.Runs((parsed, cancel) => Task.FromResult(Run(
            settings.Reader(parsed).ReadModel(), parsed.GetValue(ids), parsed.GetValue(text), parsed.GetValue(json),
            new ScoreOptions { TopCount = Top(parsed.GetValue(top)!), ChunkTokens = parsed.GetValue(chunk) ?? ChunkDefault, Draft = parsed.GetValue(draft) }, cancel)));
        return command;
    }

    private static int Run(ModelOptions options, string? ids, string? text, bool json, ScoreOptions score, CancellationToken cancel)
    {
        if (ids is null == text is null) throw new InputException("Give either --token-ids or --text.");
        var (tokens, tokenizer) = ids is not null
            ? (InputFile.Numbers(ids, "--token-ids", int.MinValue, int.MaxValue), null)
            : Tokenize(options.FolderOrEmbedded, text!);
        using var loaded = ModelOnBackend.Load(options);
        var scores = Scorer.Score(loaded.Model, loaded.Backend, tokens, score);
        long start = Stopwatch.GetTimestamp();
        if (json) WriteJson(scores, cancel);
        else WriteTable(scores, tokenizer, start, cancel);
        return Verb.Done;
    }

    private static (int[] Ids, ModelTokenizer Tokenizer) Tokenize(string folder, string file)
    {
        var tokenizer = FolderTokenizer.Load(ModelFolder.Open(folder).FolderPath);
        return ([.. tokenizer.EncodeFile(file, "--text", AddedTokenPolicy.All)], tokenizer);
    }

    private static int Top(string text) => text == "all" ? int.MaxValue
        : int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int count) ? count
        : throw new InputException($"--top: '{text}' is neither a whole number nor all.");

    private static void WriteJson(IEnumerable<TokenScore> scores, CancellationToken cancel)
    {
        using var lines = new ResultOutput();
        foreach (var score in scores)
        {
            cancel.ThrowIfCancellationRequested();
            lines.Line(w => Write(w, score));
            lines.Flush();
        }
    }

    private static void Write(Utf8JsonWriter w, TokenScore score)
    {
        w.WriteStartObject();
        w.WriteNumber("position", score.Position);
        w.WriteNumber("token_id", score.TokenId);
        if (score.Logprob is { } logprob) w.WriteNumber("logprob", logprob);
        else w.WriteNull("logprob");
        WriteTokens(w, "next", score.Next);
        if (score.Draft is not null) WriteTokens(w, "draft", score.Draft);
        w.WriteEndObject();
    }

    private static void WriteTokens(Utf8JsonWriter w, string name, IReadOnlyList<TokenLogprob> tokens)
    {
        w.WriteStartArray(name);
        foreach (var (id, logprob) in tokens)
        {
            w.WriteStartObject();
            w.WriteNumber("token_id", id);
            w.WriteNumber("logprob", logprob);
            w.WriteEndObject();
        }
        w.WriteEndArray();
    }

    // Fixed columns instead of a drawn table: rows appear while the model works, and a long text does not wait in memory.
    private static void WriteTable(IEnumerable<TokenScore> scores, ModelTokenizer? tokenizer, long start, CancellationToken cancel)
    {
        using var output = new StreamWriter(Console.OpenStandardOutput());
        string Name(int id) => tokenizer is null ? $"{id}" : TokenizeCommand.Visible(tokenizer.TokenText(id));
        string Tokens(IReadOnlyList<TokenLogprob> tokens) =>
            string.Join("  ", tokens.Select(t => string.Create(CultureInfo.InvariantCulture, $"{Name(t.TokenId)} {t.Logprob:0.0000}")));
        output.WriteLine($"position  token id     logprob  {(tokenizer is null ? "" : "token, ")}next (each with its logprob)");
        double sum = 0;
        int count = 0;
        foreach (var score in scores)
        {
            cancel.ThrowIfCancellationRequested();
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{score.Position,8}  {score.TokenId,8}  {score.Logprob,10:0.0000}  {(tokenizer is null ? "" : Name(score.TokenId) + " -> ")}{Tokens(score.Next)}"));
            if (score.Draft is not null) output.WriteLine($"{"",22}{"draft",8}  {Tokens(score.Draft)}");
            output.Flush();
            sum += score.Logprob ?? 0;
            count++;
        }
        var elapsed = Stopwatch.GetElapsedTime(start);
        string mean = count < 2 ? "" : string.Create(CultureInfo.InvariantCulture,
            $", mean logprob {sum / (count - 1):0.0000}, perplexity {Units.Digits(Math.Exp(-sum / (count - 1)))}");
        Console.Error.WriteLine($"{count} tokens in {Units.Time(elapsed)} ({Units.Digits(count / elapsed.TotalSeconds)} tokens/s){mean}");
    }
}

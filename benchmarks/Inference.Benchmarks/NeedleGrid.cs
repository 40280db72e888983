// `needle`: does a model find a code at every depth of a long text, and does it say the same, bit for bit, when the text comes from the cache or from disk?
//
// Per length and depth a text of its own with the code at that depth and two other codes; from --together on, one text holds the codes of all depths and
// each is asked for, so that the text is computed once. Every question is asked again at once (prefix hit), and, with --disk, once more by another engine on
// what the first one saved (restore). "Found" means that the answer is the whole sentence with the right code, greedily.
// Drives the engine as the server does. Owns everything it makes.
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Inference.Backends.Cpu;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Sampling;
using Inference.Runtime.Tokenization;
using Microsoft.Extensions.Logging.Abstractions;

namespace Inference.Benchmarks;

internal sealed class NeedleGrid : IDisposable
{
    private const int OutputTokensMax = 24, HeadroomTokens = 8192;
    private static readonly TimeSpan ProgressEvery = TimeSpan.FromSeconds(20);
    private static readonly DeepSeekV4ChatEncoding Chat = new(EncodingRelease.Preview);

    private readonly CpuBackend _backend;
    private readonly DeepSeekV4 _model;
    private readonly ModelTokenizer _tokenizer;
    private readonly string? _disk;
    private readonly double[] _depths;
    private readonly Dictionary<string, int> _counts = new(StringComparer.Ordinal);
    private readonly StringBuilder _report = new();

    private NeedleGrid(string folder, int threads, string? disk, double[] depths)
    {
        (_disk, _depths) = (disk, depths);
        _tokenizer = TokenizerFactory.Load(folder);
        _backend = new CpuBackend(threads);
        var opened = ModelFolder.Open(folder);
        _model = DeepSeekV4.Load(DeepSeekV4Config.Read(opened), opened.OpenCheckpoint(), _backend, new DeepSeekV4Options());
    }

    /// <summary>Arguments: [--model folder] [--tokens n,n,...] [--depths n,n,...] [--texts n] [--together n] [--disk folder] [--seed n] [--threads n] [--out file] [--note text]
    /// [--text-to file], which only writes the first text and says what is to be asked about it (for <c>inference run --file</c>).</summary>
    public static async Task<int> RunAsync(string[] args)
    {
        string folder = Path.Combine("models", "pebble"), tokens = "8192,32768,131072,1000000", depths = "0,10,20,30,40,50,60,70,80,90,100", output = "", note = "", textTo = "";
        int texts = 1, together = 500_000, seed = 1, threads = CpuTopology.PhysicalCores();
        string? disk = null;
        for (var i = 0; i + 1 < args.Length; i += 2)
        {
            switch (args[i])
            {
                case "--model": folder = args[i + 1]; break;
                case "--tokens": tokens = args[i + 1]; break;
                case "--depths": depths = args[i + 1]; break;
                case "--text-to": textTo = args[i + 1]; break;
                case "--texts": texts = Number(args[i + 1]); break;
                case "--together": together = Number(args[i + 1]); break;
                case "--disk": disk = args[i + 1]; break;
                case "--seed": seed = Number(args[i + 1]); break;
                case "--threads": threads = Number(args[i + 1]); break;
                case "--out": output = args[i + 1]; break;
                case "--note": note = args[i + 1]; break;
                default: throw new ArgumentException($"needle: unknown option {args[i]}");
            }
        }
        using var grid = new NeedleGrid(folder, threads, disk, [.. depths.Split(',').Select(d => double.Parse(d, CultureInfo.InvariantCulture))]);
        if (textTo.Length > 0)
        {
            var text = new NeedleText(seed, Number(tokens.Split(',')[0]), grid._depths, 0, grid.Count);
            await File.WriteAllTextAsync(textTo, text.Text);
            foreach (var needle in text.Needles) Console.WriteLine($"{needle.Depth} %: {needle.Question} {needle.Sentence}");
            return 0;
        }
        grid.Header(folder, note);
        foreach (int length in tokens.Split(',').Select(Number))
            await grid.MeasureAsync(length, length >= together ? 1 : texts, length >= together, seed);
        if (output.Length > 0)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(output))!);
            await File.WriteAllTextAsync(output, grid._report.ToString());
        }
        return 0;
    }

    private static int Number(string text) => int.Parse(text, CultureInfo.InvariantCulture);

    private void Header(string folder, string note)
    {
        Line($"# Needles found by {Path.GetFileName(Path.TrimEndingDirectorySeparator(folder))}");
        Line($"");
        Line($"{DateTime.UtcNow:yyyy-MM-dd}, {CpuTopology.ProcessorName()}, {_backend.Threads} threads, {RuntimeInformation.FrameworkDescription}, {_model.Info.KvFormat} rows. {note}");
        Line($"");
        Line($"Found: the whole sentence with the right code, greedily. Each text also has two other codes (a text that is asked for several depths has only theirs). Same: tokens and");
        Line($"log-probabilities of the answer, bit for bit, when the question is asked again (prefix hit), and by another engine on the saved session (restore).");
        Line($"");
        Line($"| tokens | texts | {string.Join(" | ", _depths.Select(d => $"{d:0} %"))} | same after a hit | same after a restore | tokens/s | tokens computed after a hit |");
        Line($"|---|---|{string.Concat(Enumerable.Repeat("---|", _depths.Length))}---|---|---|---|");
    }

    private void Line(FormattableString line)
    {
        var text = line.ToString(CultureInfo.InvariantCulture);
        Console.WriteLine(text);
        _report.Append(text).Append('\n');
    }

    private async Task MeasureAsync(int length, int texts, bool together, int seed)
    {
        var found = new int[_depths.Length];
        Tally hits = default, restores = default;
        double seconds = 0;
        long computed = 0, recomputed = 0;
        for (int text = 0; text < texts; text++)
        {
            foreach (double[] depths in together ? [_depths] : _depths.Select(d => new[] { d }))
            {
                var needles = new NeedleText(seed + 1000 * text + (int)depths[0], length, depths, together ? 0 : 2, Count);
                var answers = await AskAsync(needles, length);
                for (int i = 0; i < depths.Length; i++)
                {
                    var (first, again, restored) = answers[i];
                    bool right = first.Text.Trim() == needles.Needles[i].Sentence;
                    if (right) found[Array.IndexOf(_depths, depths[i])]++;
                    else Console.Error.WriteLine($"{length} tokens, depth {depths[i]}: '{needles.Needles[i].Sentence}' was answered by '{first.Text.Trim()}'");
                    hits.Add(first.SameAs(again));
                    if (restored is not null) restores.Add(first.SameAs(restored));
                    (seconds, computed) = (seconds + first.Seconds, computed + first.Prompt - first.Cached);
                    recomputed += again.Prompt - again.Cached;
                }
            }
        }
        Line($"| {length:N0} | {(together ? $"1 with {_depths.Length} depths" : texts)} | {string.Join(" | ", found.Select(f => $"{f}/{texts}"))} | {hits} | {(_disk is null ? "not asked" : restores)} | {computed / seconds:N0} | {(double)recomputed / hits.All:0.#} |");
    }

    /// <summary>Asks for each code of a text: computed as far as needed, again from the cache, again from disk.</summary>
    private async Task<List<(Answer First, Answer Again, Answer? Restored)>> AskAsync(NeedleText text, int length)
    {
        var prompts = text.Needles.Select(n => Prompt(text.Text, n.Question)).ToList();
        var answers = new List<(Answer, Answer, Answer?)>();
        await using (var engine = await StartAsync(length))
        {
            foreach (var prompt in prompts)
            {
                var first = await AnswerAsync(engine, prompt);
                answers.Add((first, await AnswerAsync(engine, prompt), null));
            }
            if (_disk is null) return answers;
            using var sessions = new KvSessions(engine, TimeProvider.System);
            for (int i = 0; i < prompts.Count; i++)
            {
                sessions.Create("", $"needle{i}");
                // All but the last token, which every continuation computes.
                await sessions.AppendAsync("", $"needle{i}", prompts[i][..^1], Template([0]), CancellationToken.None);
                await sessions.SaveAsync("", $"needle{i}", Template([0]), CancellationToken.None);
            }
        }
        await using (var engine = await StartAsync(length))
        {
            using var sessions = new KvSessions(engine, TimeProvider.System);
            for (int i = 0; i < prompts.Count; i++)
            {
                var restored = await AnswerAsync(engine, prompts[i]);
                if (restored.FromDisk == 0 && i == 0) throw new InvalidOperationException("Nothing was restored from disk.");
                answers[i] = (answers[i].Item1, answers[i].Item2, restored);
            }
            for (int i = 0; i < prompts.Count; i++) await sessions.DeleteAsync("", $"needle{i}");
        }
        return answers;
    }

    private async Task<InferenceEngine> StartAsync(int length)
    {
        var engine = new InferenceEngine(_model, _backend, _tokenizer, new EngineOptions
        {
            KvCapacityTokens = length + HeadroomTokens,
            ContextMax = Math.Min(_model.Info.ContextMax, length + HeadroomTokens),
            SequencesMax = 1,
            Disk = _disk is null ? null : new KvDiskOptions(_disk, 64L << 30),
        }, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady;
        return engine;
    }

    private static GenerationRequest Template(int[] prompt) => new()
    {
        RequestId = "needle",
        PromptTokenIds = prompt,
        Sampling = SamplingParams.Greedy,
        OutputTokensMax = OutputTokensMax,
        TopLogprobs = 5,
    };

    private async Task<Answer> AnswerAsync(InferenceEngine engine, int[] prompt)
    {
        long start = Stopwatch.GetTimestamp();
        int end = _tokenizer.IdOf(_tokenizer.Names.Eos ?? "<｜end▁of▁sentence｜>") ?? throw new InvalidOperationException("The tokenizer has no end token.");
        using var progress = new Timer(_ => Progress(engine, start), null, ProgressEvery, ProgressEvery);
        using var handle = engine.Submit(Template(prompt) with { StopTokenIds = [end] });
        var text = new StringBuilder();
        var tokens = new List<TokenLogprobs>();
        double first = 0;
        await foreach (var e in handle.Events.ReadAllAsync())
        {
            if (e is GenerationDelta delta)
            {
                if (tokens.Count == 0) first = Stopwatch.GetElapsedTime(start).TotalSeconds;
                text.Append(delta.Text);
                tokens.AddRange(delta.Logprobs!);
            }
            if (e is not GenerationFinished finished) continue;
            if (finished.Reason == FinishReason.Error) throw new InvalidOperationException(finished.Error);
            text.Append(finished.Text);
            return new Answer(text.ToString(), tokens, prompt.Length, finished.Usage.CachedTokens, finished.Usage.DiskTokens, first);
        }
        throw new InvalidOperationException("The engine ended without a word.");
    }

    // Of long prompts, to standard error: how far, by both clocks, and how much memory it took.
    private static void Progress(InferenceEngine engine, long start) => Console.Error.WriteLine(string.Create(CultureInfo.InvariantCulture,
        $"{engine.Stats.PromptTokens} prompt tokens, {Stopwatch.GetElapsedTime(start).TotalSeconds:0} s, {Environment.CpuUsage.TotalTime.TotalSeconds:0} s of processor time, "
        + $"{Environment.WorkingSet >> 20} MiB resident"));

    private int[] Prompt(string text, string question)
    {
        var rendered = Chat.Render(new Conversation([ChatMessage.Of(ChatRole.User, $"{text}\n\n{question}")]), new ChatRenderOptions { ThinkingMode = ThinkingMode.Chat });
        var ids = new List<int>();
        _tokenizer.Encode(rendered.Segments.Select(s => s.Trusted ? TextSegment.Trusted(s.Text) : TextSegment.Untrusted(s.Text)).ToArray(), ids);
        return [.. ids];
    }

    // Sentences repeat their words and hardly ever themselves; words are what is counted once.
    private int Count(string sentence)
    {
        int tokens = 0;
        foreach (string word in sentence.Split(' ', StringSplitOptions.RemoveEmptyEntries))
        {
            if (!_counts.TryGetValue(word, out int count)) _counts[word] = count = _tokenizer.Encode(" " + word, AddedTokenPolicy.None).Count;
            tokens += count;
        }
        return tokens;
    }

    public void Dispose()
    {
        _model.Dispose();
        _backend.Dispose();
    }

    private struct Tally
    {
        public int Good, All;

        public void Add(bool good)
        {
            All++;
            if (good) Good++;
        }

        public override readonly string ToString() => $"{Good} of {All}";
    }

    private sealed record Answer(string Text, List<TokenLogprobs> Tokens, int Prompt, int Cached, int FromDisk, double Seconds)
    {
        public bool SameAs(Answer other) => Text == other.Text && Tokens.Count == other.Tokens.Count
            && Tokens.Zip(other.Tokens).All(p => p.First.TokenId == p.Second.TokenId && p.First.Logprob.Equals(p.Second.Logprob) && p.First.Top.SequenceEqual(p.Second.Top));
    }
}

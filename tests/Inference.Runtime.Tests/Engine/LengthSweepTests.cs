// Prompts of many lengths, because the state that a prompt leaves depends on its length modulo 4, 128 and 256 (unfinished compression blocks,
// pages with room): for each, the bits of the logits after a whole prefill and of three decoded tokens, against every other way to get there.
//
// All prompts are beginnings of one seeded sequence. A schedule by chunks therefore needs no prefill of its own per length: one sequence grows
// chunk by chunk, and from each chunk's start every length that ends within the next chunk is computed and written over again. Edited prompts
// leave that sequence at some position and never come back to it.
//
// By default lengths around the edges of blocks, in seconds; with INFERENCE_SWEEP=full every length to 1,100, every schedule (minutes); with a
// number there, every length up to that.
using System.Globalization;
using System.Runtime.InteropServices;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Sampling;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class LengthSweepTests(ITestOutputHelper output)
{
    private const int LengthMax = 1100, Decoded = 3, TopLogprobs = 20, Block = KvStateSpec.BlockTokens;

    private static readonly int SweepMax = Environment.GetEnvironmentVariable("INFERENCE_SWEEP") switch
    {
        null or "" => 0,
        "full" => LengthMax,
        var number => Math.Clamp(int.Parse(number, CultureInfo.InvariantCulture), 1, LengthMax),
    };

    // In runs without gaps, each short enough that one engine keeps every prefix of it.
    private static readonly int[][] Runs = SweepMax > 0
        ? [.. Enumerable.Range(1, SweepMax).Chunk(32)]
        : [Span(1, 40), Span(120, 136), Span(250, 262), Span(380, 390), Span(508, 516), Span(1022, 1027), Span(1099, LengthMax)];

    private static readonly int[] Lengths = [.. Runs.SelectMany(run => run)];

    // Seeded ids; Tokens goes on past the longest prompt, Edited differs from it everywhere.
    private static readonly int[] Tokens = SeededTokens();
    private static readonly int[] Edited = [.. Tokens.Select((t, i) => (t + 1 + i % 1000) % 1024)];

    private readonly List<string> _differences = [];
    private int _compared;

    [Fact]
    public void Every_length_has_the_same_logits_whatever_the_chunks()
    {
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        var whole = Whole(loaded);
        foreach (int chunk in (int[])[1, 3, 7, 64, 256])
            Compare(loaded, chunk, SweepMax > 0 || chunk > 1 ? Lengths : [.. Lengths.Where(n => n <= Block + 2)], whole);
        Report("chunks of 1, 3, 7, 64, 256 and whole");
    }

    [Fact]
    public async Task Every_length_has_the_same_answer_resumed_from_every_kept_prefix()
    {
        // An engine has its backend for itself.
        using var forPlain = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        await using var plain = await Open(forPlain, prefixes: 0, stepTokens: 512);
        foreach (int[] run in Runs) await Resume(loaded, plain, run);
        Report("resumed at a block, before the last token, at an edit, beside an edit");
    }

    [Fact(SkipUnless = nameof(HasDisk), Skip = "State on disk needs Linux.")]
    public async Task Every_length_has_the_same_answer_from_a_session_that_was_forked_saved_and_restored_after_a_restart()
    {
        using var forPlain = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        await using var plain = await Open(forPlain, prefixes: 0, stepTokens: 512);
        foreach (int[] run in Runs) await SaveAndRestore(loaded, plain, run);
        Report("of a fork, beside a fork, and of a session restored after a restart");
    }

    public static bool HasDisk => OperatingSystem.IsLinux();

    // ---- logits, by chunks ----

    /// <summary>What a whole prefill and decoding give: the tokens decoded, and logits at the last position of the prompt and at theirs.</summary>
    private sealed record Answer(int[] Ids, float[][] Logits);

    // Each length in one step of a new session; all positions of its prompt besides, which must be those of the longest.
    private Dictionary<int, Answer> Whole(LoadedModel loaded)
    {
        var answers = new Dictionary<int, Answer>();
        float[][]? longest = null;
        foreach (int length in Lengths.Reverse())
        {
            using var session = new ModelSession(loaded.Model, loaded.Backend, 2048, 1, length);
            var sequence = session.Begin();
            var prompt = session.Step((sequence, Tokens[..length]))[0];
            longest ??= prompt;
            for (int i = 0; i < length; i++) Check(longest[i], prompt[i], $"length {length}, whole: position {i}");
            var ids = new int[Decoded];
            var logits = new float[Decoded + 1][];
            logits[0] = prompt[^1];
            for (int t = 0; t < Decoded; t++)
            {
                ids[t] = LogitMath.ArgMax(logits[t]).Index;
                logits[t + 1] = session.Step((sequence, [ids[t]]))[0][0];
            }
            answers.Add(length, new(ids, logits));
        }
        return answers;
    }

    private void Compare(LoadedModel loaded, int chunk, int[] lengths, Dictionary<int, Answer> whole)
    {
        using var growing = new GrowingSequence(loaded, chunk);
        foreach (int length in lengths)
        {
            while (growing.Start + chunk < length) growing.Advance();
            for (int t = 0; t <= Decoded; t++)
            {
                var (expected, at) = (whole[length], length + t - 1);
                var logits = t == 0 ? growing.Run(growing.Start, Tokens[growing.Start..length]) : growing.Run(at, [expected.Ids[t - 1]]);
                Check(expected.Logits[t], logits, $"length {length}, chunks of {chunk}: position {at}");
            }
        }
    }

    /// <summary>The long sequence, computed up to a chunk's start; what is run beyond is written over by what comes next.</summary>
    private sealed class GrowingSequence : IDisposable
    {
        private readonly int _chunk;
        private readonly KvCacheManager _cache;
        private readonly ModelRunner _runner;
        private readonly BlockTable _table;

        public GrowingSequence(LoadedModel loaded, int chunk)
        {
            _chunk = chunk;
            _cache = new(loaded.Model.KvStates, new(2048, 1, chunk + Decoded), loaded.Backend);
            _runner = new(loaded.Model, loaded.Backend, _cache, chunk, 1);
            _table = _cache.CreateTable();
        }

        public int Start { get; private set; }

        public void Advance()
        {
            Run(Start, Tokens[Start..(Start + _chunk)]);
            Start += _chunk;
            _cache.Trim(_table, Start);
        }

        /// <summary>Logits of the last token.</summary>
        public float[] Run(int start, int[] tokens)
        {
            Assert.True(_cache.TryExtend(_table, start + tokens.Length));
            _runner.Run([new(tokens, start, _table, tokens.Length - 1)]);
            return _runner.Logits(0).ToArray();
        }

        public void Dispose()
        {
            _runner.Dispose();
            _cache.Dispose();
        }
    }

    private void Check(float[] expected, float[] actual, string what)
    {
        _compared++;
        if (!MemoryMarshal.AsBytes<float>(expected).SequenceEqual(MemoryMarshal.AsBytes<float>(actual))) _differences.Add(what);
    }

    // ---- answers, resumed ----

    // Longest first: what shorter prompts find are then blocks, and nothing that a longer one left.
    private async Task Resume(LoadedModel loaded, InferenceEngine plain, int[] run)
    {
        await using var keeping = await Open(loaded, prefixes: 512, stepTokens: 64);
        await Ask(keeping, "", Tokens[..(run[^1] + 2)]);
        foreach (int length in run.Reverse())
        {
            int block = (length - 1) / Block * Block, edit = 1 + new Random(length).Next(length - 1);
            string[] expected = (await Ask(plain, "", Tokens[..length])).Bits;
            await Check(expected, keeping, "", Tokens[..length], block, "at a block");
            await Check(expected, keeping, "", Tokens[..length], length - 1, "before the last token");
            // In turn: 3 times 256 lengths bring each kind of edit together with each residue.
            if (length % 3 == 0) await CheckEdited(plain, keeping, "", length, length - 1);
            if (length % 3 == 1) await CheckEdited(plain, keeping, "", length, block);
            if (length % 3 != 2) continue;
            // An edit writes where the unedited prompt has rows: that one must find them as they were. A tenant of its own, because another
            // length may have had the same edit and left more than what comes before it.
            string tenant = $"edit of {length}";
            await Ask(keeping, tenant, Tokens[..edit]);
            await Ask(keeping, tenant, Tokens[..length]);
            await CheckEdited(plain, keeping, tenant, length, edit);
            await Check(expected, keeping, tenant, Tokens[..length], length - 1, "beside an edit");
        }
    }

    // A session of each length, computed and saved; two continuations of its fork run at once, with what follows and with something else. After
    // a restart it goes on from disk.
    private async Task SaveAndRestore(LoadedModel loaded, InferenceEngine plain, int[] run)
    {
        using var folder = new TemporaryFolder();
        var expected = new Dictionary<int, (string[] Bits, string[] Other)>();
        await using (var engine = await Open(loaded, prefixes: 512, stepTokens: 64, folder.Path))
        {
            using var sessions = new KvSessions(engine, TimeProvider.System);
            foreach (int length in run)
            {
                var (next, other) = (Tokens[..(length + 1)], (int[])[.. Tokens[..length], Edited[length]]);
                expected.Add(length, ((await Ask(plain, "", next)).Bits, (await Ask(plain, "", other)).Bits));
                string id = length.ToString(CultureInfo.InvariantCulture);
                sessions.Create("", id);
                await sessions.AppendAsync("", id, Tokens[..length], Request("", [], 0), TestContext.Current.CancellationToken);
                sessions.Fork("", id, $"{id}a");
                int[] fork;
                using (var turn = sessions.Begin("", $"{id}a")) fork = turn.Tokens;
                var answers = await Task.WhenAll(Ask(engine, "", [.. fork, Tokens[length]]), Ask(engine, "", [.. fork, Edited[length]]));
                Compare(expected[length].Bits, answers[0].Bits, $"length {length}, of a fork");
                Compare(expected[length].Other, answers[1].Bits, $"length {length}, beside a fork");
                var saved = await sessions.SaveAsync("", id, Request("", [], 0), TestContext.Current.CancellationToken);
                Assert.Equal((length, length), (saved.SavedTokens, saved.DiskTokens));
            }
        }
        await using (var engine = await Open(loaded, prefixes: 512, stepTokens: 64, folder.Path))
        {
            using var sessions = new KvSessions(engine, TimeProvider.System);
            Assert.Equal(run.Length, (await sessions.ListAsync("")).Count);
            // Longest first: each finds its own state on disk only, for what is in memory is longer.
            foreach (int length in run.Reverse())
            {
                var (bits, cached) = await Ask(engine, "", Tokens[..(length + 1)]);
                if (cached != length) _differences.Add($"length {length}, restored: resumed at {cached}");
                Compare(expected[length].Bits, bits, $"length {length}, restored");
                Compare(expected[length].Other, (await Ask(engine, "", [.. Tokens[..length], Edited[length]])).Bits, $"length {length}, restored, going on otherwise");
            }
            Assert.True(engine.Stats.Disk!.ReadsDone >= run.Length / 2, $"{engine.Stats.Disk}");
        }
    }

    private void Compare(string[] expected, string[] actual, string what)
    {
        _compared++;
        for (int t = 0; t < expected.Length; t++)
            if (actual[t] != expected[t]) _differences.Add($"{what}, token {t}: {actual[t]} instead of {expected[t]}");
    }

    private async Task CheckEdited(InferenceEngine plain, InferenceEngine keeping, string tenant, int length, int edit)
    {
        int[] prompt = [.. Tokens[..edit], .. Edited[edit..length]];
        await Check((await Ask(plain, "", prompt)).Bits, keeping, tenant, prompt, edit, "edited");
    }

    private async Task Check(string[] expected, InferenceEngine keeping, string tenant, int[] prompt, int kept, string how)
    {
        _compared++;
        var (bits, cached) = await Ask(keeping, tenant, prompt);
        if (cached != kept) _differences.Add($"length {prompt.Length}, {how}: resumed at {cached} instead of {kept}");
        for (int t = 0; t < bits.Length; t++)
            if (bits[t] != expected[t]) _differences.Add($"length {prompt.Length}, {how}, resumed at {cached}, token {t}: {bits[t]} instead of {expected[t]}");
    }

    private static async Task<InferenceEngine> Open(LoadedModel loaded, int prefixes, int stepTokens, string? disk = null)
    {
        var options = new EngineOptions
        {
            SequencesMax = disk is null ? 1 : 2,
            Disk = disk is null ? null : new(disk, 1L << 32) { WorthTokens = 1 },
            StepTokensMax = stepTokens,
            KvCapacityTokens = prefixes == 0 ? 2048 : 256 * 1024,
            ContextMax = 2048,
            PrefixesMax = prefixes,
        };
        var engine = new InferenceEngine(
            loaded.Model, loaded.Backend, r => new LetterText(r), options, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady;
        return engine;
    }

    // Waits for the end, so that what the next one finds does not depend on time.
    private static async Task<(string[] Bits, int Cached)> Ask(InferenceEngine engine, string tenant, int[] prompt)
    {
        var handle = engine.Submit(Request(tenant, prompt, Decoded + 1));
        var bits = new List<string>();
        int cached = -1, drawn = 0;
        await foreach (var e in handle.Events.ReadAllAsync(TestContext.Current.CancellationToken))
        {
            if (e is GenerationDelta delta)
            {
                drawn += delta.TokenIds.Count;
                foreach (var l in delta.Logprobs!)
                    bits.Add(string.Join(' ', l.Top.Prepend(new(l.TokenId, l.Logprob))
                        .Select(t => $"{t.TokenId}:{BitConverter.SingleToInt32Bits(t.Logprob):x8}")));
            }
            if (e is not GenerationFinished finished) continue;
            Assert.Equal(FinishReason.Length, finished.Reason);
            cached = finished.Usage.CachedTokens;
        }
        Assert.Equal(Decoded + 1, drawn);
        return ([.. bits], cached);
    }

    private static GenerationRequest Request(string tenant, int[] prompt, int outputTokens) => new()
    {
        RequestId = prompt.Length.ToString(CultureInfo.InvariantCulture),
        PromptTokenIds = prompt,
        OutputTokensMax = outputTokens,
        TopLogprobs = TopLogprobs,
        Tenant = tenant,
        Sampling = SamplingParams.Greedy,
    };

    private void Report(string schedules)
    {
        output.WriteLine($"{Lengths.Length} lengths, {schedules}: {_compared} comparisons, {_differences.Count} differences");
        Assert.True(_differences.Count == 0, $"{_differences.Count} of {_compared}:\n{string.Join('\n', _differences.Take(20))}");
    }

    private static int[] Span(int first, int last) => [.. Enumerable.Range(first, last - first + 1)];

    private static int[] SeededTokens()
    {
        var random = new Random(20261125);
        return [.. Enumerable.Range(0, LengthMax + Block).Select(_ => random.Next(2, 1024))];
    }
}

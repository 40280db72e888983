// What kept prefixes must give, on a whole engine without its thread: how much is found, that it is work not done, and that nothing else
// changes. The hash model verifies every row that it may read, so a hit that restores anything wrong is an exception or a wrong token.
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Sampling;
using Inference.Runtime.Tests.Engine;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Time.Testing;
using Xunit;

namespace Inference.Runtime.Tests.KvCache;

public sealed class PrefixCacheTests
{
    private const int Vocab = 64, Block = 128, Output = 5;

    private sealed class Bench : IAsyncDisposable
    {
        private readonly HostMemoryBackend _backend = new();
        private readonly HashModel _model = new(Vocab, pageRows: 64);

        public Bench(int prefixes = 32, int stepTokens = 64, int tokens = 16384, bool shared = false) => Engine = Opened(new InferenceEngine(_model, _backend, r => new LetterText(r),
            new EngineOptions { SequencesMax = 16, StepTokensMax = stepTokens, KvCapacityTokens = tokens, PrefixesMax = prefixes, SharePrefixes = shared },
            new FakeTimeProvider(), NullLogger.Instance));

        public InferenceEngine Engine { get; }
        public PrefixCache Prefixes => Engine.Cache.Prefixes!;

        /// <summary>Submits them together, steps until all have ended, checks the answers; returns the cached tokens of each.</summary>
        public int[] Run(params (int[] Prompt, string Tenant)[] prompts)
        {
            var streams = prompts.Select(p =>
            {
                var request = new GenerationRequest
                {
                    RequestId = "r",
                    PromptTokenIds = p.Prompt,
                    OutputTokensMax = Output,
                    Sampling = SamplingParams.Greedy,
                    Tenant = p.Tenant,
                };
                return new StreamRecord(Engine.Submit(request), request);
            }).ToArray();
            while (streams.Any(s => s.End is null))
            {
                Engine.Step();
                foreach (var s in streams)
                    while (s.TryRead()) { }
            }
            foreach (var s in streams)
            {
                Assert.Equal(FinishReason.Length, s.End!.Reason);
                s.MustAgreeWith(SoloRun.Of(_model, s.Request));
            }
            LastAnswer = [.. streams[^1].Tokens];
            return [.. streams.Select(s => s.End!.Usage.CachedTokens)];
        }

        public int Run(int[] prompt, string tenant = "") => Run((prompt, tenant))[0];

        public int[] LastAnswer { get; private set; } = [];

        private static InferenceEngine Opened(InferenceEngine engine)
        {
            engine.Open();
            return engine;
        }

        public async ValueTask DisposeAsync()
        {
            var stopped = Engine.DrainAsync(Timeout.InfiniteTimeSpan);
            while (!Engine.TryStop()) Engine.Step();
            await stopped;
            await Engine.DisposeAsync();
            _model.Dispose();
            _backend.Dispose();
        }
    }

    private static int[] Tokens(int count, int seed = 1)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => random.Next(Vocab))];
    }

    [Theory]
    [InlineData(2)]
    [InlineData(7)]
    [InlineData(127)]
    [InlineData(128)]
    [InlineData(129)]
    [InlineData(257)]
    [InlineData(1001)]
    public async Task The_same_prompt_again_computes_one_token(int length)
    {
        await using var bench = new Bench();
        Assert.Equal(0, bench.Run(Tokens(length)));
        Assert.Equal(length - 1, bench.Run(Tokens(length)));
        Assert.Equal(length - 1, bench.Run(Tokens(length)));
    }

    [Fact]
    public async Task A_conversation_goes_on_from_the_end_of_the_answer()
    {
        await using var bench = new Bench();
        int[] conversation = Tokens(300);
        for (int turn = 0; turn < 6; turn++)
        {
            int cached = bench.Run(conversation);
            // All but the last token of the answer, which was never processed, is known; and the new question is not.
            Assert.Equal(turn == 0 ? 0 : conversation.Length - 34 - 1, cached);
            conversation = [.. conversation, .. bench.LastAnswer, .. Tokens(34, seed: 100 + turn)];
        }
    }

    [Fact]
    public async Task An_edit_keeps_what_stands_before_it()
    {
        await using var bench = new Bench();
        int[] prompt = Tokens(1500);
        bench.Run(prompt);
        foreach (int edit in (int[])[1400, 1000, 700, 300, 256])
        {
            int[] edited = [.. prompt];
            edited[edit] = (edited[edit] + 1) % Vocab;
            Assert.Equal(edit / 256 * 256, bench.Run(edited));
        }
    }

    [Fact]
    public async Task Prompts_that_arrive_together_compute_what_they_share_once()
    {
        await using var bench = new Bench();
        int[] system = Tokens(900);
        var prompts = Enumerable.Range(0, 12).Select(i => ((int[])[.. system, .. Tokens(20 + i, seed: i + 2)], "")).ToArray();
        bench.Run(prompts);
        int alone = prompts.Sum(p => p.Item1.Length);
        int computed = (int)bench.Engine.Stats.PromptTokens;
        Assert.Equal(alone - 11 * system.Length, computed);
    }

    [Fact]
    public async Task Tenants_share_nothing()
    {
        await using var bench = new Bench();
        bench.Run(Tokens(600), "a");
        Assert.Equal(0, bench.Run(Tokens(600), "b"));
        Assert.Equal(599, bench.Run(Tokens(600), "a"));
        Assert.Equal(599, bench.Run(Tokens(600), "b"));
    }

    [Fact]
    public async Task Tenants_share_prefixes_if_they_are_told_to()
    {
        await using var bench = new Bench(shared: true);
        bench.Run(Tokens(600), "a");
        Assert.Equal(599, bench.Run(Tokens(600), "b"));
    }

    [Fact]
    public async Task Equal_names_of_different_prefixes_give_no_wrong_hit()
    {
        await using var bench = new Bench();
        bench.Prefixes.Chain = static (_, _) => new PrefixHash(1, 2);
        for (int round = 0; round < 2; round++)
            for (int seed = 1; seed <= 5; seed++) bench.Run(Tokens(400, seed));
        bench.Prefixes.Chain = static (_, block) => new PrefixHash(0, (UInt128)(block.Span[0] % 3));
        for (int round = 0; round < 2; round++)
            for (int seed = 1; seed <= 9; seed++) bench.Run(Tokens(400 + seed, seed));
    }

    [Fact]
    public async Task Kept_prefixes_give_way_to_requests_and_leave_no_page_behind()
    {
        await using var bench = new Bench(prefixes: 8, tokens: 1024);
        for (int seed = 1; seed <= 20; seed++) bench.Run(Tokens(100 + 40 * seed, seed));
        Assert.InRange(bench.Prefixes.SnapshotCount, 1, 8);
        Assert.All(bench.Engine.Stats.Kv, k => Assert.Equal(k.TotalPages, k.FreePages));
        Assert.Contains(bench.Engine.Stats.Kv, k => k.KeptPages > 0);
        while (bench.Prefixes.Reclaim()) { }
        Assert.Equal(0, bench.Prefixes.NodeCount);
        Assert.All(bench.Engine.Cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
    }

    [Fact]
    public async Task Nothing_is_kept_when_nothing_may_be()
    {
        await using var bench = new Bench(prefixes: 0);
        Assert.Null(bench.Engine.Cache.Prefixes);
        bench.Run(Tokens(300));
        Assert.Equal(0, bench.Run(Tokens(300)));
    }
}

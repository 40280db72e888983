using System.Diagnostics;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Server.Options;
using Microsoft.Extensions.Logging.Abstractions;

namespace Inference.Server.Commands;

/// <summary>
/// The engine under measurement. A cell keeps its number of requests running until all have been started, and clocks every token as a client in
/// this process would see it. Prompts are random token ids of a seed, so a prefix is never met twice. Owns the engine.
/// </summary>
internal sealed class BenchEngine : IAsyncDisposable
{
    // Long enough for the runtime to have compiled the hot loops for good.
    private static readonly TimeSpan WarmUp = TimeSpan.FromSeconds(1);
    private const int WarmUpOutputTokens = 8;

    private readonly InferenceEngine _engine;
    private readonly int _vocabSize;
    private bool _warm;

    private BenchEngine(InferenceEngine engine, int vocabSize) => (_engine, _vocabSize) = (engine, vocabSize);

    public static async Task<BenchEngine> StartAsync(ModelOnBackend loaded, ModelOptions options, BenchPlan plan, CancellationToken cancel)
    {
        var info = loaded.Model.Info;
        if (plan.LengthMax > info.ContextMax)
            throw new InputException(
                $"--prompt-tokens and --output-tokens: {plan.LengthMax} tokens together are more than the context of {info.ContextMax}; give less.");
        int sequences = plan.Concurrency.Max();
        var engine = new InferenceEngine(loaded.Model, loaded.Backend, _ => NoText.Instance, new EngineOptions
        {
            KvCapacityTokens = checked((int)Math.Min((long)plan.LengthMax * sequences, int.MaxValue / 2)),
            ContextMax = plan.LengthMax,
            SequencesMax = sequences,
            StepTokensMax = Math.Max(options.StepTokensMax, sequences),
            QueueMax = sequences,
        }, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady.WaitAsync(cancel);
        return new BenchEngine(engine, info.VocabSize);
    }

    /// <summary>Warms up and runs a cell.</summary>
    /// <param name="ended">Called after each request.</param>
    public async Task<BenchResult> MeasureAsync(BenchCell cell, BenchPlan plan, Action ended, CancellationToken cancel)
    {
        var random = new Random(plan.SeedOf(cell));
        await WarmUpAsync(random, cell, cancel);
        var prompts = new Queue<int[]>(Enumerable.Range(0, plan.RequestsOf(cell)).Select(_ => Prompt(random, cell.PromptTokens)));
        var clocks = new List<RequestClock>();
        long start = Stopwatch.GetTimestamp();
        await Task.WhenAll(Enumerable.Range(0, cell.Concurrency).Select(_ => Task.Run(ClientAsync, cancel)));
        return new BenchResult(cell, Stopwatch.GetElapsedTime(start), clocks);

        async Task ClientAsync()
        {
            while (true)
            {
                int[]? prompt;
                lock (prompts)
                    if (!prompts.TryDequeue(out prompt)) return;
                var clock = await RunAsync(prompt, cell.OutputTokens, cancel);
                lock (clocks) clocks.Add(clock);
                ended();
            }
        }
    }

    private async Task WarmUpAsync(Random random, BenchCell cell, CancellationToken cancel)
    {
        long start = Stopwatch.GetTimestamp();
        do await RunAsync(Prompt(random, cell.PromptTokens), Math.Min(WarmUpOutputTokens, cell.OutputTokens), cancel);
        while (!_warm && Stopwatch.GetElapsedTime(start) < WarmUp);
        _warm = true;
    }

    private async Task<RequestClock> RunAsync(int[] prompt, int outputTokens, CancellationToken cancel)
    {
        long start = Stopwatch.GetTimestamp();
        using var handle = _engine.Submit(new GenerationRequest
        {
            RequestId = "bench",
            PromptTokenIds = prompt,
            Sampling = SamplingParams.Greedy,
            OutputTokensMax = outputTokens,
        });
        TimeSpan first = default, last = default;
        int tokens = 0;
        await foreach (var e in handle.Events.ReadAllAsync(cancel))
        {
            if (e is GenerationFinished { Reason: not FinishReason.Length } finished)
                throw new AnswerException(finished.Error ?? $"it ended with {finished.Reason}");
            if (e is not GenerationDelta delta) continue;
            last = Stopwatch.GetElapsedTime(start);
            if (tokens == 0) first = last;
            tokens += delta.TokenIds.Count;
        }
        return new RequestClock(prompt.Length, tokens, first, last);
    }

    private int[] Prompt(Random random, int length)
    {
        var prompt = new int[length];
        for (int i = 0; i < length; i++) prompt[i] = random.Next(_vocabSize);
        return prompt;
    }

    public ValueTask DisposeAsync() => _engine.DisposeAsync();

    private sealed class NoText : ISequenceText
    {
        public static readonly NoText Instance = new();

        public TextPiece Push(int tokenId) => new("", default);

        public string Flush() => "";
    }
}

/// <summary>When a request's tokens came, counted from its submission.</summary>
internal sealed record RequestClock(int PromptTokens, int OutputTokens, TimeSpan First, TimeSpan Last)
{
    /// <summary>Mean time per output token after the first; null when there is only one.</summary>
    public TimeSpan? PerToken => OutputTokens > 1 ? (Last - First) / (OutputTokens - 1) : null;
}

/// <summary>What a cell took.</summary>
internal sealed record BenchResult(BenchCell Cell, TimeSpan Elapsed, IReadOnlyList<RequestClock> Clocks)
{
    public double OutputTokensPerSecond => Clocks.Sum(c => (long)c.OutputTokens) / Elapsed.TotalSeconds;

    /// <summary>Prompt and output tokens.</summary>
    public double TotalTokensPerSecond => Clocks.Sum(c => (long)c.PromptTokens + c.OutputTokens) / Elapsed.TotalSeconds;

    public Spread TimeToFirstToken => Spread.Of(Clocks.Select(c => c.First.TotalMilliseconds));

    /// <summary>Null when answers have one token.</summary>
    public Spread? TimePerOutputToken => Clocks.All(c => c.PerToken is null) ? null : Spread.Of(Clocks.Select(c => c.PerToken!.Value.TotalMilliseconds));
}

/// <summary>Mean and percentiles (nearest rank) of times in milliseconds.</summary>
internal sealed record Spread(double Mean, double P50, double P99)
{
    public static Spread Of(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return new Spread(sorted.Average(), Percentile(sorted, 0.50), Percentile(sorted, 0.99));
    }

    private static double Percentile(double[] sorted, double part) => sorted[Math.Clamp((int)Math.Ceiling(part * sorted.Length) - 1, 0, sorted.Length - 1)];
}

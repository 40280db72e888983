using System.Diagnostics;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Server.Commands;

/// <summary>
/// Time per token at the end of long contexts, against what must be moved and computed over what the machine can move and compute, both measured in
/// turn in the same run. The model runs real steps of its own at the real positions; only the cache in front of them is not computed, but filled: the
/// first <see cref="ComputedTokens"/> positions are, and the pages after them are copies of their pages, each in memory of its own. Cost depends on
/// where rows lie and how many there are, not on what they say; where computing all of them takes no time worth mentioning both are measured.
/// Owns the cache and the yardsticks, not the model.
/// </summary>
internal sealed class ContextBench : IDisposable
{
    /// <summary>Positions at the beginning whose rows are computed when the rest is filled.</summary>
    public const int ComputedTokens = 1024;

    /// <summary>Up to here a context is also computed as a whole.</summary>
    public const int CrossCheckTokens = 4096;

    /// <summary>Decode steps at the end of each context.</summary>
    public const int TailTokens = WarmUpSteps + Rounds * RoundSteps;

    private const int WarmUpSteps = 4, Rounds = 7, RoundSteps = 8;

    private readonly ModelOnBackend _loaded;
    private readonly DevicePeaks _peaks;
    private readonly KvCacheManager _cache;
    private readonly ModelRunner _runner;
    private readonly Random _random;
    private readonly int _stepTokens;

    /// <param name="contextMax">The longest context that will be asked for.</param>
    /// <param name="stepTokens">Tokens of a prefill step.</param>
    public ContextBench(ModelOnBackend loaded, DevicePeaks peaks, int contextMax, int stepTokens, int seed)
    {
        (_loaded, _peaks, _stepTokens, _random) = (loaded, peaks, stepTokens, new Random(seed));
        _cache = new KvCacheManager(loaded.Model.KvStates, new KvCapacity(contextMax, 1, Math.Max(stepTokens, KvStateSpec.BlockTokens)), loaded.Backend);
        _runner = new ModelRunner(loaded.Model, loaded.Backend, _cache, stepTokens, 1);
    }

    /// <summary>The shortest context that can be measured.</summary>
    public static int ContextMin(int stepTokens) => TailTokens + stepTokens + 1;

    /// <summary>Measures a context of so many tokens, the last of which are the measured ones.</summary>
    /// <param name="computed">Compute all of it instead of filling most.</param>
    /// <param name="say">Told what is going on.</param>
    public ContextResult Measure(int context, bool computed, Action<string> say, CancellationToken cancel)
    {
        int start = context - TailTokens - _stepTokens;
        var table = _cache.CreateTable();
        try
        {
            say("computing rows");
            Compute(table, computed ? start : Math.Min(start, ComputedTokens), cancel);
            say("filling rows");
            Fill(table, start, cancel);
            say("prefill");
            var prefill = new Ratios(_loaded.Model.Work.Step(start, _stepTokens, 0), _stepTokens, _peaks);
            var (read, multiply) = (Clocked(_peaks.Read), Clocked(_peaks.Multiply));
            var step = Time(table, start, _stepTokens);
            prefill.Add(step, (read + Clocked(_peaks.Read)) / 2, (multiply + Clocked(_peaks.Multiply)) / 2);
            return new ContextResult(context, computed, prefill.Result(), Decode(table, start + _stepTokens, say, cancel));
        }
        finally
        {
            _cache.Free(table);
        }
    }

    private TimingResult Decode(BlockTable table, int position, Action<string> say, CancellationToken cancel)
    {
        say("decode");
        var decode = new Ratios(_loaded.Model.Work.Step(position + TailTokens / 2, 1, 1), 1, _peaks);
        for (int i = 0; i < WarmUpSteps; i++) Time(table, position++, 1);
        for (int round = 0; round < Rounds; round++)
        {
            cancel.ThrowIfCancellationRequested();
            var (read, multiply) = (Clocked(_peaks.Read), Clocked(_peaks.Multiply));
            Time(table, position++, 1); // the yardsticks have emptied the caches
            var times = new Clock[RoundSteps - 1];
            for (int i = 0; i < times.Length; i++) times[i] = Time(table, position++, 1);
            decode.Add(new Clock(Spread.Of(times.Select(t => t.Wall)).P50, Spread.Of(times.Select(t => t.Processor)).P50), read, multiply);
        }
        return decode.Result();
    }

    // Of a step over the next tokens, logits of the last one included when there is but one.
    private Clock Time(BlockTable table, int start, int tokens) => Clocked(() => Run(table, start, tokens, wantsLogits: tokens == 1));

    // Processor time is that of the whole process: nothing else of it works meanwhile.
    private Clock Clocked(Action run)
    {
        var processor = Environment.CpuUsage.TotalTime;
        long begin = Stopwatch.GetTimestamp();
        run();
        return new Clock(Stopwatch.GetElapsedTime(begin).TotalSeconds, (Environment.CpuUsage.TotalTime - processor).TotalSeconds / _peaks.Threads);
    }

    private void Run(BlockTable table, int start, int tokens, bool wantsLogits)
    {
        Extend(table, start + tokens);
        var ids = new int[tokens];
        for (int i = 0; i < tokens; i++) ids[i] = _random.Next(_loaded.Model.Info.VocabSize);
        _runner.Run([new SequenceChunk(ids, start, table, wantsLogits ? tokens - 1 : tokens)]);
        _cache.Trim(table, start + tokens);
    }

    private void Extend(BlockTable table, int length)
    {
        if (!_cache.TryExtend(table, length)) throw new InvalidOperationException($"The cache has no room for {length} positions.");
    }

    private void Compute(BlockTable table, int length, CancellationToken cancel)
    {
        for (int start = 0; start < length; start += _stepTokens)
        {
            cancel.ThrowIfCancellationRequested();
            Run(table, start, Math.Min(_stepTokens, length - start), wantsLogits: false);
        }
    }

    // Block by block, since limited retention has room for no more; each new page becomes a copy of one that was there at the beginning, or in the window.
    private void Fill(BlockTable table, int length, CancellationToken cancel)
    {
        int[] sources = [.. _cache.Pools.Select((_, kind) => table.Pages(kind).Count)];
        while (table.Length < length)
        {
            cancel.ThrowIfCancellationRequested();
            int[] before = [.. _cache.Pools.Select((_, kind) => table.Pages(kind).Count)];
            int to = Math.Min(table.Length + KvStateSpec.BlockTokens, length);
            Extend(table, to);
            for (int kind = 0; kind < before.Length; kind++)
            {
                var (pages, pool) = (table.Pages(kind), _cache.Pools[kind].Tensor);
                int[] from = [.. pages.Take(Math.Min(sources[kind], before[kind])).Where(p => p != BlockTable.NoPage)];
                for (int i = before[kind]; i < pages.Count; i++)
                    if (pages[i] != BlockTable.NoPage && from.Length > 0) _loaded.Backend.Copy(pool.Slice(from[_random.Next(from.Length)], 1), pool.Slice(pages[i], 1));
            }
            _cache.Trim(table, to);
        }
    }

    public void Dispose()
    {
        _runner.Dispose();
        _cache.Dispose();
        _peaks.Dispose();
    }

    /// <summary>Times of steps beside the yardsticks of the moment.</summary>
    private sealed class Ratios(IReadOnlyList<WorkPart> work, int tokens, DevicePeaks peaks)
    {
        private readonly List<(Clock Step, Clock Read, Clock Multiply)> _rounds = [];

        public void Add(Clock step, Clock read, Clock multiply) => _rounds.Add((step, read, multiply));

        public TimingResult Result() => new(work, tokens, Of(c => c.Wall), Of(c => c.Processor));

        private TimingSide Of(Func<Clock, double> side)
        {
            double moves = work.Sum(p => p.Bytes) / peaks.ReadBytes, computes = work.Sum(p => p.Operations) / peaks.MultiplyOperations;
            double Median(Func<double, double, double, double> of) => Spread.Of(_rounds.Select(r => of(side(r.Step), side(r.Read), side(r.Multiply)))).P50;
            double scale = 1000.0 / tokens;
            return new TimingSide(
                Median((step, _, _) => step) * scale, peaks.ReadBytes / Median((_, read, _) => read), peaks.MultiplyOperations / Median((_, _, multiply) => multiply),
                Median((_, read, _) => moves * read) * scale, Median((_, _, multiply) => computes * multiply) * scale,
                Median((_, read, multiply) => moves * read + computes * multiply) * scale,
                Median((step, read, multiply) => step / (moves * read + computes * multiply)));
        }
    }

    /// <summary>Seconds by the clock, and of processor time per thread of the backend.</summary>
    private readonly record struct Clock(double Wall, double Processor)
    {
        public static Clock operator +(Clock a, Clock b) => new(a.Wall + b.Wall, a.Processor + b.Processor);
        public static Clock operator /(Clock a, double by) => new(a.Wall / by, a.Processor / by);
    }
}

/// <summary>
/// Times of steps by one of two clocks, in milliseconds per token, medians over the rounds: by the wall, or as processor time per thread, in which others on
/// the machine do not count (but contention for memory, and waiting for each other, do).
/// </summary>
/// <param name="Milliseconds">Measured.</param>
/// <param name="ReadPerSecond">Bytes; the yardstick.</param>
/// <param name="OperationsPerSecond">The yardstick.</param>
/// <param name="MoveMilliseconds">Bytes over the yardstick.</param>
/// <param name="ComputeMilliseconds">Operations over the yardstick.</param>
/// <param name="FloorMilliseconds">Both together.</param>
/// <param name="Ratio">Measured to both together, within a round.</param>
internal sealed record TimingSide(
    double Milliseconds, double ReadPerSecond, double OperationsPerSecond, double MoveMilliseconds, double ComputeMilliseconds, double FloorMilliseconds,
    double Ratio);

/// <summary>Steps of one kind at one context.</summary>
/// <param name="Work">Of one step.</param>
/// <param name="Tokens">Of one step.</param>
internal sealed record TimingResult(IReadOnlyList<WorkPart> Work, int Tokens, TimingSide Wall, TimingSide Processor)
{
    public double Bytes => Work.Sum(p => p.Bytes);
    public double Operations => Work.Sum(p => p.Operations);
}

/// <param name="Context">Tokens.</param>
/// <param name="Computed">Whether the rows before the measured tokens were computed; else they were filled.</param>
internal sealed record ContextResult(int Context, bool Computed, TimingResult Prefill, TimingResult Decode);

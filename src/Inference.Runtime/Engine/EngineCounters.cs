using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;

namespace Inference.Runtime.Engine;

/// <summary>Counts what the engine did, and makes <see cref="EngineStats"/> of it. The engine's thread; the pictures are immutable.</summary>
internal sealed class EngineCounters
{
    private readonly long[] _finished = new long[Enum.GetValues<FinishReason>().Length];
    private long _steps, _promptTokens, _recomputedTokens, _outputTokens, _preemptions, _accepted;
    private TimeSpan _lastStepDuration;
    private DateTimeOffset? _lastStepAt;

    public void Accepted() => _accepted++;

    public void Finished(FinishReason reason) => _finished[(int)reason]++;

    /// <summary>Before the step: how much of it is new, how much was processed before a preemption.</summary>
    public void Planned(ScheduledBatch batch)
    {
        _preemptions += batch.Preempted.Count;
        foreach (var chunk in batch.Chunks)
        {
            int end = chunk.Start + chunk.Count;
            _recomputedTokens += Math.Clamp(chunk.Sequence.ProcessedMax - chunk.Start, 0, chunk.Count);
            _promptTokens += Math.Max(0, Math.Min(end, chunk.Sequence.PromptLength) - Math.Max(chunk.Start, chunk.Sequence.ProcessedMax));
        }
    }

    public void Stepped(TimeSpan duration, DateTimeOffset at)
    {
        _steps++;
        (_lastStepDuration, _lastStepAt) = (duration, at);
    }

    public void Generated() => _outputTokens++;

    public EngineStats Picture(EngineState state, Scheduler scheduler, KvCacheManager cache) => new(
        state, scheduler.Running.Count, scheduler.Running.Count(s => s.Stalled) + scheduler.Waiting.Count(s => s.Stalled),
        scheduler.Waiting.Count, [.. cache.Pools.Select(p => new KvPoolStats(p.Spec.Name, p.PageCount, p.FreeCount + p.KeptCount, p.KeptCount))], _steps, _promptTokens,
        _recomputedTokens, _outputTokens, _preemptions, _lastStepDuration, _lastStepAt, _accepted, [.. _finished]);
}

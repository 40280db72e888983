using Inference.Runtime.Engine;

namespace Inference.Runtime.Scheduling;

internal enum SchedulerEventKind
{
    /// <summary>A request that can run here was accepted.</summary>
    Submitted,
    /// <summary>End it now, for <see cref="SchedulerEvent.Reason"/>; ignored if it has ended.</summary>
    Ended,
    /// <summary>Its reader has fallen behind: do not schedule it.</summary>
    Stalled,
    /// <summary>Its reader has caught up.</summary>
    Resumed,
}

/// <summary>Something that happened to a sequence since the last step.</summary>
internal readonly record struct SchedulerEvent(SchedulerEventKind Kind, Sequence Sequence, FinishReason Reason = default, string? Error = null)
{
    public static SchedulerEvent Submitted(Sequence sequence) => new(SchedulerEventKind.Submitted, sequence);
    public static SchedulerEvent Stalled(Sequence sequence) => new(SchedulerEventKind.Stalled, sequence);
    public static SchedulerEvent Resumed(Sequence sequence) => new(SchedulerEventKind.Resumed, sequence);
    public static SchedulerEvent Cancelled(Sequence sequence) => new(SchedulerEventKind.Ended, sequence, FinishReason.Cancelled);
    public static SchedulerEvent Ended(Sequence sequence, string error) => new(SchedulerEventKind.Ended, sequence, FinishReason.Error, error);
}

/// <summary>One sequence's part of a step: tokens Start .. Start + Count - 1.</summary>
/// <param name="Samples">They are its last: a new token is drawn from the last one's logits.</param>
internal readonly record struct ScheduledChunk(Sequence Sequence, int Start, int Count, bool Samples);

/// <summary>What came of a chunk that samples.</summary>
/// <param name="TokenId">The new token.</param>
/// <param name="Stops">It ends the answer (an end token, or it completed a stop string).</param>
/// <param name="Error">The sequence failed instead; <paramref name="TokenId"/> means nothing.</param>
internal readonly record struct ChunkOutcome(int TokenId, bool Stops, string? Error = null);

/// <summary>
/// The plan of a step: who runs, and who ended or lost its pages while it was made. Belongs to the scheduler, which fills it anew in each
/// step. Chunks come in the order in which their sequences run (<see cref="Scheduler.Running"/>).
/// </summary>
internal sealed class ScheduledBatch
{
    public List<ScheduledChunk> Chunks { get; } = [];

    /// <summary>Ended since the last plan; their pages are free.</summary>
    public List<Sequence> Finished { get; } = [];

    /// <summary>Given a place for the first time.</summary>
    public List<Sequence> Started { get; } = [];

    public List<Sequence> Preempted { get; } = [];

    public int TokenCount { get; internal set; }

    internal void Clear()
    {
        Chunks.Clear();
        Finished.Clear();
        Started.Clear();
        Preempted.Clear();
        TokenCount = 0;
    }
}

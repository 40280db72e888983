using Inference.Runtime.Sampling;
using Inference.Runtime.Scheduling;

namespace Inference.Runtime.Engine;

/// <summary>
/// What the engine keeps for an accepted request besides its <see cref="Scheduling.Sequence"/>: the way to its client, its text, its penalties
/// and its times. Made by the submitting thread, then touched by the engine's thread only, but for <see cref="AskToCancel"/>.
/// </summary>
internal sealed class ActiveRequest
{
    private int _cancelAsked;

    public required GenerationRequest Request { get; init; }
    public required Sequence Sequence { get; init; }
    public required ISequenceText Text { get; init; }
    public required TokenHistory? History { get; init; }
    public required TimeSpan SubmittedAt { get; init; }
    public Outbox Outbox { get; set; } = null!;

    public TimeSpan? StartedAt { get; set; }
    public TimeSpan? FirstTokenAt { get; set; }
    public int? StopTokenId { get; set; }
    public string? StopString { get; set; }

    /// <summary>Made in this step, not sent yet.</summary>
    public GenerationDelta? Delta { get; set; }

    public bool CancelAsked => Volatile.Read(ref _cancelAsked) == 1;

    /// <summary>True the first time.</summary>
    public bool AskToCancel() => Interlocked.Exchange(ref _cancelAsked, 1) == 0;

    public bool IsStopToken(int token)
    {
        var ids = Request.StopTokenIds;
        for (int i = 0; i < ids.Count; i++)
            if (ids[i] == token) return true;
        return false;
    }

    public GenerationFinished End(FinishReason reason, string text, string? error, TimeSpan now)
    {
        var usage = new GenerationUsage(Sequence.PromptLength, Sequence.CachedTokens, Sequence.OutputCount, Sequence.DiskTokens);
        var timings = new GenerationTimings(
            (StartedAt ?? now) - SubmittedAt, FirstTokenAt is { } first ? first - SubmittedAt : TimeSpan.Zero, now - SubmittedAt);
        return new(reason, text, usage, timings, reason == FinishReason.Stop ? StopTokenId : null, reason == FinishReason.Stop ? StopString : null, error, Sequence.Estimate);
    }
}

namespace Inference.Runtime.Engine;

/// <summary>
/// Whether an engine that has work gets on: a step, an ending, or bytes from its disk. An engine can be broken without an exception, in a call of the
/// device that does not return or by a fault of our own; then it is better not to be sent requests than to let them wait. Looks at pictures of the
/// engine, from outside, with a clock of the caller's; one thread.
/// </summary>
/// <param name="limit">Longest time without any of these while there is work; a longer one is granted where steps take long:
/// <see cref="StepsGranted"/> times the last.</param>
public sealed class ProgressWatch(TimeSpan limit)
{
    public const int StepsGranted = 20;

    private (long Steps, long Ended, long Read) _seen;
    private TimeSpan _since;
    private bool _hadWork;

    /// <param name="stats">Of the engine, now.</param>
    /// <param name="queued">Accepted requests that have not had a step (<see cref="InferenceEngine.Queued"/>).</param>
    /// <param name="now">Any clock that only goes on.</param>
    /// <returns>How long the engine has had work and done none, if that is longer than granted; else null.</returns>
    public TimeSpan? StuckFor(EngineStats stats, int queued, TimeSpan now)
    {
        long ended = 0;
        foreach (long count in stats.Finished) ended += count;
        var seen = (stats.Steps, ended, stats.Disk?.BytesRead ?? 0);
        bool work = queued > 0 || stats.Running + stats.Waiting > stats.Stalled;
        if (!work || !_hadWork || seen != _seen) (_seen, _since) = (seen, now);
        _hadWork = work;
        var granted = stats.LastStepDuration * StepsGranted;
        return now - _since > (granted > limit ? granted : limit) && !SeededBug.Is(24) ? now - _since : null;
    }
}

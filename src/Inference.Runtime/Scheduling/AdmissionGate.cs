namespace Inference.Runtime.Scheduling;

/// <summary>
/// Counts the accepted requests that have not had a step, and refuses more than the limit. Entered by the submitting threads, left by the
/// engine's thread when a request starts or ends. Also guesses, from how often places became free while others waited, when to try again.
/// </summary>
internal sealed class AdmissionGate(int queueMax)
{
    private static readonly TimeSpan RetryMin = TimeSpan.FromMilliseconds(100), RetryMax = TimeSpan.FromMinutes(1);
    private int _waiting;
    private long _interval = TimeSpan.TicksPerSecond;  // smoothed; the first guess holds until something was measured
    private long _lastLeft = -1;

    public int QueueMax { get; } = queueMax;

    public int Waiting => Volatile.Read(ref _waiting);

    public TimeSpan RetryAfter =>
        TimeSpan.FromTicks(Math.Clamp(Volatile.Read(ref _interval), RetryMin.Ticks, RetryMax.Ticks));

    public bool TryEnter()
    {
        if (Interlocked.Increment(ref _waiting) <= QueueMax) return true;
        Interlocked.Decrement(ref _waiting);
        return false;
    }

    /// <summary>A place became free, at a time in ticks that never goes back.</summary>
    public void Leave(long now)
    {
        int left = Interlocked.Decrement(ref _waiting);
        if (left < 0) throw new InvalidOperationException("More requests left the queue than entered it.");
        if (_lastLeft >= 0) Volatile.Write(ref _interval, _interval + (now - _lastLeft - _interval) / 8);
        _lastLeft = left > 0 ? now : -1;
    }

    /// <summary>An entry that came to nothing.</summary>
    public void Undo() => Interlocked.Decrement(ref _waiting);
}

namespace Inference.Simulation;

/// <summary>
/// Time that passes when told to. The wall clock may be set, forward and back, while time itself only goes on. Its timers never fire: whoever
/// steps an engine by hand needs none.
/// </summary>
internal sealed class VirtualTime : TimeProvider
{
    private static readonly DateTimeOffset Start = new(2026, 1, 1, 0, 0, 0, TimeSpan.Zero);
    private long _ticks, _wallOffset;

    public TimeSpan Elapsed => new(_ticks);

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => _ticks;

    public override DateTimeOffset GetUtcNow() => Start.AddTicks(_ticks + _wallOffset);

    public void Advance(TimeSpan by) => _ticks += by.Ticks;

    /// <summary>Sets the wall clock forward, or back.</summary>
    public void SetWall(TimeSpan by) => _wallOffset += by.Ticks;

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period) => new Never();

    private sealed class Never : ITimer
    {
        public bool Change(TimeSpan dueTime, TimeSpan period) => true;
        public void Dispose() { }
        public ValueTask DisposeAsync() => default;
    }
}

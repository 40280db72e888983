using Inference.Runtime.Scheduling;
using Xunit;

namespace Inference.Runtime.Tests.Scheduling;

public sealed class AdmissionGateTests
{
    private const long Second = TimeSpan.TicksPerSecond;

    [Fact]
    public void It_lets_in_exactly_its_limit_however_many_push()
    {
        var gate = new AdmissionGate(50);
        int entered = 0;
        Parallel.For(0, 10_000, _ =>
        {
            if (gate.TryEnter()) Interlocked.Increment(ref entered);
        });
        Assert.Equal((50, 50), (entered, gate.Waiting));
        gate.Leave(0);
        Assert.True(gate.TryEnter());
        Assert.False(gate.TryEnter());
        gate.Undo();
        Assert.Equal(49, gate.Waiting);
    }

    [Fact]
    public void It_learns_from_the_pace_at_which_places_became_free()
    {
        var gate = new AdmissionGate(100);
        for (int i = 0; i < 100; i++) gate.TryEnter();
        Assert.Equal(TimeSpan.FromSeconds(1), gate.RetryAfter);
        for (int i = 0; i < 60; i++) gate.Leave(i * 5 * Second);
        Assert.InRange(gate.RetryAfter, TimeSpan.FromSeconds(4.9), TimeSpan.FromSeconds(5));
    }

    [Fact]
    public void Time_in_which_nobody_waited_teaches_nothing()
    {
        var gate = new AdmissionGate(10);
        for (int i = 0; i < 50; i++)
        {
            gate.TryEnter();
            gate.Leave(i * 3600 * Second);
        }
        Assert.Equal(TimeSpan.FromSeconds(1), gate.RetryAfter);
    }

    [Fact]
    public void Its_advice_is_neither_nothing_nor_for_ever()
    {
        var (fast, slow) = (new AdmissionGate(200), new AdmissionGate(200));
        for (int i = 0; i < 200; i++) Assert.True(fast.TryEnter() && slow.TryEnter());
        for (int i = 0; i < 150; i++)
        {
            fast.Leave(0);
            slow.Leave(i * 3600 * Second);
        }
        Assert.Equal((TimeSpan.FromMilliseconds(100), TimeSpan.FromMinutes(1)), (fast.RetryAfter, slow.RetryAfter));
    }

    [Fact]
    public void More_leaving_than_entered_is_a_fault() => Assert.Throws<InvalidOperationException>(() => new AdmissionGate(1).Leave(0));
}

using Inference.Runtime.Scheduling;
using Xunit;

namespace Inference.Runtime.Tests.Scheduling;

public sealed class AdmissionGateTests
{
    private const long Second = TimeSpan.TicksPerSecond;

    private static readonly Dictionary<string, double> Weights = new() { ["gold"] = 2 };

    private static AdmissionGate Gate(int queue, long tokens = 1_000_000) => new(queue, tokens, Weights);

    private static bool Enter(AdmissionGate gate, string tenant = "", int tokens = 1) => gate.TryEnter(tenant, tokens) is null;

    // How many of a tenant get in one after the other.
    private static int Fill(AdmissionGate gate, string tenant, int tokens = 1)
    {
        int entered = 0;
        while (Enter(gate, tenant, tokens)) entered++;
        return entered;
    }

    [Fact]
    public void It_holds_no_more_prompt_tokens_than_its_limit_and_says_which_limit_it_is()
    {
        var gate = Gate(100, tokens: 1000);
        Assert.True(Enter(gate, tokens: 600) && Enter(gate, tokens: 400));
        Assert.Equal("1000 prompt tokens are waiting already; 1 more exceed the limit of 1000.", gate.TryEnter("", 1));
        gate.Leave("", 600, 0);
        Assert.True(Enter(gate, tokens: 600));
        Assert.Equal((2, 1000L), (gate.Waiting, gate.WaitingTokens));
    }

    [Fact]
    public void A_tenant_that_floods_leaves_places_for_the_others()
    {
        var gate = Gate(180);
        Assert.True(Enter(gate, "b"));
        Assert.Equal(160, Fill(gate, "a"));  // 160 of 8 x 20 free ones, with b's one
        Assert.Contains("of this tenant", gate.TryEnter("a", 1), StringComparison.Ordinal);
        Assert.True(Enter(gate, "c") && Enter(gate, "d"));
    }

    [Fact]
    public void What_it_says_without_letting_in_is_what_it_would_say()
    {
        var gate = Gate(2);
        Assert.Null(gate.Full("a"));
        Assert.True(Enter(gate, "a") && Enter(gate, "a"));
        Assert.Equal("2 requests are waiting already.", gate.Full("a"));
        Assert.Equal(gate.TryEnter("b", 1), gate.Full("b"));
        Assert.Equal(2, gate.Waiting);
    }

    [Fact]
    public void Tenants_that_flood_share_the_queue_by_weight()
    {
        var gate = Gate(250);
        var held = new Dictionary<string, int> { ["a"] = Fill(gate, "a"), ["gold"] = Fill(gate, "gold") };
        for (int round = 0; round < 1000; round++)
            foreach (string tenant in (string[])["a", "gold"])
            {
                if (held[tenant] > 0) gate.Leave(tenant, 1, round);
                held[tenant] += Fill(gate, tenant) - Math.Min(1, held[tenant]);
            }
        Assert.InRange(held["a"], 78, 82);  // 8 and 16 times the 10 that are left
        Assert.InRange(held["gold"], 158, 162);
    }

    [Fact]
    public void The_limit_of_tokens_is_shared_as_the_places_are()
    {
        var gate = Gate(1000, tokens: 9000);
        Assert.True(Enter(gate, "b", 10));
        Assert.Equal(80, Fill(gate, "a", 100));
        Assert.True(Enter(gate, "c", 900));  // one that has nothing there may take what is left
    }

    [Fact]
    public void It_lets_in_exactly_its_limit_however_many_push()
    {
        var gate = Gate(50);
        int entered = 0;
        Parallel.For(0, 10_000, _ =>
        {
            if (Enter(gate)) Interlocked.Increment(ref entered);
        });
        Assert.Equal((50, 50), (entered, gate.Waiting));
        gate.Leave("", 1, 0);
        Assert.True(Enter(gate));
        Assert.False(Enter(gate));
        gate.Undo("", 1);
        Assert.Equal(49, gate.Waiting);
    }

    [Fact]
    public void It_learns_from_the_pace_at_which_places_became_free()
    {
        var gate = Gate(100);
        for (int i = 0; i < 100; i++) Enter(gate);
        Assert.Equal(TimeSpan.FromSeconds(1), gate.RetryAfter);
        for (int i = 0; i < 60; i++) gate.Leave("", 1, i * 5 * Second);
        Assert.InRange(gate.RetryAfter, TimeSpan.FromSeconds(4.9), TimeSpan.FromSeconds(5));
    }

    [Fact]
    public void Time_in_which_nobody_waited_teaches_nothing()
    {
        var gate = Gate(10);
        for (int i = 0; i < 50; i++)
        {
            Enter(gate);
            gate.Leave("", 1, i * 3600 * Second);
        }
        Assert.Equal(TimeSpan.FromSeconds(1), gate.RetryAfter);
    }

    [Fact]
    public void Its_advice_is_neither_nothing_nor_for_ever()
    {
        var (fast, slow) = (Gate(200), Gate(200));
        for (int i = 0; i < 200; i++) Assert.True(Enter(fast) && Enter(slow));
        for (int i = 0; i < 150; i++)
        {
            fast.Leave("", 1, 0);
            slow.Leave("", 1, i * 3600 * Second);
        }
        Assert.Equal((TimeSpan.FromMilliseconds(100), TimeSpan.FromMinutes(1)), (fast.RetryAfter, slow.RetryAfter));
    }

    [Fact]
    public void More_leaving_than_entered_is_a_fault() => Assert.Throws<InvalidOperationException>(() => Gate(1).Leave("", 1, 0));
}

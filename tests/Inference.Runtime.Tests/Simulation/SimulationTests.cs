// The simulations of tests/Inference.Simulation, in the measure that every change can afford; docs/simulation.md says what they check.
using Inference.Runtime.Engine;
using Xunit;

namespace Inference.Runtime.Tests.Simulation;

public sealed class SimulationTests(ITestOutputHelper output)
{
    // Together more than five million steps, and 50,000 losses of power on a disk that is otherwise good, as many on one that is not.
    private const int SchedulerSeeds = 50_000, EngineSeeds = 3000, StoreSeeds = 260;

    /// <summary>They found something once.</summary>
    public static TheoryData<string, int> Replayed => [.. Simulations.Replayed.Select(r => (r.Kind.ToString(), r.Seed))];

    [Theory]
    [MemberData(nameof(Replayed))]
    public void Seeds_that_failed_once_pass(string kind, int seed) => Assert.Null(Simulations.Run(Enum.Parse<SimulationKind>(kind), seed));

    [Fact]
    public void Five_million_steps_break_no_law_and_every_law_was_put_to_the_test()
    {
        var totals = new Totals();
        Run(SimulationKind.Scheduler, SchedulerSeeds, totals);
        Run(SimulationKind.Engine, EngineSeeds, totals);
        Run(SimulationKind.Store, StoreSeeds, totals);
        output.WriteLine(Report.Of(totals));
        Assert.True(totals.AllSteps >= 5_000_000, $"{totals.AllSteps} steps");
        Assert.True(totals.Steps(SimulationKind.Store) >= 100_000, $"{totals.Steps(SimulationKind.Store)} losses of power");
        Assert.All(Laws.All, law => Assert.True(totals.Laws.Exercised(law) >= (law == Law.Deterministic ? 200 : 1000), $"{BrokenSeed.Name(law)}: {totals.Laws.Exercised(law)} times"));
        // The draw must reach what it is there for.
        Assert.All(Enum.GetValues<FinishReason>(), r => Assert.True(totals.Reached($"ended {r}") > 100, $"{r}: {totals.Reached($"ended {r}")}"));
        Assert.All(
            ["preempted", "recomputed tokens", "cached tokens", "tokens from disk", "refused", "prefix hits", "overtakings", "hopeless deadlines", "preempted for the last time", "devices broken", "damaged extents detected"],
            name => Assert.True(totals.Reached(name) > 100, $"{name}: {totals.Reached(name)}"));
    }

    private static void Run(SimulationKind kind, int seeds, Totals totals) =>
        Assert.Empty(Simulations.Run([kind], 0, seeds, null, totals));
}

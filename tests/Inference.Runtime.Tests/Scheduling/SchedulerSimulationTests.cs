using Xunit;

namespace Inference.Runtime.Tests.Scheduling;

public sealed class SchedulerSimulationTests(ITestOutputHelper output)
{
    /// <summary>A failing seed prints itself; put it here to run it alone, and leave it here when it is fixed.</summary>
    public static TheoryData<int> Replayed => [1, 2, 3];

    [Theory]
    [MemberData(nameof(Replayed))]
    public void Seeds_that_failed_once_pass(int seed) => Run(seed);

    [Fact]
    public void Thousands_of_drawn_lives_break_no_invariant()
    {
        const int Seeds = 4000;
        long steps = 0, preemptions = 0, hits = 0, overtakings = 0, hopeless = 0, kept = 0, windows = 0, waits = 0;
        Parallel.For(0, Seeds, seed =>
        {
            var (life, trace) = Run(seed);
            Interlocked.Add(ref steps, life.Steps);
            Interlocked.Add(ref preemptions, life.Preemptions);
            Interlocked.Add(ref hits, life.Hits);
            Interlocked.Add(ref overtakings, life.Overtakings);
            Interlocked.Add(ref hopeless, life.Hopeless);
            Interlocked.Add(ref kept, life.Kept);
            Interlocked.Add(ref windows, life.Windows);
            Interlocked.Add(ref waits, life.Waits);
            if (seed % 100 == 0) Assert.Equal(trace, Run(seed).Trace);
        });
        string reached = $"{steps} steps, {preemptions} preemptions, {kept} of them the last, {hits} prefix hits, {overtakings} overtakings, "
            + $"{hopeless} hopeless deadlines, {windows} steps in which two tenants waited, {waits} waits measured";
        output.WriteLine(reached);
        // The draw must reach what it is there for.
        Assert.True(hits > Seeds / 2 && preemptions > Seeds / 2 && kept > 100 && overtakings > Seeds / 4, reached);
        Assert.True(hopeless > 100 && windows > Seeds && waits > Seeds, reached);
    }

    private static (SchedulerSimulation Life, ulong Trace) Run(int seed)
    {
        try
        {
            using var simulation = new SchedulerSimulation(seed);
            ulong trace = simulation.Run();
            return (simulation, trace);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"Scheduler simulation, seed {seed}: {e.Message}", e);
        }
    }
}

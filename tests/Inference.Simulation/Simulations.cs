using System.Collections.Concurrent;
using System.Diagnostics;

namespace Inference.Simulation;

/// <summary>The kinds of simulation.</summary>
internal enum SimulationKind
{
    Scheduler,
    Engine,
    Store,
}

/// <summary>A seed that broke a law.</summary>
internal sealed record BrokenSeed(SimulationKind Kind, int Seed, Law Law, string What)
{
    public string ReplayCommand => $"dotnet run --project tests/Inference.Simulation -c Release -- replay {Seed} --kind {Kind.ToString().ToLowerInvariant()} --trace";

    public override string ToString() => $"{Kind.ToString().ToLowerInvariant()} seed {Seed}: {Name(Law)} broken: {What.ReplaceLineEndings(" ")} | {ReplayCommand}";

    public static string Name(Law law) => law == Law.OwnChecks ? "own checks" : $"I{(int)law} {law}";
}

/// <summary>What runs of many seeds came to. Any thread adds.</summary>
internal sealed class Totals
{
    private readonly long[] _seeds = new long[Enum.GetValues<SimulationKind>().Length];
    private readonly long[] _steps = new long[Enum.GetValues<SimulationKind>().Length];

    private readonly ConcurrentDictionary<string, long> _reached = new();

    public Laws Laws { get; } = new();

    public long Seeds(SimulationKind kind) => Volatile.Read(ref _seeds[(int)kind]);
    public long Steps(SimulationKind kind) => Volatile.Read(ref _steps[(int)kind]);
    public long AllSteps => _steps.Sum();

    /// <summary>How often a run came to something.</summary>
    public long Reached(string name) => _reached.GetValueOrDefault(name);

    public IEnumerable<(string Name, long Count)> AllReached => _reached.OrderBy(r => r.Key, StringComparer.Ordinal).Select(r => (r.Key, r.Value));

    public void Add(SimulationKind kind, ISimulation simulation)
    {
        foreach (var (name, count) in simulation.Reached) _reached.AddOrUpdate(name, count, (_, before) => before + count);
        Interlocked.Increment(ref _seeds[(int)kind]);
        Interlocked.Add(ref _steps[(int)kind], simulation.Steps);
        Laws.Add(simulation.Laws);
    }
}

/// <summary>Runs seeds: one, a number of them, or as many as a time allows.</summary>
internal static class Simulations
{
    /// <summary>Seeds that found something once; each goes on being run.</summary>
    public static readonly IReadOnlyList<(SimulationKind Kind, int Seed)> Replayed =
    [
        .. new[] { 1, 2, 3, 2870, 6217, 7312, 15979, 18689 }.Select(seed => (SimulationKind.Scheduler, seed)),
        .. new[] { 1, 75, 651, 1088, 2109 }.Select(seed => (SimulationKind.Engine, seed)),
    ];

    private const int RepeatedEvery = 100;

    public static ISimulation New(SimulationKind kind, int seed, int traceLines = 0) => kind switch
    {
        SimulationKind.Scheduler => new SchedulerSimulation(seed, traceLines),
        SimulationKind.Engine => new EngineSimulation(seed, traceLines),
        _ => new StoreSimulation(seed, traceLines),
    };

    /// <summary>Runs a seed, each hundredth twice. Null, and what it counted is added, if no law was broken.</summary>
    /// <param name="look">Shown each simulation that ended well.</param>
    public static BrokenSeed? Run(SimulationKind kind, int seed, Totals? totals = null, Action<ISimulation>? look = null)
    {
        try
        {
            using var simulation = New(kind, seed);
            Go(simulation);
            if (seed % RepeatedEvery == 0)
            {
                using var again = New(kind, seed);
                Go(again);
                simulation.Laws.Check(Law.Deterministic, again.Trace.Hash == simulation.Trace.Hash, $"the second run went another way");
            }
            totals?.Add(kind, simulation);
            look?.Invoke(simulation);
            return null;
        }
        catch (LawBrokenException e)
        {
            return new(kind, seed, e.Law, e.Message);
        }
    }

    /// <summary>Runs a simulation; whatever the product throws is a broken law.</summary>
    public static void Go(ISimulation simulation)
    {
        try
        {
            simulation.Run();
        }
        catch (Exception e) when (e is not LawBrokenException)
        {
            throw new LawBrokenException(Law.OwnChecks, $"{e.GetType().Name}: {e.Message} {e.StackTrace?.Split('\n').FirstOrDefault()?.Trim()}", e);
        }
    }

    /// <summary>Runs seeds of some kinds on all processors until there are no more, the time is over, or some have broken a law; those.</summary>
    /// <param name="seeds">Of each kind; null = as many as the time allows.</param>
    /// <param name="threads">0 = as many as there are processors.</param>
    /// <param name="brokenMax">So many are enough.</param>
    public static IReadOnlyCollection<BrokenSeed> Run(
        IReadOnlyList<SimulationKind> kinds, int from, int? seeds, TimeSpan? limit, Totals totals, int threads = 0, int brokenMax = 1)
    {
        var broken = new ConcurrentQueue<BrokenSeed>();
        long next = 0, start = Stopwatch.GetTimestamp();
        var rounds = Rounds(kinds);
        var workers = new Thread[threads > 0 ? threads : Environment.ProcessorCount];
        for (int i = 0; i < workers.Length; i++)
        {
            workers[i] = new(Work);
            workers[i].Start();
        }
        foreach (var worker in workers) worker.Join();
        return broken;

        void Work()
        {
            while (broken.Count < brokenMax && (limit is null || Stopwatch.GetElapsedTime(start) < limit))
            {
                long at = Interlocked.Increment(ref next) - 1;
                var (kind, index, ofKind) = rounds[(int)(at % rounds.Count)];
                long seed = at / rounds.Count * ofKind + index;
                if (seeds is { } most && seed >= most)
                {
                    if (at / rounds.Count > most) return;
                    continue;
                }
                if (Run(kind, checked((int)(from + seed)), totals) is { } found) broken.Enqueue(found);
            }
        }
    }

    // What a round runs: where the kinds are mixed, about the same time of each but the scheduler, which has most to draw.
    private static List<(SimulationKind Kind, int Index, int OfKind)> Rounds(IReadOnlyList<SimulationKind> kinds)
    {
        var round = new List<(SimulationKind, int, int)>();
        foreach (var kind in kinds)
        {
            int count = kinds.Count == 1 ? 1 : kind switch { SimulationKind.Scheduler => 40, SimulationKind.Engine => 8, _ => 1 };
            for (int i = 0; i < count; i++) round.Add((kind, i, count));
        }
        return round;
    }
}

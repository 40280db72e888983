using System.Diagnostics;
using System.Globalization;
#if SEEDED_BUGS
using Inference.Runtime;
#endif

namespace Inference.Simulation;

/// <summary>One bug of the catalogue.</summary>
/// <param name="Number">In the catalogue, and at its place in the code.</param>
/// <param name="What">What is wrong where it is planted.</param>
/// <param name="Kinds">The simulations that are to find it, the first before the others.</param>
/// <param name="Check">Or a check of its own: null if all is well.</param>
internal sealed record SeededBugEntry(int Number, string What, SimulationKind[] Kinds, Func<string?>? Check = null);

/// <summary>The catalogue of docs/simulation.md, and the hunt for it.</summary>
internal static class SeededBugs
{
    private const SimulationKind S = SimulationKind.Scheduler, E = SimulationKind.Engine, D = SimulationKind.Store;

    public static readonly IReadOnlyList<SeededBugEntry> Catalogue =
    [
        new(1, "a request cancelled while its prompt is computed keeps its pages", [S, E]),
        new(2, "a cancellation that comes after the end ends it again", [S, E]),
        new(3, "a read from disk goes on for a request that is gone", [E]),
        new(4, "a request larger than the cache is accepted", [E]),
        new(5, "a read from disk that has ended keeps its blocks for a request that waits", [E]),
        new(6, "pages that kept prefixes hold count as free when a request is admitted", [S, E]),
        new(7, "block names without the tenant", [E, S]),
        new(8, "block names cut to 16 bits", [E]),
        new(9, "an unfinished block is entered among the kept prefixes", [E, S]),
        new(10, "a pinned prefix is given up before others", [E]),
        new(11, "an extent is published before its bytes are durable", [D]),
        new(12, "what fails its checksum is used", [D, E]),
        new(13, "a token index is repeated after a preemption", [E]),
        new(14, "the beginning of a stop string is sent before the rest comes", [], StopStringCheck.Run),
        new(15, "a cancellation is lost before the request starts", [E]),
        new(16, "a place in the queue is not given back when a request ends by its deadline", [E]),
        new(17, "a priority goes ahead of everything, however long it has waited", [S]),
        new(18, "deadlines follow the wall clock, which may go back", [E]),
        new(19, "the checksum of an extent covers its numbers only, not its names and tokens", [D]),
        new(20, "the size of a request overflows 32 bits", [E]),
        new(21, "the open page of a prefix is not copied for who resumes from it", [E]),
        new(22, "an exception in one request's text leaves the step", [E]),
        new(23, "a broken engine says that it stopped: the process ends with code 0", [E]),
        new(24, "readiness does not look whether the engine gets on", [E]),
    ];

    /// <summary>Plants each bug, one after the other, until something finds it. 0 if all were found.</summary>
    public static int Hunt(int? only, TimeSpan limit, int threads)
    {
#if SEEDED_BUGS
        var wanted = Catalogue.Where(b => only is null || b.Number == only).ToList();
        var lines = new string?[wanted.Count];
        int next = 0, found = 0;
        long began = Stopwatch.GetTimestamp();
        var workers = new Thread[threads > 0 ? threads : Environment.ProcessorCount];
        for (int i = 0; i < workers.Length; i++)
        {
            workers[i] = new(() =>
            {
                for (int at; (at = Interlocked.Increment(ref next) - 1) < wanted.Count;)
                {
                    var (line, caught) = HuntOne(wanted[at], limit);
                    lines[at] = line;
                    if (caught) Interlocked.Increment(ref found);
                }
            });
            workers[i].Start();
        }
        foreach (var worker in workers) worker.Join();
        Console.WriteLine("| bug | what is planted | found by | seed | steps | ms |");
        Console.WriteLine("|---:|---|---|---:|---:|---:|");
        foreach (string? line in lines) Console.WriteLine(line);
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"\n{found}/{wanted.Count} seeded bugs found in {Stopwatch.GetElapsedTime(began).TotalSeconds:N1} s"));
        return found == wanted.Count ? 0 : 1;
#else
        Console.Error.WriteLine("This build has no bugs planted: dotnet run --project tests/Inference.Simulation -c Release -p:SeededBugs=true -- bugs");
        return 2;
#endif
    }

#if SEEDED_BUGS
    private static (string Line, bool Caught) HuntOne(SeededBugEntry bug, TimeSpan limit)
    {
        long start = Stopwatch.GetTimestamp(), steps = 0;
        if (bug.Check is { } check)
        {
            SeededBug.Number = 0;
            if (check() is { } falseAlarm) return (Line(bug, $"NOT FOUND: its check says without the bug: {falseAlarm}", "", 0, start), false);
            SeededBug.Number = bug.Number;
            string? found = Found(check);
            SeededBug.Number = 0;
            return (Line(bug, found is null ? "NOT FOUND" : $"check: {found}", "", 0, start), found is not null);
        }
        SeededBug.Number = bug.Number;
        try
        {
            for (int seed = 0; Stopwatch.GetElapsedTime(start) < limit; seed++)
                foreach (var kind in bug.Kinds)
                    if (Simulations.Run(kind, seed, look: s => steps += s.Steps) is { } broken)
                        return (Line(bug, $"{BrokenSeed.Name(broken.Law)}: {Short(broken.What)}", $"{kind.ToString().ToLowerInvariant()} {seed}", steps, start), true);
            return (Line(bug, "NOT FOUND", "", steps, start), false);
        }
        finally
        {
            SeededBug.Number = 0;
        }
    }

    private static string? Found(Func<string?> check)
    {
        try
        {
            return check();
        }
        catch (Exception e)
        {
            return $"{e.GetType().Name}: {e.Message}";
        }
    }

    private static string Short(string what)
    {
        what = what.ReplaceLineEndings(" ").Replace('|', '/');
        return what.Length <= 110 ? what : what[..107] + "...";
    }

    private static string Line(SeededBugEntry bug, string by, string seed, long steps, long start) => string.Create(
        CultureInfo.InvariantCulture, $"| {bug.Number} | {bug.What} | {by} | {seed} | {steps:N0} | {Stopwatch.GetElapsedTime(start).TotalMilliseconds:N0} |");
#endif
}

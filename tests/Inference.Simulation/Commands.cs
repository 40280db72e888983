using System.Diagnostics;
using System.Globalization;
using System.Text;

namespace Inference.Simulation;

/// <summary>The verbs of the program; each returns the exit code.</summary>
internal static class Commands
{
    public static int Help()
    {
        Console.Error.WriteLine("""
            run [--seeds N | --seconds S] [--from SEED] [--kind scheduler|engine|store] [--threads N] [--failures N]
            replay SEED [--kind scheduler|engine|store] [--trace [LINES]]
            bugs [--only N] [--seconds S]
            """);
        return 2;
    }

    /// <summary>Runs seeds, first those that found something once; ends with the first that breaks a law.</summary>
    public static int Run(Arguments arguments)
    {
        var kinds = arguments.Kinds(Enum.GetValues<SimulationKind>());
        int? seconds = arguments.Number("--seconds", null), seeds = arguments.Number("--seeds", seconds is null ? 1000 : null);
        var totals = new Totals();
        long start = Stopwatch.GetTimestamp();
        var cpu = Process.GetCurrentProcess().TotalProcessorTime;
        var broken = Simulations.Replayed.Where(r => kinds.Contains(r.Kind)).Select(r => Simulations.Run(r.Kind, r.Seed, totals)).OfType<BrokenSeed>().ToList();
        broken.AddRange(Simulations.Run(
            kinds, arguments.Number("--from", 0)!.Value, seeds, seconds is { } s ? TimeSpan.FromSeconds(s) : null, totals,
            arguments.Number("--threads", 0)!.Value, arguments.Number("--failures", 1)!.Value));
        var took = Stopwatch.GetElapsedTime(start);
        Console.WriteLine(Report.Of(totals));
        Console.WriteLine(Report.Speed(totals, took, Process.GetCurrentProcess().TotalProcessorTime - cpu));
        foreach (var seed in broken) Console.WriteLine(seed);
        return broken.Count == 0 ? 0 : 1;
    }

    /// <summary>Runs a seed of one kind, or of each.</summary>
    public static int Replay(int seed, Arguments arguments)
    {
        int lines = arguments.Number("--trace", 0)!.Value, exitCode = 0;
        foreach (var kind in arguments.Kinds(Enum.GetValues<SimulationKind>()))
        {
            using var simulation = Simulations.New(kind, seed, lines);
            LawBrokenException? broken = null;
            try
            {
                Simulations.Go(simulation);
            }
            catch (LawBrokenException e)
            {
                broken = e;
            }
            foreach (string line in simulation.Trace.Lines) Console.WriteLine(line);
            string name = kind.ToString().ToLowerInvariant();
            Console.WriteLine(broken is null
                ? string.Create(CultureInfo.InvariantCulture, $"{name} seed {seed}: {simulation.Steps} steps, trace {simulation.Trace.Hash:x16}")
                : $"{new BrokenSeed(kind, seed, broken.Law, broken.Message)}");
            if (broken is null) continue;
            if (broken.InnerException is { } cause) Console.WriteLine(cause);
            exitCode = 1;
        }
        return exitCode;
    }

    public static int Bugs(Arguments arguments) =>
        SeededBugs.Hunt(arguments.Number("--only", null), TimeSpan.FromSeconds(arguments.Number("--seconds", 60)!.Value), arguments.Number("--threads", 0)!.Value);
}

/// <summary>What a run came to, as tables that go into Markdown as they are.</summary>
internal static class Report
{
    public static string Of(Totals totals)
    {
        var text = new StringBuilder();
        text.AppendLine("| kind | seeds | checked steps |").AppendLine("|---|---:|---:|");
        foreach (var kind in Enum.GetValues<SimulationKind>())
            text.AppendLine(CultureInfo.InvariantCulture, $"| {kind.ToString().ToLowerInvariant()} | {totals.Seeds(kind):N0} | {totals.Steps(kind):N0} |");
        text.AppendLine().AppendLine("| invariant | checked | premise true |").AppendLine("|---|---:|---:|");
        foreach (var law in Laws.All)
            text.AppendLine(CultureInfo.InvariantCulture, $"| {BrokenSeed.Name(law)} | {totals.Laws.Checked(law):N0} | {totals.Laws.Exercised(law):N0} |");
        text.AppendLine().AppendLine("| reached | times |").AppendLine("|---|---:|");
        foreach (var (name, count) in totals.AllReached) text.AppendLine(CultureInfo.InvariantCulture, $"| {name} | {count:N0} |");
        return text.ToString();
    }

    public static string Speed(Totals totals, TimeSpan took, TimeSpan cpu) => string.Create(CultureInfo.InvariantCulture,
        $"{totals.AllSteps:N0} checked steps in {took.TotalSeconds:N1} s ({cpu.TotalSeconds:N1} s of processor time): {totals.AllSteps / took.TotalMinutes / 1e6:N2} million per minute, {totals.AllSteps / cpu.TotalSeconds:N0} per second of a processor");
}

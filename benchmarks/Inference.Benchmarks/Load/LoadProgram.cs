// `load`: whether the scheduler can be trusted, measured from outside: the real server process with the model that ships with it, over real gRPC on
// loopback (one part has the server in this process, to see when pages become free). Tenants' shares and what a flood does to its
// neighbours; overload; the time from a cancellation to free pages; the time from a deadline to its status. The generator runs on the same cores
// as the server and takes its part of them. Prints a row per goal with the figure; the exit code is 1 if one was missed.
using System.Globalization;
using System.Runtime.InteropServices;

namespace Inference.Benchmarks.Load;

internal static class LoadProgram
{
    /// <summary>Arguments: [--seconds n, of each measurement of a rate] [--trials n, of cancellation; deadlines have twice as many] [--only fairness|long|overload|cancel|deadline] [--threads n, of the overloaded engine: by default one less than there are cores, and all] [--out file] [--note text].</summary>
    public static async Task<int> RunAsync(string[] args)
    {
        double seconds = double.Parse(Option("--seconds") ?? "15", CultureInfo.InvariantCulture);
        int trials = int.Parse(Option("--trials") ?? "1000", CultureInfo.InvariantCulture);
        string only = Option("--only") ?? "";
        int[] threads = Option("--threads") is { } one ? [int.Parse(one, CultureInfo.InvariantCulture)] : [.. new[] { Environment.ProcessorCount - 1, Environment.ProcessorCount }.Where(t => t > 0)];
        var report = new LoadReport();
        if (Wants("fairness")) await FairnessLoad.RunAsync(report, seconds);
        if (Wants("long")) await LongPromptLoad.RunAsync(report, seconds);
        if (Wants("overload"))
            foreach (int count in threads) await OverloadLoad.RunAsync(report, seconds, count);
        if (Wants("cancel")) await CancellationLoad.RunAsync(report, trials);
        if (Wants("deadline")) await DeadlineLoad.RunAsync(report, 2 * trials);
        string text = Heading(seconds, trials, Option("--note")) + report;
        Console.WriteLine("\n" + text);
        if (Option("--out") is { } file) await File.WriteAllTextAsync(file, text);
        return report.AllMet ? 0 : 1;

        string? Option(string name) => Array.IndexOf(args, name) is >= 0 and var i && i + 1 < args.Length ? args[i + 1] : null;
        bool Wants(string part) => only.Length == 0 || only == part;
    }

    private static string Heading(double seconds, int trials, string? note) =>
        $"# Load\n\n{DateTime.UtcNow:yyyy-MM-dd}, {Environment.ProcessorCount} logical cores, {RuntimeInformation.OSDescription}, {RuntimeInformation.FrameworkDescription}, "
        + $"load average {File.ReadAllText("/proc/loadavg").Split(' ')[0]} at the end.\n\n"
        + $"`load --seconds {seconds.ToString(CultureInfo.InvariantCulture)} --trials {trials}`: Pebble on the Cpu backend, default options but for what a row says, no kept prefixes; server and load "
        + $"generator share the cores.{(note is null ? "" : " " + note)}\n\n";
}

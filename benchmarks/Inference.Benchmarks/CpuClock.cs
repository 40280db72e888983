using System.Diagnostics;
using System.Runtime.InteropServices;

namespace Inference.Benchmarks;

/// <summary>
/// Processor time of this process. On a machine that others use as well, wall-clock time measures them too; the time that our own threads
/// were running does not (contention for memory it still does). All threads of a measured loop are busy to its end, so work divided by
/// processor time per thread is the speed on a quiet machine, or a little below it: waiting at the end of a loop counts as work.
/// </summary>
internal static partial class CpuClock
{
    private const int ProcessClock = 2; // CLOCK_PROCESS_CPUTIME_ID

    [StructLayout(LayoutKind.Sequential)]
    private struct Timespec
    {
        public long Seconds, Nanoseconds;
    }

    [LibraryImport("libc")]
    private static partial int clock_gettime(int clock, out Timespec time);

    /// <summary>Seconds of processor time, all threads together.</summary>
    public static double Seconds()
    {
        if (OperatingSystem.IsLinux() && clock_gettime(ProcessClock, out var t) == 0) return t.Seconds + t.Nanoseconds * 1e-9;
        using var process = Process.GetCurrentProcess();
        return process.TotalProcessorTime.TotalSeconds;
    }
}

/// <summary>One measurement: seconds on the wall, and seconds per thread of processor time.</summary>
internal readonly record struct Sample(double Wall, double PerThread)
{
    public static Sample Of(int threads, Action action)
    {
        var cpu = CpuClock.Seconds();
        var wall = Stopwatch.GetTimestamp();
        action();
        return new Sample(Stopwatch.GetElapsedTime(wall).TotalSeconds, (CpuClock.Seconds() - cpu) / threads);
    }
}

/// <summary>Samples of one thing, taken in turn with samples of others.</summary>
internal sealed class Series
{
    private readonly List<Sample> _samples = [];

    public void Add(Sample sample) => _samples.Add(sample);

    public double Best => _samples.Min(s => s.PerThread);
    public double Median => MedianOf(_samples.Select(s => s.PerThread));
    public double MedianWall => MedianOf(_samples.Select(s => s.Wall));

    /// <summary>Median over the rounds of how many times longer than this the other took.</summary>
    public double TimesFasterThan(Series other, Func<Sample, double> time) =>
        MedianOf(_samples.Zip(other._samples, (mine, theirs) => time(theirs) / time(mine)));

    private static double MedianOf(IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return sorted.Length % 2 == 1 ? sorted[sorted.Length / 2] : (sorted[sorted.Length / 2 - 1] + sorted[sorted.Length / 2]) / 2;
    }
}

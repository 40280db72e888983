using System.Diagnostics;
using System.Runtime.InteropServices;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Time that this thread spent on a processor: other tests and a busy machine do not count.</summary>
internal static partial class ThreadClock
{
    /// <summary>Seconds of processor time that an action takes; of wall time where the system does not tell.</summary>
    public static double Measure(Action action)
    {
        var start = Now();
        action();
        return Now() - start;
    }

    /// <summary>The best of several runs: only disturbances make a run slower, nothing makes it faster.</summary>
    public static double MeasureBest(int runs, Action action) => Enumerable.Range(0, runs).Min(_ => Measure(action));

    private static double Now()
    {
        if (!OperatingSystem.IsLinux())
            return Stopwatch.GetTimestamp() / (double)Stopwatch.Frequency;
        const int threadCpuTime = 3;
        Assert.Equal(0, ClockGetTime(threadCpuTime, out var time));
        return time.Seconds + (time.Nanoseconds * 1e-9);
    }

    [LibraryImport("libc", EntryPoint = "clock_gettime")]
    private static partial int ClockGetTime(int clock, out TimeSpec time);

    private struct TimeSpec
    {
        public long Seconds;
        public long Nanoseconds;
    }
}

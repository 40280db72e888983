using System.Diagnostics;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

/// <summary>Tells linear work from quadratic work by two sizes; robust against a busy machine.</summary>
internal static class LinearTime
{
    private const int Factor = 8;

    // Garbage collection and neighbours make short times jump; quadratic work on the large size takes many seconds.
    private const double NeverJudgedMs = 400;

    /// <summary>
    /// Compares the fastest runs at a size and at eight times that size. Linear work takes eight times as long,
    /// quadratic work 64 times; the line is drawn at 40, and a time below <see cref="NeverJudgedMs"/> passes.
    /// </summary>
    /// <param name="prepare">Builds the input of a size and returns the work to time.</param>
    public static void Check(int size, Func<int, Action> prepare)
    {
        double largeMs = Fastest(prepare(size * Factor), 3);
        if (largeMs < NeverJudgedMs)
            return;
        double smallMs = Fastest(prepare(size), 3);
        Assert.True(
            largeMs < 5 * Factor * smallMs,
            $"{smallMs:F2} ms for {size} characters but {largeMs:F2} ms for {Factor} times as many");
    }

    private static double Fastest(Action work, int runsMax)
    {
        double fastest = double.PositiveInfinity;
        for (int run = 0; run < runsMax && (run == 0 || fastest >= NeverJudgedMs); run++)
        {
            long start = Stopwatch.GetTimestamp();
            work();
            fastest = Math.Min(fastest, Stopwatch.GetElapsedTime(start).TotalMilliseconds);
        }
        return fastest;
    }
}

using System.Diagnostics;

namespace Inference.Server.Commands;

/// <summary>
/// How far a long write is: bytes, rate and time left, one line on standard error, rewritten in place; silent when that is no terminal. Clears the
/// line when disposed.
/// </summary>
internal sealed class WriteProgressLine(long total) : IProgress<long>, IDisposable
{
    private static readonly TimeSpan FirstAfter = TimeSpan.FromSeconds(0.7), Every = TimeSpan.FromSeconds(0.2);

    private readonly bool _visible = !Console.IsErrorRedirected;
    private readonly long _start = Stopwatch.GetTimestamp();
    private TimeSpan _next = FirstAfter;

    public void Report(long value)
    {
        var elapsed = Stopwatch.GetElapsedTime(_start);
        if (!_visible || elapsed < _next) return;
        _next = elapsed + Every;
        Console.Error.Write($"\r{Text(value, total, elapsed)}\u001b[K");
    }

    /// <summary>E.g. 1.20 GiB of 9.00 GiB, 600 MiB/s, 13.3 s left.</summary>
    public static string Text(long done, long total, TimeSpan elapsed)
    {
        double rate = done / Math.Max(elapsed.TotalSeconds, 1e-9);
        return $"{Units.Bytes(done)} of {Units.Bytes(total)}, {Units.Bytes((long)rate)}/s, {Units.Time(TimeSpan.FromSeconds((total - done) / Math.Max(rate, 1)))} left";
    }

    public void Dispose()
    {
        if (_visible && _next > FirstAfter) Console.Error.Write("\r\u001b[K");
    }
}

using System.Diagnostics;

namespace Inference.Server.Commands;

/// <summary>
/// How far a model is with reading a prompt: tokens, speed and time left, one line on standard error, rewritten in place; silent when that is no
/// terminal or the reading takes no longer than a blink. Looks at the engine's count from time to time; nobody has to report. Disposing it, which may
/// happen twice, clears the line, and nothing is written after that.
/// </summary>
internal sealed class PrefillProgressLine : IDisposable
{
    private static readonly TimeSpan FirstAfter = TimeSpan.FromSeconds(0.7), Every = TimeSpan.FromSeconds(0.2);

    private readonly int _total;
    private readonly Func<long> _count;
    private readonly long _countBefore, _start = Stopwatch.GetTimestamp();
    private readonly Timer? _timer;
    private readonly Lock _lock = new();
    private bool _shown, _over;
    private int _cached;

    /// <param name="total">Tokens of the prompt.</param>
    /// <param name="count">Prompt tokens that the engine has processed since it began.</param>
    public PrefillProgressLine(int total, Func<long> count)
    {
        (_total, _count, _countBefore) = (total, count, count());
        if (!Console.IsErrorRedirected) _timer = new Timer(_ => Show(), null, FirstAfter, Every);
    }

    /// <summary>The reading goes on after so many tokens that are in the cache.</summary>
    public void Begin(int cached) => Volatile.Write(ref _cached, cached);

    /// <summary>E.g. Reading 8,192 of 20,011 tokens, 2,048 tokens/s, 5.77 s left.</summary>
    /// <param name="cached">Part of done that was in the cache and took no time.</param>
    public static string Text(long done, long total, TimeSpan elapsed, long cached = 0)
    {
        string text = $"Reading {Units.Whole(done)} of {Units.Whole(total)} tokens";
        if (done <= cached) return text;
        double rate = (done - cached) / Math.Max(elapsed.TotalSeconds, 1e-9);
        return $"{text}, {Units.Digits(rate)} tokens/s, {Units.Time(TimeSpan.FromSeconds((total - done) / rate))} left";
    }

    public void Dispose()
    {
        _timer?.Dispose();
        lock (_lock)
        {
            if (_shown && !_over) Console.Error.Write("\r\u001b[K");
            _over = true;
        }
    }

    private void Show()
    {
        lock (_lock)
        {
            if (_over) return;
            _shown = true;
            int cached = Volatile.Read(ref _cached);
            long done = Math.Min(cached + _count() - _countBefore, _total);
            Console.Error.Write($"\r{Text(done, _total, Stopwatch.GetElapsedTime(_start), cached)}\u001b[K");
        }
    }
}

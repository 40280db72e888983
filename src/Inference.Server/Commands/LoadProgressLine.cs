using System.Diagnostics;
using Inference.Runtime.Models;

namespace Inference.Server.Commands;

/// <summary>
/// Tells a user who waits how far loading is: one line on standard error, rewritten in place, only when that is a terminal and loading
/// takes longer than a blink. Clears the line when disposed.
/// </summary>
internal sealed class LoadProgressLine : IProgress<LoadProgress>, IDisposable
{
    private static readonly TimeSpan FirstAfter = TimeSpan.FromSeconds(0.7), Every = TimeSpan.FromSeconds(0.1);

    private readonly bool _visible = !Console.IsErrorRedirected;
    private readonly long _start = Stopwatch.GetTimestamp();
    private TimeSpan _next = FirstAfter;

    public void Report(LoadProgress value)
    {
        var elapsed = Stopwatch.GetElapsedTime(_start);
        if (!_visible || elapsed < _next) return;
        _next = elapsed + Every;
        double part = value.BytesTotal == 0 ? 1 : (double)value.BytesDone / value.BytesTotal;
        Console.Error.Write($"\rLoading {Units.Bytes(value.BytesDone)} of {Units.Bytes(value.BytesTotal)} ({part:P0})\u001b[K");
    }

    public void Dispose()
    {
        if (_visible && _next > FirstAfter) Console.Error.Write("\r\u001b[K");
    }
}

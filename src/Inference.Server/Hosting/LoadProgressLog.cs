using System.Diagnostics;
using Inference.Runtime.Models;

namespace Inference.Server.Hosting;

/// <summary>Tells the log how far loading is, every few seconds, and ends it (by an exception on the loading thread) when the process is to stop.</summary>
internal sealed class LoadProgressLog(ILogger logger, CancellationToken cancel) : IProgress<LoadProgress>
{
    private static readonly TimeSpan Every = TimeSpan.FromSeconds(5);

    private long _last = Stopwatch.GetTimestamp();

    public void Report(LoadProgress value)
    {
        cancel.ThrowIfCancellationRequested();
        if (Stopwatch.GetElapsedTime(_last) < Every) return;
        _last = Stopwatch.GetTimestamp();
        ServerLog.LoadProgress(logger, value.BytesDone, value.BytesTotal);
    }
}

using Microsoft.Extensions.Logging;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>All log messages of KV state on disk. Never a token, never a name of a prefix.</summary>
internal static partial class KvDiskLog
{
    [LoggerMessage(1, LogLevel.Information, "KV state on disk: {Extents} extents, {Bytes} bytes, {Saved} saved")]
    public static partial void Opened(ILogger log, int extents, long bytes, int saved);

    [LoggerMessage(6, LogLevel.Warning, "KV state on disk: {Count} extents dropped when it was opened: {Why}")]
    public static partial void DroppedAtOpen(ILogger log, long count, KvDrop why);

    [LoggerMessage(2, LogLevel.Warning, "KV extent {Id:x16} dropped: {Why}")]
    public static partial void Dropped(ILogger log, ulong id, KvDrop why);

    [LoggerMessage(3, LogLevel.Warning, "KV state could not be written: {Reason}")]
    public static partial void WriteFailed(ILogger log, string reason);

    [LoggerMessage(4, LogLevel.Warning, "KV state is not written for {Seconds} seconds after {Failures} failures in a row")]
    public static partial void Paused(ILogger log, double seconds, int failures);

    [LoggerMessage(7, LogLevel.Warning, "Saved sessions left alone: {Damaged} damaged, {Others} of other models")]
    public static partial void SessionsLeft(ILogger log, int damaged, int others);

    [LoggerMessage(5, LogLevel.Warning, "KV extent {Id:x16} could not be read: {Reason}")]
    public static partial void ReadFailed(ILogger log, ulong id, string reason);
}

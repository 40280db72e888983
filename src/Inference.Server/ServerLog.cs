using Inference.Server.Hosting;

namespace Inference.Server;

/// <summary>
/// Every message the server logs, in one place. No prompt, no answer and no file content ever appears in one.
/// </summary>
internal static partial class ServerLog
{
    [LoggerMessage(1, LogLevel.Information, "{Settings}")]
    public static partial void Resolved(ILogger logger, string settings);

    [LoggerMessage(2, LogLevel.Warning, "The environment variable {Name} names no setting and is ignored.")]
    public static partial void UnknownVariable(ILogger logger, string name);

    [LoggerMessage(3, LogLevel.Information, "Listening: {Kind} on {Endpoint}")]
    public static partial void Listening(ILogger logger, string kind, string endpoint);

    [LoggerMessage(4, LogLevel.Warning, "{Endpoint} has no TLS and can be reached from other machines, as configured.")]
    public static partial void RemotePlaintext(ILogger logger, string endpoint);

    [LoggerMessage(5, LogLevel.Information, "Loading the model in {Folder}.")]
    public static partial void Loading(ILogger logger, string folder);

    [LoggerMessage(21, LogLevel.Warning, "The weights are random, made in memory from the config.json in {Folder} (--dummy): answers mean nothing.")]
    public static partial void DummyWeights(ILogger logger, string folder);

    [LoggerMessage(6, LogLevel.Information, "The model {Name} is ready after {Milliseconds} ms; cached rows are stored as {KvFormat}.")]
    public static partial void Ready(ILogger logger, string name, long milliseconds, string kvFormat);

    [LoggerMessage(7, LogLevel.Critical, "The model could not be loaded, by a fault of the program.")]
    public static partial void LoadFailed(ILogger logger, Exception exception);

    [LoggerMessage(18, LogLevel.Critical, "The model could not be loaded: {Reason}")]
    public static partial void LoadRefused(ILogger logger, string reason);

    [LoggerMessage(19, LogLevel.Information, "Loaded {BytesDone} of {BytesTotal} bytes.")]
    public static partial void LoadProgress(ILogger logger, long bytesDone, long bytesTotal);

    [LoggerMessage(8, LogLevel.Information, "State: {State}")]
    public static partial void State(ILogger logger, ServingState state);

    [LoggerMessage(9, LogLevel.Critical, "The engine broke; every request has been answered. The process ends.")]
    public static partial void EngineFailed(ILogger logger, Exception? exception);

    [LoggerMessage(10, LogLevel.Information, "Signal {Signal}: new requests are refused; accepted ones have {Seconds} s to end.")]
    public static partial void DrainStarted(ILogger logger, string signal, double seconds);

    [LoggerMessage(11, LogLevel.Information, "Drained after {Milliseconds} ms.")]
    public static partial void Drained(ILogger logger, long milliseconds);

    [LoggerMessage(12, LogLevel.Warning, "Signal {Signal} while draining: the process ends now.")]
    public static partial void SecondSignal(ILogger logger, string signal);

    [LoggerMessage(13, LogLevel.Error, "{Method} failed unexpectedly.")]
    public static partial void CallFailed(ILogger logger, string method, Exception exception);

    [LoggerMessage(14, LogLevel.Information,
        "Request {RequestId} ended: {Reason}, {PromptTokens} prompt tokens ({CachedTokens} cached), {OutputTokens} output tokens, {Milliseconds} ms")]
    public static partial void RequestEnded(
        ILogger logger, string requestId, string reason, int promptTokens, int cachedTokens, int outputTokens, long milliseconds);

    [LoggerMessage(15, LogLevel.Warning, "Request {RequestId}: its client took no bytes for {Seconds} s; the stream is reset.")]
    public static partial void WriteStalled(ILogger logger, string requestId, double seconds);

    [LoggerMessage(16, LogLevel.Error, "Request {RequestId} failed: {Error}")]
    public static partial void GenerationFailed(ILogger logger, string requestId, string? error);

    [LoggerMessage(17, LogLevel.Debug, "{Method} ended with {Status} after {Milliseconds} ms")]
    public static partial void CallEnded(ILogger logger, string method, string status, double milliseconds);

    [LoggerMessage(30, LogLevel.Critical, "The engine does not get on: no step and no ending for {Seconds} s, with {Running} requests running and {Waiting} waiting. The server says that it is not ready.")]
    public static partial void EngineStuck(ILogger logger, double seconds, int running, int waiting);

    [LoggerMessage(31, LogLevel.Warning, "The engine gets on again; the server is ready.")]
    public static partial void EngineGetsOn(ILogger logger);
}

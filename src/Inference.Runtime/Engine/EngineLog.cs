using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>All log messages of the engine. Never a prompt, never an answer.</summary>
internal static partial class EngineLog
{
    [LoggerMessage(1, LogLevel.Information,
        "Engine: {Family} on {Backend}, KV cache {Tokens} positions ({Bytes} bytes), context {Context}, sequences {Sequences}, step tokens {StepTokens}, queue {Queue}")]
    public static partial void Resolved(
        ILogger log, string family, string backend, int tokens, long bytes, int context, int sequences, int stepTokens, int queue);

    [LoggerMessage(2, LogLevel.Information, "Engine {State}")]
    public static partial void StateChanged(ILogger log, EngineState state);

    [LoggerMessage(3, LogLevel.Critical, "Engine failed; {Requests} requests were answered with an error")]
    public static partial void Failed(ILogger log, Exception failure, int requests);

    [LoggerMessage(4, LogLevel.Error, "Request {RequestId} failed at output token {Index}")]
    public static partial void SequenceFailed(ILogger log, Exception failure, string requestId, int index);

    [LoggerMessage(5, LogLevel.Error, "A handler of the engine's state failed")]
    public static partial void HandlerFailed(ILogger log, Exception failure);

    [LoggerMessage(6, LogLevel.Error, "The engine's memory could not be given back")]
    public static partial void ReleaseFailed(ILogger log, Exception failure);
}

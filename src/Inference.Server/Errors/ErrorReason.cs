namespace Inference.Server.Errors;

/// <summary>
/// The stable reasons in <c>google.rpc.ErrorInfo</c>, domain <see cref="Domain"/>. Clients decide by these; they are never renamed.
/// </summary>
internal static class ErrorReason
{
    public const string Domain = "inference";

    /// <summary>INVALID_ARGUMENT: one or more fields are wrong; BadRequest lists them.</summary>
    public const string InvalidField = "INVALID_FIELD";
    /// <summary>INVALID_ARGUMENT: the bytes are no message of the method's type.</summary>
    public const string UnreadableMessage = "UNREADABLE_MESSAGE";
    /// <summary>INVALID_ARGUMENT: prompt and answer do not fit the context; the metadata hold the numbers.</summary>
    public const string ContextExceeded = "CONTEXT_EXCEEDED";
    /// <summary>INVALID_ARGUMENT: the conversation cannot be rendered.</summary>
    public const string ChatEncoding = "CHAT_ENCODING";
    /// <summary>INVALID_ARGUMENT: the request can never run here.</summary>
    public const string CannotRun = "CANNOT_RUN";
    /// <summary>NOT_FOUND: no model of that name.</summary>
    public const string ModelNotFound = "MODEL_NOT_FOUND";
    /// <summary>NOT_FOUND: the tenant has no session of that name.</summary>
    public const string SessionNotFound = "SESSION_NOT_FOUND";
    /// <summary>ALREADY_EXISTS: the tenant has a session of that name.</summary>
    public const string SessionExists = "SESSION_EXISTS";
    /// <summary>ABORTED: another call is changing the session.</summary>
    public const string SessionBusy = "SESSION_BUSY";
    /// <summary>RESOURCE_EXHAUSTED: sessions, their tokens or pins have reached a limit; waiting does not help, deleting does.</summary>
    public const string SessionLimit = "SESSION_LIMIT";
    /// <summary>RESOURCE_EXHAUSTED: the disk tier is full or fails; an operator has to look.</summary>
    public const string DiskFailed = "DISK_FAILED";
    /// <summary>FAILED_PRECONDITION: the server has no disk tier.</summary>
    public const string NoDiskTier = "NO_DISK_TIER";
    /// <summary>RESOURCE_EXHAUSTED: no room now; RetryInfo says when to come back.</summary>
    public const string Overloaded = "OVERLOADED";
    /// <summary>UNAVAILABLE: the model is being loaded; RetryInfo says when to come back.</summary>
    public const string Loading = "MODEL_LOADING";
    /// <summary>UNAVAILABLE: the server is stopping; go to another.</summary>
    public const string Draining = "DRAINING";
    /// <summary>UNAVAILABLE: an accepted request was still running at the end of the drain time.</summary>
    public const string DrainLimit = "DRAIN_LIMIT";
    /// <summary>UNAVAILABLE: the engine broke; the process ends.</summary>
    public const string EngineFailed = "ENGINE_FAILED";
    /// <summary>INTERNAL: this answer failed; others are not touched.</summary>
    public const string GenerationFailed = "GENERATION_FAILED";
    /// <summary>DEADLINE_EXCEEDED: the deadline of the call passed.</summary>
    public const string DeadlineExceeded = "DEADLINE_EXCEEDED";
    /// <summary>DEADLINE_EXCEEDED: the first token did not come within first_token_timeout.</summary>
    public const string FirstTokenTimeout = "FIRST_TOKEN_TIMEOUT";
    /// <summary>DEADLINE_EXCEEDED: refused before any work, because the first token could not come in time; the metadata hold the numbers.</summary>
    public const string DeadlineUnreachable = "DEADLINE_UNREACHABLE";
    /// <summary>CANCELLED: by the client.</summary>
    public const string Cancelled = "CANCELLED";
    /// <summary>ABORTED: the client took no bytes for too long.</summary>
    public const string ReaderStalled = "READER_STALLED";
    /// <summary>INTERNAL: a fault of the server.</summary>
    public const string Internal = "INTERNAL";
}

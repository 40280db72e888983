using System.Globalization;
using Google.Protobuf.WellKnownTypes;
using Google.Rpc;
using Grpc.Core;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;

namespace Inference.Server.Errors;

/// <summary>
/// The one place where faults become statuses. Each status has a google.rpc.ErrorInfo with a reason of <see cref="ErrorReason"/>; the client's
/// faults also name fields, refusals for lack of room also say when to come back. Text of unexpected exceptions never leaves the process.
/// </summary>
internal static class StatusMapping
{
    // Statuses travel in trailers, and clients refuse long ones (8 KiB by default in two of the large gRPC libraries).
    private const int ViolationsMax = 16;
    private const int TextMax = 500;
    private const int DetailsTextMax = 4000;

    /// <summary>The code of each reason.</summary>
    public static readonly IReadOnlyDictionary<string, StatusCode> Codes = new Dictionary<string, StatusCode>
    {
        [ErrorReason.InvalidField] = StatusCode.InvalidArgument,
        [ErrorReason.UnreadableMessage] = StatusCode.InvalidArgument,
        [ErrorReason.ContextExceeded] = StatusCode.InvalidArgument,
        [ErrorReason.ChatEncoding] = StatusCode.InvalidArgument,
        [ErrorReason.CannotRun] = StatusCode.InvalidArgument,
        [ErrorReason.ModelNotFound] = StatusCode.NotFound,
        [ErrorReason.SessionNotFound] = StatusCode.NotFound,
        [ErrorReason.SessionExists] = StatusCode.AlreadyExists,
        [ErrorReason.SessionBusy] = StatusCode.Aborted,
        [ErrorReason.SessionLimit] = StatusCode.ResourceExhausted,
        [ErrorReason.DiskFailed] = StatusCode.ResourceExhausted,
        [ErrorReason.NoDiskTier] = StatusCode.FailedPrecondition,
        [ErrorReason.Overloaded] = StatusCode.ResourceExhausted,
        [ErrorReason.Loading] = StatusCode.Unavailable,
        [ErrorReason.Draining] = StatusCode.Unavailable,
        [ErrorReason.DrainLimit] = StatusCode.Unavailable,
        [ErrorReason.EngineFailed] = StatusCode.Unavailable,
        [ErrorReason.GenerationFailed] = StatusCode.Internal,
        [ErrorReason.DeadlineExceeded] = StatusCode.DeadlineExceeded,
        [ErrorReason.FirstTokenTimeout] = StatusCode.DeadlineExceeded,
        [ErrorReason.DeadlineUnreachable] = StatusCode.DeadlineExceeded,
        [ErrorReason.Cancelled] = StatusCode.Cancelled,
        [ErrorReason.ReaderStalled] = StatusCode.Aborted,
        [ErrorReason.Internal] = StatusCode.Internal,
    };

    /// <summary>The same request may succeed when sent again, here or to another server.</summary>
    public static bool IsRetryable(string reason) => reason is not (ErrorReason.SessionLimit or ErrorReason.DiskFailed) && Codes[reason] is StatusCode.Unavailable or StatusCode.ResourceExhausted or StatusCode.Aborted;

    /// <summary>Whether the exception is one that the table knows; others are faults of the server and worth a log line.</summary>
    public static bool IsExpected(Exception exception) =>
        exception is RpcException or RequestException or RequestRejectedException or KvSessionException or ChatEncodingException
            or OperationCanceledException;

    /// <param name="deadlinePassed">Tells the two causes of a cancelled call apart.</param>
    public static RpcException ToRpcException(Exception exception, bool deadlinePassed) => exception switch
    {
        RpcException e => e,
        _ => Map(exception, deadlinePassed).ToRpcException(),
    };

    public static Google.Rpc.Status Map(Exception exception, bool deadlinePassed = false) => exception switch
    {
        RequestException e => Build(e),
        RequestRejectedException e => Build(Rejected(e)),
        KvSessionException e => Build(SessionFault(e)),
        ChatEncodingException e => Build(ChatFault(e)),
        OperationCanceledException when deadlinePassed => Build(new(ErrorReason.DeadlineExceeded, "The deadline of the call passed.")),
        OperationCanceledException => Build(new(ErrorReason.Cancelled, "The call was cancelled.")),
        _ => Build(new(ErrorReason.Internal, "The server failed at this call; its log has the cause.")),
    };

    private static RequestException Rejected(RequestRejectedException e) => e.Reason switch
    {
        RejectionReason.InvalidRequest => new(ErrorReason.CannotRun, e.Message) { Violations = e.Field is null ? [] : [Violation(e.Field, e.Message)] },
        RejectionReason.Overloaded => new(ErrorReason.Overloaded, e.Message) { RetryAfter = e.RetryAfter ?? TimeSpan.FromSeconds(1) },
        _ => new(ErrorReason.Draining, e.Message),
    };

    private static RequestException SessionFault(KvSessionException e) => e.Fault switch
    {
        KvSessionFault.NotFound => new(ErrorReason.SessionNotFound, e.Message),
        KvSessionFault.Exists => new(ErrorReason.SessionExists, e.Message),
        KvSessionFault.Busy => new(ErrorReason.SessionBusy, e.Message),
        KvSessionFault.NoRoom => new(ErrorReason.SessionLimit, e.Message),
        KvSessionFault.DiskFailed => new(ErrorReason.DiskFailed, e.Message),
        KvSessionFault.NoDisk => new(ErrorReason.NoDiskTier, e.Message),
        KvSessionFault.Invalid => new(ErrorReason.InvalidField, e.Message),
        _ => new(ErrorReason.GenerationFailed, e.Message),
    };

    private static RequestException ChatFault(ChatEncodingException e)
    {
        string field = (e.MessageIndex, e.Field) switch
        {
            (null, null) => "chat",
            (null, _) => $"chat.{e.Field}",
            (_, null) => $"chat.messages[{e.MessageIndex}]",
            _ => $"chat.messages[{e.MessageIndex}].{e.Field}",
        };
        return new(ErrorReason.ChatEncoding, e.Message) { Violations = [Violation(field, e.Message)] };
    }

    public static BadRequest.Types.FieldViolation Violation(string field, string description) => new() { Field = field, Description = Cut(description) };

    private static Google.Rpc.Status Build(RequestException e)
    {
        var info = new ErrorInfo { Reason = e.Reason, Domain = ErrorReason.Domain };
        foreach (var (key, value) in e.Metadata) info.Metadata[key] = value;
        var status = new Google.Rpc.Status { Code = (int)Codes[e.Reason], Message = Cut(e.Message), Details = { Any.Pack(info) } };
        if (e.Violations.Count > 0)
        {
            var shown = Fitting(e.Violations);
            info.Metadata["violations"] = e.Violations.Count.ToString(CultureInfo.InvariantCulture);
            status.Details[0] = Any.Pack(info);
            status.Details.Add(Any.Pack(new BadRequest { FieldViolations = { shown } }));
        }
        if (e.RetryAfter is { } retry) status.Details.Add(Any.Pack(new RetryInfo { RetryDelay = Duration.FromTimeSpan(retry) }));
        return status;
    }

    private static List<BadRequest.Types.FieldViolation> Fitting(IReadOnlyList<BadRequest.Types.FieldViolation> violations)
    {
        var shown = new List<BadRequest.Types.FieldViolation>();
        int text = 0;
        foreach (var violation in violations.Take(ViolationsMax))
        {
            text += violation.Field.Length + violation.Description.Length;
            if (text > DetailsTextMax && shown.Count > 0) break;
            shown.Add(violation);
        }
        return shown;
    }

    private static string Cut(string text) => text.Length <= TextMax ? text : string.Concat(text.AsSpan(0, SafeLength(text)), "...");

    private static int SafeLength(string text) => char.IsHighSurrogate(text[TextMax - 1]) ? TextMax - 1 : TextMax;
}

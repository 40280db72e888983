using Google.Protobuf;
using Inference.Server.Errors;

namespace Inference.Server.Hosting;

/// <summary>
/// A message that is no protobuf fails inside the gRPC library, before any handler or interceptor, as UNKNOWN. It is the client's fault, so it
/// becomes INVALID_ARGUMENT here, after the library has noted its status and before anything was sent.
/// </summary>
internal sealed class UnreadableMessages(RequestDelegate next)
{
    private static readonly object ReachedKey = new();

    /// <summary>Called by the interceptor: the message could be read.</summary>
    public static void Reached(HttpContext context) => context.Items[ReachedKey] = true;

    public async Task InvokeAsync(HttpContext context)
    {
        await next(context);
        if (context.Items.ContainsKey(ReachedKey) || context.Response.HasStarted) return;
        var headers = context.Response.Headers;
        if (headers["grpc-status"] != "2") return;
        var status = StatusMapping.Map(new RequestException(ErrorReason.UnreadableMessage, "The message cannot be read as the method's request."));
        headers["grpc-status"] = status.Code.ToString(System.Globalization.CultureInfo.InvariantCulture);
        headers["grpc-message"] = status.Message;
        headers["grpc-status-details-bin"] = Convert.ToBase64String(status.ToByteArray()).TrimEnd('=');
    }
}

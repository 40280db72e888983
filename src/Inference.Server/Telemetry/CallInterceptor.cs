using System.Diagnostics;
using Grpc.Core;
using Grpc.Core.Interceptors;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Telemetry;

/// <summary>
/// Around every gRPC call: counts it as open, measures it, and turns whatever a handler throws into a status (<see cref="StatusMapping"/>).
/// A call that is ended because the server stops becomes UNAVAILABLE. It never looks at messages.
/// </summary>
internal sealed class CallInterceptor(RpcMetrics metrics, ShutdownController shutdown, ILogger<CallInterceptor> logger) : Interceptor
{
    public override Task<TResponse> UnaryServerHandler<TRequest, TResponse>(
        TRequest request, ServerCallContext context, UnaryServerMethod<TRequest, TResponse> continuation) =>
        AroundAsync(context, () => continuation(request, context));

    public override Task ServerStreamingServerHandler<TRequest, TResponse>(
        TRequest request, IServerStreamWriter<TResponse> responseStream, ServerCallContext context,
        ServerStreamingServerMethod<TRequest, TResponse> continuation) =>
        AroundAsync(context, async () =>
        {
            await continuation(request, responseStream, context);
            return true;
        });

    public override Task<TResponse> ClientStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, ServerCallContext context, ClientStreamingServerMethod<TRequest, TResponse> continuation) =>
        AroundAsync(context, () => continuation(requestStream, context));

    public override Task DuplexStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, IServerStreamWriter<TResponse> responseStream, ServerCallContext context,
        DuplexStreamingServerMethod<TRequest, TResponse> continuation) =>
        AroundAsync(context, async () =>
        {
            await continuation(requestStream, responseStream, context);
            return true;
        });

    private async Task<T> AroundAsync<T>(ServerCallContext context, Func<Task<T>> handler)
    {
        long start = Stopwatch.GetTimestamp();
        var status = StatusCode.OK;
        UnreadableMessages.Reached(context.GetHttpContext());
        metrics.Started(context.Method);
        try
        {
            var result = await handler();
            if (ServerEnds(context)) throw new RequestException(ErrorReason.Draining, "This server is stopping.");
            return result;
        }
        catch (Exception e)
        {
            var mapped = Translate(e, context);
            status = mapped.StatusCode;
            if (ReferenceEquals(mapped, e)) throw;
            throw mapped;
        }
        finally
        {
            var elapsed = Stopwatch.GetElapsedTime(start);
            metrics.Ended(context.Method, status, elapsed);
            ServerLog.CallEnded(logger, context.Method, status.ToString(), elapsed.TotalMilliseconds);
        }
    }

    private RpcException Translate(Exception e, ServerCallContext context)
    {
        if (ServerEnds(context)) e = new RequestException(ErrorReason.Draining, "This server is stopping.");
        // Writing to a call that has ended fails in several ways; all mean that it has ended.
        else if (context.CancellationToken.IsCancellationRequested && !StatusMapping.IsExpected(e)) e = new OperationCanceledException(e.Message, e);
        if (!StatusMapping.IsExpected(e)) ServerLog.CallFailed(logger, context.Method, e);
        return StatusMapping.ToRpcException(e, deadlinePassed: context.Deadline <= DateTime.UtcNow);
    }

    /// <summary>The call has no end of its own, and the server ended it.</summary>
    private bool ServerEnds(ServerCallContext context) => EndlessCallsMiddleware.Is(context.Method) && shutdown.EndlessCallsEnd.IsCancellationRequested;
}

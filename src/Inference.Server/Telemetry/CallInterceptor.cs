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
        AnswerAsync(context, () => continuation(request, context));

    public override Task ServerStreamingServerHandler<TRequest, TResponse>(
        TRequest request, IServerStreamWriter<TResponse> responseStream, ServerCallContext context,
        ServerStreamingServerMethod<TRequest, TResponse> continuation) =>
        StreamAsync(context, () => continuation(request, responseStream, context));

    public override Task<TResponse> ClientStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, ServerCallContext context, ClientStreamingServerMethod<TRequest, TResponse> continuation) =>
        AnswerAsync(context, () => continuation(requestStream, context));

    public override Task DuplexStreamingServerHandler<TRequest, TResponse>(
        IAsyncStreamReader<TRequest> requestStream, IServerStreamWriter<TResponse> responseStream, ServerCallContext context,
        DuplexStreamingServerMethod<TRequest, TResponse> continuation) =>
        StreamAsync(context, () => continuation(requestStream, responseStream, context));

    private async Task<T> AnswerAsync<T>(ServerCallContext context, Func<Task<T>> handler)
    {
        Task<T>? answer = null;
        var fault = await AroundAsync(context, () => answer = handler());
        return fault is null ? await answer! : throw fault;
    }

    // A stream that has failed only says so: a thrown exception would be caught and thrown again on its way, and refusals under load must cost little.
    private async Task StreamAsync(ServerCallContext context, Func<Task> handler)
    {
        if (await AroundAsync(context, handler) is not { } fault) return;
        foreach (var entry in fault.Trailers) context.ResponseTrailers.Add(entry);
        context.Status = fault.Status;
    }

    private async Task<RpcException?> AroundAsync(ServerCallContext context, Func<Task> handler)
    {
        long start = Stopwatch.GetTimestamp();
        RpcException? fault = null;
        UnreadableMessages.Reached(context.GetHttpContext());
        metrics.Started(context.Method);
        try
        {
            await handler();
            if (ServerEnds(context)) fault = Translate(new RequestException(ErrorReason.Draining, "This server is stopping."), context);
        }
        catch (Exception e)
        {
            fault = Translate(e, context);
        }
        var elapsed = Stopwatch.GetElapsedTime(start);
        metrics.Ended(context.Method, fault?.StatusCode ?? StatusCode.OK, elapsed);
        ServerLog.CallEnded(logger, context.Method, (fault?.StatusCode ?? StatusCode.OK).ToString(), elapsed.TotalMilliseconds);
        return fault;
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

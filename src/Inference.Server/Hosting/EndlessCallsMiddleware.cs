namespace Inference.Server.Hosting;

/// <summary>
/// Calls that last until the client ends them (health watches, reflection). The gRPC library does not tell them that the host stops, and
/// they would hold it up; so their requests are made to look aborted when <see cref="ShutdownController"/> says so. Runs before the gRPC
/// library has made its call context, which takes over the token.
/// </summary>
internal sealed class EndlessCallsMiddleware(RequestDelegate next, ShutdownController shutdown)
{
    /// <summary>Whether calls of this method last until someone ends them.</summary>
    public static bool Is(string method) =>
        method == "/grpc.health.v1.Health/Watch" || method.StartsWith("/grpc.reflection.", StringComparison.Ordinal);

    public async Task InvokeAsync(HttpContext context)
    {
        if (!Is(context.Request.Path.Value ?? ""))
        {
            await CountedAsync(shutdown.Calls, context);
            return;
        }
        using var linked = CancellationTokenSource.CreateLinkedTokenSource(context.RequestAborted, shutdown.EndlessCallsEnd);
        context.RequestAborted = linked.Token;
        await CountedAsync(shutdown.EndlessCalls, context);
    }

    private async Task CountedAsync(OpenCalls calls, HttpContext context)
    {
        calls.Enter();
        try
        {
            await next(context);
        }
        finally
        {
            calls.Leave();
        }
    }
}

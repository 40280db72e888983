namespace Inference.Server.Hosting;

/// <summary>The pages of the HTTP listener: is the process alive, may it be sent requests, and its metrics.</summary>
internal static class HttpPages
{
    public static void Map(WebApplication app)
    {
        app.MapGet("/livez", () => "ok\n");
        app.MapGet("/readyz", (EngineHost engine) => engine is { State: ServingState.Serving, IsStuck: false }
            ? Results.Text("ok\n")
            : Results.Text((engine.State == ServingState.Serving ? "stuck" : engine.State.ToString().ToLowerInvariant()) + "\n", statusCode: StatusCodes.Status503ServiceUnavailable));
        app.MapPrometheusScrapingEndpoint("/metrics");
    }
}

using Grpc.Health.V1;
using Inference.Server.Hosting;
using Inference.Testing;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Xunit;
using static Grpc.Health.V1.HealthCheckResponse.Types;

namespace Inference.Server.Tests.Hosting;

/// <summary>A server whose engine does not get on says so, before its clients find out.</summary>
public sealed class EngineWatchTests
{
    [Fact]
    public async Task A_server_with_work_that_does_not_get_on_is_not_ready_until_it_does()
    {
        using var go = new ManualResetEventSlim(true);
        var model = new HashModel(vocab: 1024, contextMax: 4096, pageRows: 32) { BeforeStep = _ => go.Wait(TimeSpan.FromSeconds(60)) };
        await using var server = await TestServer.StartAsync(model: model);
        var watch = server.Host.Services.GetRequiredService<EngineWatch>();
        var health = new Health.HealthClient(server.Channel());
        // Nothing to do is no reason to get on.
        watch.Look(TimeSpan.FromHours(1));
        watch.Look(TimeSpan.FromHours(2));
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/readyz"));

        go.Reset();
        var answer = server.Completions.CompleteAsync(Rpc.Ids(1, 2, 3)).ResponseAsync;
        await server.UntilAsync(() => server.Served.Engine.Queued > 0 || server.Served.Engine.Stats.Accepted > 0, "the request is there");
        watch.Look(TimeSpan.FromHours(3));
        watch.Look(TimeSpan.FromHours(3) + EngineWatch.Limit / 2);
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/readyz"));
        watch.Look(TimeSpan.FromHours(4));
        Assert.Equal((503, "stuck\n"), await PageAsync(server, "/readyz"));
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/livez"));
        Assert.Equal(ServingStatus.NotServing, (await health.CheckAsync(new())).Status);
        Assert.Contains("inference_stuck 1", await MetricsAsync(server), StringComparison.Ordinal);
        Assert.Contains(server.Log.Lines, l => l.Contains("does not get on", StringComparison.Ordinal));

        go.Set();
        await answer;
        watch.Look(TimeSpan.FromHours(5));
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/readyz"));
        Assert.Equal(ServingStatus.Serving, (await health.CheckAsync(new())).Status);
        // The page is made anew only after a moment.
        string metrics = await MetricsAsync(server);
        for (int i = 0; i < 50 && !metrics.Contains("inference_stuck 0", StringComparison.Ordinal); i++)
        {
            await Task.Delay(100);
            metrics = await MetricsAsync(server);
        }
        Assert.Contains("inference_stuck 0", metrics, StringComparison.Ordinal);
    }

    private static async Task<(int, string)> PageAsync(TestServer server, string path)
    {
        using var http = new HttpClient();
        using var response = await http.GetAsync(new Uri(server.Http, path));
        return ((int)response.StatusCode, await response.Content.ReadAsStringAsync());
    }

    // Without labels and units in the names.
    private static async Task<string> MetricsAsync(TestServer server)
    {
        var (_, page) = await PageAsync(server, "/metrics");
        return string.Join('\n', page.Split('\n').Where(l => l.StartsWith("inference_stuck", StringComparison.Ordinal)).Select(l => $"inference_stuck {l.Split(' ')[1]}"));
    }
}

using System.Globalization;
using Grpc.Core;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>Meters are found by name in the whole process: a server of another test would be counted too.</summary>
[CollectionDefinition(nameof(AloneInTheProcess), DisableParallelization = true)]
public sealed class AloneInTheProcess;

/// <summary>The page that dashboards and alerts are written against: its names, its kinds, and that its numbers move.</summary>
[Collection(nameof(AloneInTheProcess))]
public sealed class MetricsTests
{
    [Fact]
    public async Task The_names_and_kinds_are_those_of_the_golden_file()
    {
        await using var server = await TestServer.StartAsync();
        await UseAsync(server);
        var page = await PageAsync(server);
        string[] types = [.. page.Where(l => l.StartsWith("# TYPE ", StringComparison.Ordinal) && IsOurs(l.Split(' ')[2])).Select(l => l[7..]).Order()];
        string file = Fixture.Path("metrics.txt");
        Assert.True(File.Exists(file), "no golden file; the page has:\n" + string.Join('\n', types));
        Assert.Equal(await File.ReadAllLinesAsync(file), types);
    }

    [Fact]
    public async Task Calls_tokens_and_times_are_counted()
    {
        await using var server = await TestServer.StartAsync();
        await UseAsync(server);
        var page = await PageAsync(server);
        Assert.Equal(1, Value(page, "rpc_server_call_duration_seconds_count", "rpc_method=\"inference.v1.Completions/Complete\"", "rpc_response_status_code=\"OK\""));
        Assert.Equal(1, Value(page, "rpc_server_call_duration_seconds_count", "rpc_response_status_code=\"INVALID_ARGUMENT\""));
        Assert.Equal(12, Value(page, "inference_tokens_output_total"));
        Assert.Equal(3, Value(page, "inference_tokens_prompt_total"));
        Assert.Equal(1, Value(page, "inference_requests_finished_total", "reason=\"length\""));
        Assert.Equal(1, Value(page, "gen_ai_server_time_to_first_token_seconds_count"));
        Assert.Equal(1, Value(page, "gen_ai_server_time_per_output_token_seconds_count"));
        Assert.Equal(0, Value(page, "inference_server_active_calls", "rpc_method=\"inference.v1.Completions/Complete\""));
        Assert.Equal(1, Value(page, "inference_state", "state=\"serving\""));
        Assert.Equal(0, Value(page, "inference_kv_pages_used", "pool=\"tokens\""));
        Assert.True(Value(page, "inference_kv_pages_total", "pool=\"tokens\"") > 0);
    }

    [Fact]
    public async Task Nothing_a_client_wrote_is_on_the_page_or_in_the_log()
    {
        await using var server = await TestServer.StartAsync();
        var request = Rpc.Ids(1);
        request.RequestId = "canary-id";
        await server.Completions.CompleteAsync(request, new Metadata { { "x-canary", "canary-metadata" } });
        await Rpc.FailureAsync(() => server.Completions.CompleteAsync(new() { Model = "canary-model", Text = "canary-text" }).ResponseAsync);
        Assert.DoesNotContain(await PageAsync(server), l => l.Contains("canary", StringComparison.Ordinal));
        Assert.Contains(server.Log.Lines, l => l.Contains("canary-id", StringComparison.Ordinal));
        foreach (string secret in (string[])["canary-text", "canary-metadata", "canary-model"])
            Assert.DoesNotContain(server.Log.Lines, l => l.Contains(secret, StringComparison.Ordinal));
    }

    [Fact]
    public async Task Metrics_and_spans_go_where_the_standard_variable_says()
    {
        using var collector = new System.Net.HttpListener();
        int port = FreePort();
        collector.Prefixes.Add($"http://127.0.0.1:{port}/");
        collector.Start();
        await using var server = await TestServer.StartAsync(environment: new Dictionary<string, string>
        {
            ["OTEL_EXPORTER_OTLP_ENDPOINT"] = $"http://127.0.0.1:{port}",
            ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf",
            ["OTEL_METRIC_EXPORT_INTERVAL"] = "200",
            ["OTEL_BSP_SCHEDULE_DELAY"] = "200",
        });
        await UseAsync(server);
        var seen = new Dictionary<string, string>();
        using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(20));
        while (!(seen.GetValueOrDefault("/v1/metrics", "").Contains("inference.tokens.output", StringComparison.Ordinal) && seen.ContainsKey("/v1/traces")))
        {
            var context = await collector.GetContextAsync().WaitAsync(limit.Token);
            using var body = new MemoryStream();
            await context.Request.InputStream.CopyToAsync(body);
            seen[context.Request.Url!.AbsolutePath] = System.Text.Encoding.Latin1.GetString(body.ToArray());
            context.Response.Close();
        }
        Assert.Contains("rpc.server.call.duration", seen["/v1/metrics"], StringComparison.Ordinal);
    }

    private static int FreePort()
    {
        using var listener = new System.Net.Sockets.TcpListener(System.Net.IPAddress.Loopback, 0);
        listener.Start();
        return ((System.Net.IPEndPoint)listener.LocalEndpoint).Port;
    }

    private static async Task UseAsync(TestServer server)
    {
        await server.Completions.CompleteAsync(Rpc.Ids(12));
        await Rpc.FailureAsync(() => server.Completions.CompleteAsync(new()).ResponseAsync);
        await server.UntilAsync(() => server.IsIdle, "the engine is idle");
    }

    private static async Task<string[]> PageAsync(TestServer server)
    {
        using var http = new HttpClient();
        return (await http.GetStringAsync(new Uri(server.Http, "/metrics"))).Split('\n');
    }

    private static bool IsOurs(string name) => name.StartsWith("inference_", StringComparison.Ordinal) || name.StartsWith("gen_ai_", StringComparison.Ordinal)
        || name.StartsWith("rpc_", StringComparison.Ordinal);

    /// <summary>The value of the one line with this name and these labels. A line is: name{labels} value [timestamp].</summary>
    private static double Value(string[] page, string name, params string[] labels)
    {
        string line = Assert.Single(page, l => (l.StartsWith(name + "{", StringComparison.Ordinal) || l.StartsWith(name + " ", StringComparison.Ordinal))
            && labels.All(label => l.Contains(label, StringComparison.Ordinal)));
        int end = line.Contains('}') ? line.LastIndexOf('}') + 1 : name.Length;
        return double.Parse(line[end..].Trim().Split(' ')[0], CultureInfo.InvariantCulture);
    }
}

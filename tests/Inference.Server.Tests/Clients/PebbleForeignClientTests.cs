using Inference.Server.Hosting;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Clients;

/// <summary>The server process with the embedded model on the CPU backend, through grpc-js (tests/clients/grpc-js/pebble.js).</summary>
public sealed class PebbleForeignClientTests
{
    [Fact]
    public async Task Pebble_answers_a_foreign_client_whatever_else_runs_and_frees_what_it_held()
    {
        Assert.SkipUnless(ChildProcess.Exists("node", "--version"), "node is not installed");
        await ForeignClientTests.InstallGrpcJsAsync();
        await using var server = await ServerProcess.StartServingAsync();
        using var http = new HttpClient();
        using var client = ChildProcess.Start("node",
        [
            RepositoryPaths.Combine("tests", "clients", "grpc-js", "pebble.js"), server.Endpoint("Grpc"), RepositoryPaths.Combine("protos"),
            Path.Combine(RepositoryPaths.Pebble, "examples.json"),
        ]);
        using var limit = new CancellationTokenSource(TimeSpan.FromMinutes(3));
        var errors = client.StandardError.ReadToEndAsync(limit.Token);
        var lines = new List<string>();
        while (await client.StandardOutput.ReadLineAsync(limit.Token) is { } line)
        {
            lines.Add(line);
            if (line == "idle")
                Assert.All(await PagesUsedAsync(http, server, limit.Token), used => Assert.EndsWith(" 0", used, StringComparison.Ordinal));
            if (line == "drain") await server.SignalAsync("TERM");
        }
        await client.WaitForExitAsync(limit.Token);
        string[] expected = ["ok examples", "ok sixteen streams, a third cancelled", "idle", "drain", "ok sixteen streams through a drain"];
        Assert.True(expected.SequenceEqual(lines) && client.ExitCode == 0, $"{string.Join('\n', lines)}\n{await errors}\n{server.Log}");
        Assert.Equal(ExitCode.Stopped, await server.ExitAsync());
    }

    // One line per kind of state. The page shows the engine's last step; the last cancellation may need one more.
    private static async Task<List<string>> PagesUsedAsync(HttpClient http, ServerProcess server, CancellationToken cancellation)
    {
        for (int attempt = 0; ; attempt++)
        {
            string page = await http.GetStringAsync($"http://{server.Endpoint("Http")}/metrics", cancellation);
            var used = page.Split('\n').Where(l => l.StartsWith("inference_kv_pages_used{", StringComparison.Ordinal))
                .Select(l => System.Text.RegularExpressions.Regex.Replace(l, @"^(\S+ \S+).*", "$1")).ToList();
            Assert.NotEmpty(used);
            if (attempt == 50 || used.All(u => u.EndsWith(" 0", StringComparison.Ordinal))) return used;
            await Task.Delay(100, cancellation);
        }
    }
}

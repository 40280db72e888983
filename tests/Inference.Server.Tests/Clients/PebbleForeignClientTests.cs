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
        using var client = ChildProcess.Start("node",
        [
            RepositoryPaths.Combine("tests", "clients", "grpc-js", "pebble.js"), server.Endpoint("Grpc"), server.Endpoint("Http"),
            RepositoryPaths.Combine("protos"), Path.Combine(RepositoryPaths.Pebble, "examples.json"),
        ]);
        using var limit = new CancellationTokenSource(TimeSpan.FromMinutes(3));
        var errors = client.StandardError.ReadToEndAsync(limit.Token);
        var lines = new List<string>();
        while (await client.StandardOutput.ReadLineAsync(limit.Token) is { } line)
        {
            lines.Add(line);
            if (line == "drain") await server.SignalAsync("TERM");
        }
        await client.WaitForExitAsync(limit.Token);
        string[] expected = ["ok examples", "ok sixteen streams, a third cancelled", "ok no page is held afterwards", "drain",
            "ok sixteen streams through a drain"];
        Assert.True(expected.SequenceEqual(lines) && client.ExitCode == 0, $"{string.Join('\n', lines)}\n{await errors}\n{server.Log}");
        Assert.Equal(ExitCode.Stopped, await server.ExitAsync());
    }
}

using System.Diagnostics;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Clients;

/// <summary>
/// The server through clients that nobody here wrote (tests/clients), over plain HTTP/2 and TLS. Each client prints a line per case; every
/// line must be there and say ok.
/// </summary>
public sealed class ForeignClientTests
{
    private static readonly string[] Cases =
    [
        "unary", "stream", "sessions", "chat and tokenization", "model description", "deadline", "unary deadline", "cancel", "oversized message", "bad field",
        "bad field in a stream", "unreadable message", "metadata", "unknown method", "compressed request", "health", "reflection", "drain",
        "health watch",
    ];

    [Fact]
    public async Task Grpc_js_finds_everything_right()
    {
        Assert.SkipUnless(ChildProcess.Exists("node", "--version"), "node is not installed");
        await RunAsync("node", Path.Combine(await InstallGrpcJsAsync(), "client.js"));
    }

    private static readonly SemaphoreSlim Installing = new(1);

    /// <summary>Installs the npm packages if they are not there; returns the client's folder.</summary>
    internal static async Task<string> InstallGrpcJsAsync()
    {
        string folder = RepositoryPaths.Combine("tests", "clients", "grpc-js");
        await Installing.WaitAsync();
        try
        {
            if (Directory.Exists(Path.Combine(folder, "node_modules"))) return folder;
            var (exit, output) = await ChildProcess.RunAsync("npm", ["ci"], folder, TimeSpan.FromMinutes(3));
            Assert.True(exit == 0, "npm ci: " + output);
            return folder;
        }
        finally
        {
            Installing.Release();
        }
    }

    [Fact]
    public async Task Python_grpcio_finds_everything_right()
    {
        string? python = new[] { "/usr/bin/python3", "python3" }.FirstOrDefault(p => ChildProcess.Exists(p, "-c", "import grpc"));
        Assert.SkipWhen(python is null, "python3-grpcio is not installed");
        await RunAsync(python, RepositoryPaths.Combine("tests", "clients", "python", "client.py"));
    }

    private static async Task RunAsync(string program, string script)
    {
        using var folder = new TemporaryFolder();
        var certificate = TestCertificate.Write(folder);
        await using var server = await TestServer.StartAsync(
            new Dictionary<string, string>
            {
                ["tls-listen"] = "127.0.0.1:0",
                ["tls-certificate"] = certificate.CertificateFile,
                ["tls-key"] = certificate.KeyFile,
                ["max-receive-bytes"] = "1MiB",
            },
            new(vocab: 1024, contextMax: 4096, pageRows: 32) { BeforeStep = _ => Thread.Sleep(1) });
        string plain = $"127.0.0.1:{server.Host.Endpoint(ListenerKind.Grpc).Port}", tls = $"localhost:{server.Host.Endpoint(ListenerKind.GrpcTls).Port}";
        using var client = ChildProcess.Start(program, [script, plain, tls, certificate.CertificateFile, RepositoryPaths.Combine("protos")]);
        using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(90));
        var errors = client.StandardError.ReadToEndAsync(limit.Token);
        var lines = new List<string>();
        Task? stopped = null;
        try
        {
            while (await client.StandardOutput.ReadLineAsync(limit.Token) is { } line)
            {
                lines.Add(line);
                if (line != "drain") continue;
                await server.UntilAsync(() => server.Served.Engine.Stats.Running == 2, "only the two streams are left of all that was cancelled");
                stopped = server.Host.StopAsync();
            }
            await client.WaitForExitAsync(limit.Token);
        }
        catch (OperationCanceledException)
        {
            client.Kill(entireProcessTree: true);
            Assert.Fail($"The client did not end. It said:\n{string.Join('\n', lines)}\nServer:\n{server.Log}");
        }
        string[] expected = ["drain", .. from transport in new[] { "h2c", "tls" } from name in Cases select $"ok {transport} {name}"];
        Assert.True(
            expected.ToHashSet().SetEquals(lines) && client.ExitCode == 0,
            $"Missing: {string.Join(", ", expected.Except(lines))}\nUnexpected: {string.Join('\n', lines.Except(expected))}\n{await errors}\nServer:\n{server.Log}");
        await stopped!.WaitAsync(TimeSpan.FromSeconds(10));
        Assert.Equal(ServingState.Stopped, server.Engine.State);
    }
}

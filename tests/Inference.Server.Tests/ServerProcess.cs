using System.Diagnostics;
using Grpc.Net.Client;
using Xunit;

namespace Inference.Server.Tests;

/// <summary><c>inference serve</c> as a process of its own, on free ports. Killed when disposed, if it still runs.</summary>
internal sealed class ServerProcess : IAsyncDisposable
{
    private readonly Process _process;
    private readonly List<string> _log = [];
    private readonly List<GrpcChannel> _channels = [];

    private ServerProcess(Process process)
    {
        _process = process;
        process.ErrorDataReceived += (_, e) =>
        {
            if (e.Data is null) return;
            lock (_log) _log.Add(e.Data);
        };
        process.BeginErrorReadLine();
        process.BeginOutputReadLine();
    }

    public string Log
    {
        get
        {
            lock (_log) return string.Join('\n', _log);
        }
    }

    /// <param name="arguments">Win over the free ports on loopback that are the default here.</param>
    public static ServerProcess Start(params string[] arguments) => new(ChildProcess.Start(
        "dotnet", [Path.Combine(AppContext.BaseDirectory, "inference.dll"), "serve", .. arguments], environment: new Dictionary<string, string>
        {
            ["INFERENCE_LISTEN"] = "127.0.0.1:0",
            ["INFERENCE_HTTP_LISTEN"] = "127.0.0.1:0",
        }));

    /// <summary>Starts it and waits until it takes requests.</summary>
    public static async Task<ServerProcess> StartServingAsync(params string[] arguments)
    {
        var server = Start(arguments);
        await server.UntilAsync(() => server.Log.Contains("State: Serving", StringComparison.Ordinal), "the server serves");
        return server;
    }

    public V1.Completions.CompletionsClient Completions
    {
        get
        {
            var channel = GrpcChannel.ForAddress("http://" + Endpoint("Grpc"));
            _channels.Add(channel);
            return new(channel);
        }
    }

    /// <summary>Where a listener of this kind is bound, as the log says.</summary>
    public string Endpoint(string kind)
    {
        string mark = $"Listening: {kind} on ";
        string line = Log.Split('\n').First(l => l.Contains(mark, StringComparison.Ordinal));
        return line[(line.IndexOf(mark, StringComparison.Ordinal) + mark.Length)..].Trim();
    }

    public async Task SignalAsync(string name)
    {
        var (exit, output) = await ChildProcess.RunAsync("sh", ["-c", $"kill -{name} {_process.Id}"], null, TimeSpan.FromSeconds(10));
        Assert.True(exit == 0, output);
    }

    /// <summary>Waits for the end; the exit code.</summary>
    public async Task<int> ExitAsync(double seconds = 20)
    {
        try
        {
            await _process.WaitForExitAsync().WaitAsync(TimeSpan.FromSeconds(seconds));
        }
        catch (TimeoutException)
        {
            Assert.Fail($"The server still runs after {seconds} s:\n{Log}");
        }
        return _process.ExitCode;
    }

    public async Task UntilAsync(Func<bool> condition, string what, double seconds = 60)
    {
        for (var end = DateTime.UtcNow.AddSeconds(seconds); !condition(); await Task.Delay(20))
            if (DateTime.UtcNow > end || _process.HasExited) Assert.Fail($"Waited for: {what}. Log:\n{Log}");
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var channel in _channels) channel.Dispose();
        if (!_process.HasExited) _process.Kill(entireProcessTree: true);
        await _process.WaitForExitAsync();
        _process.Dispose();
    }
}

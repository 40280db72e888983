using System.Diagnostics;
using System.Net;
using Grpc.Net.Client;

namespace Inference.Benchmarks.Load;

/// <summary><c>inference serve</c> with the model that ships with it, as a process of its own on free loopback ports; ended when disposed.</summary>
internal sealed class LoadServer : IAsyncDisposable
{
    private readonly Process _process;
    private readonly List<string> _log = [];
    private readonly List<GrpcChannel> _channels = [];

    private LoadServer(Process process)
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

    private string Log
    {
        get
        {
            lock (_log) return string.Join('\n', _log);
        }
    }

    public static async Task<LoadServer> StartAsync(params string[] arguments)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "inference.dll");
        string[] all =
        [
            program, "serve", "--listen", "127.0.0.1:0", "--http-listen", "none", "--streams-per-connection-max", "1000", "--prefixes-max", "0",
            .. arguments,
        ];
        var info = new ProcessStartInfo("dotnet", all) { RedirectStandardError = true, RedirectStandardOutput = true, RedirectStandardInput = true };
        var server = new LoadServer(Process.Start(info)!);
        for (var limit = Stopwatch.StartNew(); !server.Log.Contains("State: Serving", StringComparison.Ordinal); await Task.Delay(50))
            if (limit.Elapsed > TimeSpan.FromMinutes(2) || server._process.HasExited)
                throw new InvalidOperationException($"The server did not start:\n{server.Log}");
        return server;
    }

    public Uri Address
    {
        get
        {
            const string mark = "Listening: Grpc on ";
            string line = Log.Split('\n').First(l => l.Contains(mark, StringComparison.Ordinal));
            return new("http://" + line[(line.IndexOf(mark, StringComparison.Ordinal) + mark.Length)..].Trim());
        }
    }

    /// <summary>Processor time that the server has used.</summary>
    public TimeSpan ProcessorTime
    {
        get
        {
            _process.Refresh();
            return _process.TotalProcessorTime;
        }
    }

    /// <summary>A connection of its own.</summary>
    public V1.Completions.CompletionsClient Client()
    {
        var channel = Channel(Address);
        _channels.Add(channel);
        return new(channel);
    }

    public static GrpcChannel Channel(Uri address) => GrpcChannel.ForAddress(address, new GrpcChannelOptions
    {
        HttpHandler = new SocketsHttpHandler { EnableMultipleHttp2Connections = true },
        DisposeHttpClient = true,
        MaxReceiveMessageSize = null,
        MaxSendMessageSize = null,
    });

    public async ValueTask DisposeAsync()
    {
        foreach (var channel in _channels) channel.Dispose();
        if (!_process.HasExited) _process.Kill(entireProcessTree: true);
        await _process.WaitForExitAsync();
        _process.Dispose();
    }
}

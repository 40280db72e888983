using System.Net;
using Grpc.Core;
using Grpc.Net.Client;
using Inference.Runtime.Chat;
using Inference.Runtime.Tokenization;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Testing;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Xunit;

namespace Inference.Server.Tests;

/// <summary>
/// The whole server in this process, on real sockets with free ports, with Pebble's tokenizer and a model whose next token is a hash of the
/// prefix. Everything but the weights is what <c>serve</c> runs.
/// </summary>
internal sealed class TestServer : IAsyncDisposable
{
    private readonly List<GrpcChannel> _channels = [];

    private TestServer(ServerHost host, HashModel model, LogCollector log) => (Host, Model, Log) = (host, model, log);

    public ServerHost Host { get; }

    public HashModel Model { get; }

    public LogCollector Log { get; }

    public ServedModel Served => Engine.Loaded ?? throw new InvalidOperationException("The model is not loaded.");

    public EngineHost Engine => Host.Services.GetRequiredService<EngineHost>();

    public V1.Completions.CompletionsClient Completions => new(Channel());

    public Uri Http => new($"http://{Host.Endpoint(ListenerKind.Http)}");

    /// <param name="settings">As on the command line.</param>
    /// <param name="beforeLoad">Runs before the model is made; may wait.</param>
    /// <param name="configure">Changes the server's parts.</param>
    /// <param name="environment">The variables it sees.</param>
    /// <param name="waitUntilServing">False: return as soon as the server listens.</param>
    public static async Task<TestServer> StartAsync(
        IReadOnlyDictionary<string, string>? settings = null, HashModel? model = null, Func<Task>? beforeLoad = null, bool waitUntilServing = true,
        Action<IServiceCollection>? configure = null, IReadOnlyDictionary<string, string>? environment = null)
    {
        var values = new Dictionary<string, string> { ["listen"] = "127.0.0.1:0", ["http-listen"] = "127.0.0.1:0", ["model-name"] = "hash", ["log-level"] = "debug" };
        foreach (var (name, value) in settings ?? new Dictionary<string, string>()) values[name] = value;
        var options = new OptionsReader(values, environment ?? new Dictionary<string, string>(), null).ReadServer();
        model ??= new HashModel(vocab: 1024, contextMax: 4096, pageRows: 32);
        var log = new LogCollector();
        var host = ServerHost.Build(options, LoadAsync, catchSignals: false, services =>
        {
            services.AddLogging(l => l.ClearProviders().AddProvider(log));
            configure?.Invoke(services);
        });
        var server = new TestServer(host, model, log);
        await host.StartAsync();
        if (waitUntilServing) await server.UntilAsync(() => server.Engine.State != ServingState.Loading, "the model is loaded");
        return server;

        async Task<ServedModel> LoadAsync(ILoggerFactory loggers, CancellationToken cancel)
        {
            if (beforeLoad is not null) await beforeLoad();
            string folder = RepositoryPaths.Pebble;
            return ModelHost.Serve(
                options.Model, folder, GenerationDefaults.Read(folder), TokenizerFactory.Load(folder), new DeepSeekV4ChatEncoding(EncodingRelease.Ga),
                new HostMemoryBackend(), model, 0, loggers, TimeProvider.System);
        }
    }

    /// <summary>A connection of its own.</summary>
    public GrpcChannel Channel(ListenerKind kind = ListenerKind.Grpc, Action<GrpcChannelOptions>? configure = null)
    {
        var options = new GrpcChannelOptions { MaxSendMessageSize = null, MaxReceiveMessageSize = null };
        configure?.Invoke(options);
        string scheme = kind == ListenerKind.GrpcTls ? "https" : "http";
        var channel = GrpcChannel.ForAddress($"{scheme}://{Host.Endpoint(kind)}", options);
        _channels.Add(channel);
        return channel;
    }

    /// <summary>Waits for something that happens soon; fails with what was waited for.</summary>
    public async Task UntilAsync(Func<bool> condition, string what, double seconds = 15)
    {
        for (var end = DateTime.UtcNow.AddSeconds(seconds); !condition();)
        {
            if (DateTime.UtcNow > end) Assert.Fail($"Waited {seconds} s for: {what}. Log:\n{Log}");
            await Task.Delay(5);
        }
    }

    /// <summary>No request holds anything.</summary>
    public bool IsIdle
    {
        get
        {
            var stats = Served.Engine.Stats;
            return stats.Running == 0 && stats.Waiting == 0 && stats.Kv.All(p => p.FreePages == p.TotalPages);
        }
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var channel in _channels) channel.Dispose();
        await Host.DisposeAsync();
    }
}

/// <summary>One server for the tests of a class that leave no trace in it.</summary>
public sealed class SharedServer : IAsyncLifetime
{
    internal TestServer Server { get; private set; } = null!;

    public async ValueTask InitializeAsync() => Server = await TestServer.StartAsync();

    public ValueTask DisposeAsync() => Server.DisposeAsync();
}

/// <summary>Keeps what the server logs, for assertions and for the messages of failing tests.</summary>
internal sealed class LogCollector : ILoggerProvider
{
    private readonly List<string> _lines = [];

    public ILogger CreateLogger(string categoryName) => new Collector(this, categoryName);

    public IReadOnlyList<string> Lines
    {
        get
        {
            lock (_lines) return [.. _lines];
        }
    }

    public override string ToString() => string.Join('\n', Lines.TakeLast(60));

    public void Dispose() { }

    private sealed class Collector(LogCollector owner, string category) : ILogger
    {
        public IDisposable? BeginScope<TState>(TState state) where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => true;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter)
        {
            if (logLevel < LogLevel.Debug) return;
            lock (owner._lines) owner._lines.Add($"{logLevel} {category}: {formatter(state, exception)} {exception}");
        }
    }
}

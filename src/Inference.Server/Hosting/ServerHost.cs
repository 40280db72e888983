using System.Net;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using Grpc.HealthCheck;
using Inference.Server.Options;
using Inference.Server.Services;
using Inference.Server.Telemetry;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;
using Microsoft.Extensions.Hosting.Systemd;
using OpenTelemetry.Metrics;
using OpenTelemetry.Trace;

namespace Inference.Server.Hosting;

/// <summary>
/// Composes the server: listeners, gRPC services, health, metrics. Starts listening before the model is loaded, so that health and readiness
/// can say that it is not. Owns the web application.
/// </summary>
internal sealed class ServerHost : IAsyncDisposable
{
    // Every call has ended before the host stops; this is for connections that do not close.
    private static readonly TimeSpan StopLimit = TimeSpan.FromSeconds(5);

    private readonly WebApplication _app;
    private readonly ServerOptions _options;
    private readonly List<(ListenerOptions Wanted, ListenOptions Bound)> _listeners;
    private readonly ILogger _logger;

    private ServerHost(WebApplication app, ServerOptions options, List<(ListenerOptions, ListenOptions)> listeners)
    {
        (_app, _options, _listeners) = (app, options, listeners);
        _logger = app.Services.GetRequiredService<ILogger<ServerHost>>();
    }

    /// <param name="load">Makes the model, in the background.</param>
    /// <param name="catchSignals">False when another owns the process.</param>
    public static ServerHost Build(
        ServerOptions options, Func<ILoggerFactory, CancellationToken, Task<ServedModel>> load, bool catchSignals = true,
        Action<IServiceCollection>? configure = null)
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions { ApplicationName = "inference", ContentRootPath = AppContext.BaseDirectory });
        builder.Configuration.AddInMemoryCollection(options.OpenTelemetry.Select(v => KeyValuePair.Create(v.Key, (string?)v.Value)));
        AddLogging(builder.Logging, options);
        var listeners = AddKestrel(builder.WebHost, options);
        AddServices(builder.Services, options, load, catchSignals);
        configure?.Invoke(builder.Services);
        var app = builder.Build();
        Map(app, options);
        return new ServerHost(app, options, listeners);
    }

    public IServiceProvider Services => _app.Services;

    /// <summary>Where a listener of this kind is bound, once started.</summary>
    public IPEndPoint Endpoint(ListenerKind kind) => _listeners.First(l => l.Wanted.Kind == kind).Bound.IPEndPoint!;

    /// <exception cref="OptionsException">An address cannot be listened on.</exception>
    public async Task StartAsync()
    {
        _ = Services.GetRequiredService<HealthReporter>();
        try
        {
            await _app.StartAsync();
        }
        catch (Exception e) when (e is IOException or SocketException)
        {
            throw new OptionsException([$"{Settings.Listen.CommandLine}, {Settings.TlsListen.CommandLine}, {Settings.HttpListen.CommandLine}: {e.Message}"]);
        }
        WhenStopped = _app.WaitForShutdownAsync();
        foreach (var (wanted, bound) in _listeners)
        {
            ServerLog.Listening(_logger, wanted.Kind.ToString(), bound.IPEndPoint!.ToString());
            if (!wanted.IsLoopback && wanted.Kind != ListenerKind.GrpcTls) ServerLog.RemotePlaintext(_logger, bound.IPEndPoint.ToString());
        }
        Services.GetRequiredService<EngineHost>().Start();
    }

    /// <summary>Completes when the host has stopped.</summary>
    public Task WhenStopped { get; private set; } = Task.CompletedTask;

    /// <summary>Runs until the process is told to stop; the exit code.</summary>
    public async Task<int> RunAsync()
    {
        await StartAsync();
        await WhenStopped;
        int exitCode = Services.GetRequiredService<ShutdownController>().ExitCode;
        await DisposeAsync();
        return exitCode;
    }

    /// <summary>Drains and stops, as a signal would.</summary>
    public async Task StopAsync()
    {
        await Services.GetRequiredService<ShutdownController>().ShutDownAsync("stop");
        await WhenStopped;
    }

    /// <summary>The settings in force, in one line.</summary>
    public void LogSettings(IEnumerable<string> unknownVariables)
    {
        ServerLog.Resolved(_logger, _options.Describe());
        foreach (string name in unknownVariables) ServerLog.UnknownVariable(_logger, name);
    }

    private static void AddLogging(ILoggingBuilder logging, ServerOptions options)
    {
        logging.SetMinimumLevel(options.LogLevel);
        logging.AddFilter("Microsoft", Quieter(options.LogLevel)).AddFilter("Grpc", Quieter(options.LogLevel)).AddFilter("System", Quieter(options.LogLevel));
        // It logs a failed start with its stack; StartAsync says the same in a line.
        logging.AddFilter("Microsoft.Extensions.Hosting", LogLevel.None);
        _ = options.LogFormat switch
        {
            LogFormat.Json => logging.AddJsonConsole(),
            LogFormat.Systemd => logging.AddSystemdConsole(),
            _ => logging.AddSimpleConsole(o => (o.SingleLine, o.TimestampFormat) = (true, "yyyy-MM-ddTHH:mm:ss.fffZ ")),
        };
        // Standard output is for results of verbs.
        logging.Services.Configure<Microsoft.Extensions.Logging.Console.ConsoleLoggerOptions>(o => o.LogToStandardErrorThreshold = LogLevel.Trace);
    }

    private static LogLevel Quieter(LogLevel level) => level <= LogLevel.Debug ? level : level < LogLevel.Warning ? LogLevel.Warning : level;

    private static List<(ListenerOptions, ListenOptions)> AddKestrel(IWebHostBuilder host, ServerOptions options)
    {
        var listeners = new List<(ListenerOptions, ListenOptions)>();
        host.UseKestrelCore();
        host.UseKestrelHttpsConfiguration();
        var https = options.Tls is null ? null : Https(options.Tls);
        host.ConfigureKestrel(kestrel =>
        {
            kestrel.AddServerHeader = false;
            var limits = kestrel.Limits;
            limits.MaxConcurrentConnections = options.ConnectionsMax;
            // The gRPC library limits each message instead.
            limits.MaxRequestBodySize = null;
            limits.RequestHeadersTimeout = TimeSpan.FromSeconds(10);
            limits.MaxRequestHeadersTotalSize = 16 << 10;
            limits.MaxRequestHeaderCount = 64;
            limits.Http2.KeepAlivePingDelay = options.KeepAlivePingDelay;
            limits.Http2.KeepAlivePingTimeout = options.KeepAlivePingTimeout;
            limits.Http2.MaxStreamsPerConnection = options.StreamsPerConnectionMax;
            foreach (var wanted in options.Listeners)
                kestrel.Listen(wanted.Endpoint, bound =>
                {
                    Bind(wanted, bound, https);
                    listeners.Add((wanted, bound));
                });
        });
        return listeners;
    }

    private static void Bind(ListenerOptions wanted, ListenOptions bound, HttpsConnectionAdapterOptions? https)
    {
        bound.Protocols = wanted.Kind == ListenerKind.Http ? HttpProtocols.Http1 : HttpProtocols.Http2;
        ListenerGate.Tag(bound, wanted);
        if (wanted.Kind == ListenerKind.GrpcTls) bound.UseHttps(https!);
    }

    /// <exception cref="OptionsException">The files hold no certificate and key that belong together.</exception>
    private static HttpsConnectionAdapterOptions Https(TlsOptions tls)
    {
        try
        {
            var chain = new X509Certificate2Collection();
            chain.ImportFromPemFile(tls.CertificateFile);
            return new HttpsConnectionAdapterOptions
            {
                ServerCertificate = X509Certificate2.CreateFromPemFile(tls.CertificateFile, tls.KeyFile),
                ServerCertificateChain = chain,
                SslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
                HandshakeTimeout = TimeSpan.FromSeconds(5),
            };
        }
        catch (Exception e) when (e is CryptographicException or ArgumentException or IOException or UnauthorizedAccessException)
        {
            throw new OptionsException([$"{Settings.TlsCertificate.CommandLine}, {Settings.TlsKey.CommandLine}: no certificate with its key in PEM format: {e.Message}"]);
        }
    }

    private static void AddServices(
        IServiceCollection services, ServerOptions options, Func<ILoggerFactory, CancellationToken, Task<ServedModel>> load, bool catchSignals)
    {
        services.AddSingleton(options);
        services.AddSingleton(p =>
        {
            var loggers = p.GetRequiredService<ILoggerFactory>();
            return new EngineHost(cancel => load(loggers, cancel), loggers.CreateLogger<EngineHost>());
        });
        services.AddSingleton<ISystemdNotifier, SystemdNotifier>();
        services.AddSingleton(p => new ShutdownController(
            p.GetRequiredService<EngineHost>(), p.GetRequiredService<IHostApplicationLifetime>(), options, p.GetRequiredService<ISystemdNotifier>(),
            p.GetRequiredService<ILogger<ShutdownController>>())
        {
            CatchSignals = catchSignals,
        });
        services.AddSingleton<IHostLifetime>(p => p.GetRequiredService<ShutdownController>());
        services.AddSingleton<HealthServiceImpl>();
        services.AddSingleton<HealthReporter>();
        services.AddSingleton<EngineWatch>();
        services.AddHostedService(p => p.GetRequiredService<EngineWatch>());
        services.AddSingleton<RpcMetrics>();
        services.AddSingleton<EngineMetrics>();
        services.AddSingleton<CallInterceptor>();
        services.AddGrpc(grpc =>
        {
            grpc.MaxReceiveMessageSize = options.ReceiveBytesMax;
            grpc.MaxSendMessageSize = null;
            grpc.Interceptors.Add<CallInterceptor>();
        });
        services.AddGrpcReflection();
        services.Configure<HostOptions>(o => o.ShutdownTimeout = StopLimit);
        var telemetry = services.AddOpenTelemetry().WithMetrics(metrics =>
        {
            metrics.AddMeter(RpcMetrics.MeterName, EngineMetrics.MeterName, "System.Runtime", "Microsoft.AspNetCore.Server.Kestrel");
            metrics.AddPrometheusExporter();
            if (options.OtlpEndpoint is not null) metrics.AddOtlpExporter();
        });
        if (options.OtlpEndpoint is not null) telemetry.WithTracing(traces => traces.AddSource("Microsoft.AspNetCore").AddOtlpExporter());
    }

    private static void Map(WebApplication app, ServerOptions options)
    {
        app.UseMiddleware<ListenerGate>();
        app.UseMiddleware<EndlessCallsMiddleware>();
        app.UseMiddleware<UnreadableMessages>();
        app.UseRouting();
        app.MapGrpcService<CompletionService>();
        app.MapGrpcService<SessionsService>();
        app.MapGrpcService<TokenizationService>();
        app.MapGrpcService<ModelsService>();
        app.MapGrpcService<HealthServiceImpl>();
        if (options.Reflection != ReflectionMode.Off) app.MapGrpcReflectionService();
        HttpPages.Map(app);
    }

    public ValueTask DisposeAsync() => _app.DisposeAsync();
}

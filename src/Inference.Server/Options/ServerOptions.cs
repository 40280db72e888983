using System.Net;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Server.Hosting;
using Microsoft.Extensions.Logging;

namespace Inference.Server.Options;

/// <summary>
/// Everything an operator can set, read once (<see cref="OptionsReader"/>), checked once, never changed afterwards. "auto" is resolved here or,
/// where it depends on the model or the machine, by <c>EngineHost</c>, and logged in one line.
/// </summary>
internal sealed record ServerOptions
{
    /// <summary>What is loaded, and where it runs.</summary>
    public required ModelOptions Model { get; init; }

    /// <summary>Where the server listens, at least one gRPC listener among them.</summary>
    public required IReadOnlyList<ListenerOptions> Listeners { get; init; }

    /// <summary>PEM files; present when a listener is <see cref="ListenerKind.GrpcTls"/>.</summary>
    public TlsOptions? Tls { get; init; }

    /// <summary>Largest message a client may send, in bytes.</summary>
    public required int ReceiveBytesMax { get; init; }

    /// <summary>A connection silent for so long is pinged.</summary>
    public required TimeSpan KeepAlivePingDelay { get; init; }

    /// <summary>A ping without answer for so long ends the connection.</summary>
    public required TimeSpan KeepAlivePingTimeout { get; init; }

    public required int ConnectionsMax { get; init; }

    public required int StreamsPerConnectionMax { get; init; }

    /// <summary>A client that takes no bytes for so long loses its stream.</summary>
    public required TimeSpan WriteStallLimit { get; init; }

    /// <summary>How long accepted requests may run after the first stop signal.</summary>
    public required TimeSpan DrainLimit { get; init; }

    public required ReflectionMode Reflection { get; init; }

    public required LogLevel LogLevel { get; init; }

    public required LogFormat LogFormat { get; init; }

    /// <summary>Where OpenTelemetry data goes; null = nowhere. From the standard OTEL_EXPORTER_OTLP_ENDPOINT.</summary>
    public Uri? OtlpEndpoint { get; init; }

    /// <summary>All OTEL_ variables, for the OpenTelemetry libraries; they know what the others mean.</summary>
    public required IReadOnlyDictionary<string, string> OpenTelemetry { get; init; }

    /// <summary>One line for the log. What is automatic and depends on the model is decided later; the engine logs it.</summary>
    public string Describe() =>
        $"Settings: model {Model.Folder ?? "built in"}{(Model.Dummy ? " with random weights" : "")}, backend {Model.Backend}, threads {Shown(Model.Threads)}, context {Shown(Model.ContextMax)}, "
        + $"cache bytes {Shown(Model.KvCacheBytes)}, sequences {Model.SequencesMax}, step tokens {Model.StepTokensMax}, "
        + $"rows {(Model.KvFormat is { } f ? KvRowFormats.Names[f] : "auto")}, prefixes {Shown(Model.PrefixesMax)}{(Model.SharePrefixes ? " shared by tenants" : "")}, disk {Model.KvDisk ?? "none"}, queue {Model.QueueMax} of {Shown(Model.QueueTokensMax)} tokens, "
        + $"weights {(Model.TenantWeights.Count == 0 ? "equal" : string.Join(' ', Model.TenantWeights.Select(w => $"{w.Key}={w.Value}")))}, "
        + $"priority {Model.PriorityAhead.TotalSeconds:0.###} s, "
        + $"max tokens {Shown(Model.DefaultMaxTokens)}, receive {ReceiveBytesMax} bytes, ping {KeepAlivePingDelay.TotalSeconds:0.###}+"
        + $"{KeepAlivePingTimeout.TotalSeconds:0.###} s, connections {ConnectionsMax} of {StreamsPerConnectionMax} streams, stall "
        + $"{WriteStallLimit.TotalSeconds:0.###} s, drain {DrainLimit.TotalSeconds:0.###} s, reflection {Reflection}, OTLP {OtlpEndpoint?.ToString() ?? "off"}";

    private static string Shown(long? value) => value is { } v ? v.ToString(System.Globalization.CultureInfo.InvariantCulture) : "auto";
}

/// <param name="Folder">The model's folder; null = the model that ships with the server.</param>
/// <param name="Name">What clients call it; null = the folder's name.</param>
/// <param name="Backend">auto, cpu or reference.</param>
/// <param name="Threads">Threads of the backend; null = the machine's cores.</param>
/// <param name="ContextMax">Most tokens of prompt and answer together; null = what the model allows.</param>
/// <param name="KvCacheBytes">Memory for the cache; null = auto.</param>
/// <param name="SequencesMax">Most requests running at a time.</param>
/// <param name="StepTokensMax">Most tokens of one step.</param>
/// <param name="PrefixesMax">Most prefixes kept for reuse; null = auto.</param>
/// <param name="QueueMax">Most requests waiting; the next is refused.</param>
/// <param name="DefaultMaxTokens">What an unset max_tokens becomes; null = the model's.</param>
/// <param name="DefaultThinking">What an unset thinking mode becomes; null = the model's.</param>
/// <param name="KvFormat">How cached rows are stored; null = as the model was trained.</param>
/// <param name="Dummy">Random weights made in memory; of the folder only the config is needed.</param>
/// <param name="KvDisk">Folder for state that memory has no room for; null = none.</param>
/// <param name="KvDiskBytes">Most bytes of state in it.</param>
internal sealed record ModelOptions(
    string? Folder, string? Name, string Backend, int? Threads, int? ContextMax, long? KvCacheBytes, int SequencesMax, int StepTokensMax, int? PrefixesMax,
    int QueueMax,
    int? DefaultMaxTokens, bool? DefaultThinking, KvRowFormat? KvFormat, bool Dummy = false, string? KvDisk = null, long KvDiskBytes = 0)
{
    public string FolderOrEmbedded => Folder ?? ShippedModels.EmbeddedFolder;

    /// <summary>Most prompt tokens waiting; null = auto.</summary>
    public long? QueueTokensMax { get; init; }

    /// <summary>Tenants resume from each other's kept prefixes.</summary>
    public bool SharePrefixes { get; init; }

    /// <summary>Of the tenants that have another than 1.</summary>
    public IReadOnlyDictionary<string, double> TenantWeights { get; init; } = new Dictionary<string, double>();

    /// <summary>What a level of priority is worth.</summary>
    public TimeSpan PriorityAhead { get; init; } = EngineOptions.PriorityAheadDefault;
}

internal enum ListenerKind
{
    /// <summary>gRPC over HTTP/2 without TLS (prior knowledge).</summary>
    Grpc,
    /// <summary>gRPC over HTTP/2 with TLS.</summary>
    GrpcTls,
    /// <summary>HTTP/1.1: /livez, /readyz, /metrics.</summary>
    Http,
}

/// <param name="Endpoint">Port 0 takes a free one.</param>
internal sealed record ListenerOptions(ListenerKind Kind, IPEndPoint Endpoint)
{
    public bool IsLoopback => IPAddress.IsLoopback(Endpoint.Address);
}

internal sealed record TlsOptions(string CertificateFile, string KeyFile);

/// <summary>Who may ask for the list of services.</summary>
internal enum ReflectionMode
{
    /// <summary>Clients of loopback listeners.</summary>
    Auto,
    On,
    Off,
}

internal enum LogFormat
{
    Simple,
    Json,
    Systemd,
}

/// <summary>The options cannot be used; every fault found, not only the first.</summary>
internal sealed class OptionsException(IReadOnlyList<string> errors) : Exception(string.Join(Environment.NewLine, errors))
{
    public IReadOnlyList<string> Errors { get; } = errors;
}

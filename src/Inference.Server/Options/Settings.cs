namespace Inference.Server.Options;

/// <summary>
/// One thing an operator can set, with its three spellings: <c>--max-receive-bytes</c> on the command line,
/// <c>INFERENCE_MAX_RECEIVE_BYTES</c> in the environment, <c>MaxReceiveBytes</c> in the <c>Inference</c> section of appsettings.json.
/// </summary>
/// <param name="Name">Lower case, words joined by hyphens.</param>
/// <param name="Default">As an operator would write it; null = none.</param>
/// <param name="IsFlag">May stand alone on the command line for true.</param>
internal sealed record Setting(string Name, string? Default, string Help, bool IsFlag = false)
{
    public string CommandLine => "--" + Name;

    public string Environment => OptionsReader.EnvironmentPrefix + Name.Replace('-', '_').ToUpperInvariant();

    public string Json => string.Concat(Name.Split('-').Select(w => char.ToUpperInvariant(w[0]) + w[1..]));
}

/// <summary>All settings: the one table behind the command line, the environment, the file and the help text.</summary>
internal static class Settings
{
    public static readonly Setting Model = new("model", null, "Model folder, or the name of one that ships with the server. Default: pebble, which does.");
    public static readonly Setting Dummy = new(
        "dummy", "false", "Random weights, made in memory from the folder's config.json: the speed and the memory of the real ones, without their words.", IsFlag: true);
    public static readonly Setting ModelName = new("model-name", null, "What clients call the model. Default: the folder's name.");
    public static readonly Setting Backend = new("backend", "auto", "Where the model runs: auto, cpu or reference.");
    public static readonly Setting Threads = new("threads", "auto", "Threads of the backend.");
    public static readonly Setting ContextMax = new("context-max", "auto", "Most tokens of prompt and answer together. auto: what the model allows.");
    public static readonly Setting KvCacheBytes = new("kv-cache-bytes", "auto", "Memory for the cache of sequence state, e.g. 4GiB.");
    public static readonly Setting SequencesMax = new("sequences-max", "32", "Most requests running at a time.");
    public static readonly Setting StepTokensMax = new("step-tokens-max", "256", "Most tokens of one step, over all its requests.");
    public static readonly Setting PrefixesMax = new(
        "prefixes-max", "auto", "Most prompts and answers whose state is kept for requests that begin alike; 0 keeps none. auto: up to 64, in an eighth of the cache.");
    public static readonly Setting SharePrefixes = new(
        "share-prefixes", "false", "Tenants (metadata x-tenant) resume from each other's kept prefixes; then the time to a first token can tell one what another has asked.", IsFlag: true);
    public static readonly Setting KvDisk = new(
        "kv-disk", "none", "Folder for sequence state that memory has no room for, and for saved sessions; private to this server.");
    public static readonly Setting KvDiskBytes = new("kv-disk-bytes", "16GiB", "Most bytes of state in that folder.");
    public static readonly Setting QueueMax = new("queue-max", "256", "Most requests waiting; further ones are refused at once.");
    public static readonly Setting QueueTokensMax = new(
        "queue-tokens-max", "auto", "Most prompt tokens of the requests waiting; at least one full context. auto: four full contexts, at least 1048576.");
    public static readonly Setting TenantWeights = new(
        "tenant-weights", null, "Shares of tenants (metadata x-tenant) where requests have to wait: NAME=WEIGHT, several separated by commas. Others have 1.");
    public static readonly Setting PriorityAhead = new(
        "priority-ahead", "60s", "A level of priority puts a request ahead of its tenant's others that came up to so much earlier.");
    public static readonly Setting KvFormat = new(
        "kv-format", "auto", "How cached rows are stored, and rounded for it: f32, bf16, fp8 (with FP4 index rows), fp8-index8 (with FP8 index rows), "
        + "or auto (fp8 where config.json says that the model was trained with it, else f32).");
    public static readonly Setting DefaultMaxTokens =
        new("default-max-tokens", "auto", "What an unset max_tokens becomes. auto: what generation_config.json says, else 4096.");
    public static readonly Setting DefaultThinking =
        new("default-thinking", "auto", "What an unset thinking mode becomes: on, off, or auto (on; off for the model that ships with the server).");

    /// <summary>What every verb that loads a model takes.</summary>
    public static readonly IReadOnlyList<Setting> OfModel =
        [Model, ModelName, Backend, Threads, ContextMax, KvCacheBytes, SequencesMax, StepTokensMax, PrefixesMax, SharePrefixes, KvDisk, KvDiskBytes,
            QueueMax, QueueTokensMax, TenantWeights, PriorityAhead, DefaultMaxTokens, DefaultThinking, KvFormat, Dummy];

    /// <summary>What a verb takes that loads a model for one user.</summary>
    public static readonly IReadOnlyList<Setting> OfLocalModel = [Model, Dummy, Backend, Threads, ContextMax, KvCacheBytes, KvDisk, KvDiskBytes, KvFormat];

    public static readonly Setting Listen =
        new("listen", "127.0.0.1:50051", "gRPC without TLS: address:port, several separated by commas; none to switch it off.");
    public static readonly Setting TlsListen = new("tls-listen", "none", "gRPC with TLS: address:port, several separated by commas.");
    public static readonly Setting TlsCertificate = new("tls-certificate", null, "PEM file with the server's certificate and its chain.");
    public static readonly Setting TlsKey = new("tls-key", null, "PEM file with the certificate's private key.");
    public static readonly Setting HttpListen = new("http-listen", "127.0.0.1:50080", "HTTP/1.1 for /livez, /readyz and /metrics; none to switch it off.");
    public static readonly Setting AllowRemotePlaintext =
        new("allow-remote-plaintext", "false", "Let listeners without TLS be reached from other machines.", IsFlag: true);
    public static readonly Setting MaxReceiveBytes = new("max-receive-bytes", "64MiB", "Largest message a client may send.");
    public static readonly Setting KeepAlivePingDelay = new("keep-alive-ping-delay", "20s", "Ping a connection that was silent for so long.");
    public static readonly Setting KeepAlivePingTimeout = new("keep-alive-ping-timeout", "10s", "End a connection whose ping got no answer for so long.");
    public static readonly Setting ConnectionsMax = new("connections-max", "1024", "Most open connections.");
    public static readonly Setting StreamsPerConnectionMax = new("streams-per-connection-max", "100", "Most calls at a time on one connection.");
    public static readonly Setting WriteStallLimit = new("write-stall-limit", "60s", "A client that takes no bytes for so long loses its stream.");
    public static readonly Setting DrainLimit = new("drain-limit", "300s", "How long accepted requests may run after the first stop signal.");
    public static readonly Setting Reflection = new("reflection", "auto", "gRPC reflection: on, off, or auto (clients of loopback listeners).");
    public static readonly Setting LogLevel = new("log-level", "information", "trace, debug, information, warning, error or critical.");
    public static readonly Setting LogFormat = new("log-format", "simple", "simple, json or systemd.");

    /// <summary>What <c>serve</c> takes besides <see cref="OfModel"/>.</summary>
    public static readonly IReadOnlyList<Setting> OfServer =
    [
        Listen, TlsListen, TlsCertificate, TlsKey, HttpListen, AllowRemotePlaintext, MaxReceiveBytes, KeepAlivePingDelay, KeepAlivePingTimeout,
        ConnectionsMax, StreamsPerConnectionMax, WriteStallLimit, DrainLimit, Reflection, LogLevel, LogFormat,
    ];

    public static IEnumerable<Setting> All => OfModel.Concat(OfServer);
}

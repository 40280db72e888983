using System.Globalization;
using System.Net;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Server.Hosting;
using Microsoft.Extensions.Configuration;
using Microsoft.Extensions.Logging;

namespace Inference.Server.Options;

/// <summary>
/// Reads every setting from the command line, else the environment, else appsettings.json, else its default, and makes the immutable options.
/// Collects all faults and reports them together; each names the setting, where its value came from, and what would be right.
/// It never guesses: a value that is not understood is a fault, and so is a key of the file that no setting has.
/// </summary>
internal sealed class OptionsReader
{
    public const string EnvironmentPrefix = "INFERENCE_";
    private const string JsonSection = "Inference";

    private readonly IReadOnlyDictionary<string, string> _commandLine;
    private readonly IReadOnlyDictionary<string, string> _environment;
    private readonly Dictionary<string, string> _file = new(StringComparer.OrdinalIgnoreCase);
    private readonly string _fileName;
    private readonly List<string> _errors = [];

    /// <param name="commandLine">Values by <see cref="Setting.Name"/>.</param>
    /// <param name="environment">All variables of the process.</param>
    /// <param name="configurationFile">appsettings.json; null = none.</param>
    public OptionsReader(
        IReadOnlyDictionary<string, string> commandLine, IReadOnlyDictionary<string, string> environment, string? configurationFile)
    {
        (_commandLine, _environment, _fileName) = (commandLine, environment, configurationFile ?? "");
        if (configurationFile is not null) ReadFile(configurationFile);
    }

    /// <summary>The variables of this process.</summary>
    public static IReadOnlyDictionary<string, string> ProcessEnvironment()
    {
        var variables = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (System.Collections.DictionaryEntry entry in Environment.GetEnvironmentVariables())
            variables[(string)entry.Key] = (string?)entry.Value ?? "";
        return variables;
    }

    /// <summary>The file beside the program, if it is there.</summary>
    public static string? DefaultConfigurationFile()
    {
        string path = Path.Combine(AppContext.BaseDirectory, "appsettings.json");
        return File.Exists(path) ? path : null;
    }

    /// <exception cref="OptionsException">With every fault found.</exception>
    public ServerOptions ReadServer()
    {
        var options = Server();
        return _errors.Count == 0 ? options : throw new OptionsException(_errors);
    }

    /// <exception cref="OptionsException">With every fault found.</exception>
    public ModelOptions ReadModel()
    {
        var options = Model();
        return _errors.Count == 0 ? options : throw new OptionsException(_errors);
    }

    /// <summary>Variables that begin like ours and name no setting: most likely misspelt.</summary>
    public IEnumerable<string> UnknownEnvironmentVariables() =>
        _environment.Keys.Where(k => k.StartsWith(EnvironmentPrefix, StringComparison.Ordinal) && Settings.All.All(s => s.Environment != k)).Order();

    private ServerOptions Server()
    {
        var listeners = Listeners();
        var options = new ServerOptions
        {
            Model = Model(),
            Listeners = listeners,
            Tls = Tls(listeners),
            ReceiveBytesMax = (int)Bytes(Settings.MaxReceiveBytes, 1024, 1 << 30)!.Value,
            KeepAlivePingDelay = Duration(Settings.KeepAlivePingDelay, TimeSpan.FromSeconds(1), TimeSpan.FromHours(1)),
            KeepAlivePingTimeout = Duration(Settings.KeepAlivePingTimeout, TimeSpan.FromSeconds(1), TimeSpan.FromHours(1)),
            ConnectionsMax = Int(Settings.ConnectionsMax, 1, 1_000_000)!.Value,
            StreamsPerConnectionMax = Int(Settings.StreamsPerConnectionMax, 1, 100_000)!.Value,
            WriteStallLimit = Duration(Settings.WriteStallLimit, TimeSpan.FromMilliseconds(100), TimeSpan.FromDays(1)),
            DrainLimit = Duration(Settings.DrainLimit, TimeSpan.Zero, TimeSpan.FromDays(1)),
            Reflection = Choice<ReflectionMode>(Settings.Reflection),
            LogLevel = Choice<LogLevel>(Settings.LogLevel),
            LogFormat = Choice<LogFormat>(Settings.LogFormat),
            OtlpEndpoint = OtlpEndpoint(),
            OpenTelemetry = _environment.Where(v => v.Key.StartsWith("OTEL_", StringComparison.Ordinal)).ToDictionary(),
        };
        return options;
    }

    private ModelOptions Model()
    {
        string? folder = Text(Settings.Model);
        if (folder is not null && !Directory.Exists(folder) && ShippedModels.Find(folder) is { } shipped) folder = shipped;
        if (folder is not null && !Directory.Exists(folder))
            Fault(Settings.Model, $"there is no folder '{folder}'; give one that holds config.json and the weights, or one of {string.Join(", ", ShippedModels.Names)}");
        string? name = Text(Settings.ModelName);
        if (name is not null && (name.Length > 128 || name.Any(c => c is <= ' ' or > '~')))
            Fault(Settings.ModelName, "a name has at most 128 printable ASCII characters and no spaces");
        return new ModelOptions(
            folder, name, OneOf(Settings.Backend, "auto", "cpu", "reference"), Int(Settings.Threads, 1, 4096),
            Int(Settings.ContextMax, 1, int.MaxValue), Bytes(Settings.KvCacheBytes, 1 << 20, long.MaxValue),
            Int(Settings.SequencesMax, 1, 65_536)!.Value, Int(Settings.StepTokensMax, 1, 1 << 20)!.Value,
            Int(Settings.PrefixesMax, 0, 1 << 20),
            Int(Settings.QueueMax, 1, 1 << 20)!.Value, Int(Settings.DefaultMaxTokens, 1, int.MaxValue),
            Switch(Settings.DefaultThinking), KvFormat(), Flag(Settings.Dummy), KvDisk(), Bytes(Settings.KvDiskBytes, 1 << 20, long.MaxValue)!.Value)
        {
            QueueTokensMax = Number(Settings.QueueTokensMax, 1, long.MaxValue, NoUnit),
            TenantWeights = TenantWeights(),
            SharePrefixes = Flag(Settings.SharePrefixes),
            PriorityAhead = Duration(Settings.PriorityAhead, TimeSpan.Zero, TimeSpan.FromDays(1)),
        };
    }

    private KvRowFormat? KvFormat()
    {
        string text = OneOf(Settings.KvFormat, ["auto", .. KvRowFormats.Names.Values]);
        return text == "auto" ? null : KvRowFormats.Names.First(n => n.Value == text).Key;
    }

    private string? KvDisk() => Text(Settings.KvDisk) is { } folder && folder != "none" ? Path.GetFullPath(folder) : null;

    private Dictionary<string, double> TenantWeights()
    {
        var weights = new Dictionary<string, double>(StringComparer.Ordinal);
        foreach (string part in Text(Settings.TenantWeights)?.Split(',', StringSplitOptions.TrimEntries) ?? [])
        {
            int equals = part.LastIndexOf('=');
            string name = equals < 0 ? part : part[..equals];
            if (name.Length == 0 || !Services.CallTenant.IsName(name) || !double.TryParse(part.AsSpan(equals + 1), NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double weight)
                || weight is not (>= EngineOptions.TenantWeightMin and <= EngineOptions.TenantWeightMax))
                Fault(Settings.TenantWeights, $"'{part}' is not a tenant's name and a weight from {EngineOptions.TenantWeightMin} to {EngineOptions.TenantWeightMax}, such as gold=4");
            else if (!weights.TryAdd(name, weight)) Fault(Settings.TenantWeights, $"'{name}' has two weights");
        }
        return weights;
    }

    private bool? Switch(Setting setting) => OneOf(setting, "auto", "on", "off") switch { "on" => true, "off" => false, _ => null };

    private List<ListenerOptions> Listeners()
    {
        var listeners = new List<ListenerOptions>();
        Add(Settings.Listen, ListenerKind.Grpc);
        Add(Settings.TlsListen, ListenerKind.GrpcTls);
        Add(Settings.HttpListen, ListenerKind.Http);
        if (listeners.All(l => l.Kind == ListenerKind.Http))
            Fault(Settings.Listen, $"no gRPC listener is left; give this or {Settings.TlsListen.CommandLine} an address:port");
        foreach (var (setting, endpoint) in Remote())
            Fault(setting, $"{endpoint} has no TLS and can be reached from other machines; use a loopback address, " +
                $"{Settings.TlsListen.CommandLine}, or {Settings.AllowRemotePlaintext.CommandLine} if that is what you want");
        foreach (var twice in listeners.Where(l => l.Endpoint.Port != 0).GroupBy(l => l.Endpoint).Where(g => g.Count() > 1))
            Fault(Settings.Listen, $"{twice.Key} is given to {twice.Count()} listeners");
        return listeners;

        void Add(Setting setting, ListenerKind kind)
        {
            string value = Text(setting) ?? "none";
            if (value == "none") return;
            foreach (string part in value.Split(',', StringSplitOptions.TrimEntries))
            {
                if (ParseEndpoint(part) is { } endpoint) listeners.Add(new(kind, endpoint));
                else Fault(setting, $"'{part}' is not an address and port, such as 127.0.0.1:50051, [::1]:50051 or localhost:50051");
            }
        }

        IEnumerable<(Setting, IPEndPoint)> Remote() =>
            Flag(Settings.AllowRemotePlaintext)
                ? []
                : listeners.Where(l => l.Kind != ListenerKind.GrpcTls && !l.IsLoopback)
                    .Select(l => (l.Kind == ListenerKind.Http ? Settings.HttpListen : Settings.Listen, l.Endpoint));
    }

    private static IPEndPoint? ParseEndpoint(string text)
    {
        if (text.StartsWith("localhost:", StringComparison.OrdinalIgnoreCase)) text = "127.0.0.1:" + text["localhost:".Length..];
        int colon = text.LastIndexOf(':');
        bool hasPort = colon > 0 && (text[colon - 1] == ']' || text.IndexOf(':') == colon);
        return hasPort && IPEndPoint.TryParse(text, out var endpoint) ? endpoint : null;
    }

    private TlsOptions? Tls(List<ListenerOptions> listeners)
    {
        string? certificate = Text(Settings.TlsCertificate), key = Text(Settings.TlsKey);
        bool wanted = listeners.Any(l => l.Kind == ListenerKind.GrpcTls);
        foreach (var (setting, file) in new[] { (Settings.TlsCertificate, certificate), (Settings.TlsKey, key) })
        {
            if (file is null && wanted) Fault(setting, $"{Settings.TlsListen.CommandLine} needs a PEM file here");
            if (file is not null && !File.Exists(file)) Fault(setting, $"there is no file '{file}'");
        }
        return wanted && certificate is not null && key is not null ? new TlsOptions(certificate, key) : null;
    }

    private Uri? OtlpEndpoint()
    {
        const string name = "OTEL_EXPORTER_OTLP_ENDPOINT";
        if (!_environment.TryGetValue(name, out string? text) || text.Length == 0) return null;
        if (Uri.TryCreate(text, UriKind.Absolute, out var uri) && uri.Scheme is "http" or "https") return uri;
        _errors.Add($"{name}: '{text}' is not an http or https address");
        return null;
    }

    private string? Text(Setting setting)
    {
        var (value, _) = Find(setting);
        return string.IsNullOrEmpty(value) ? null : value;
    }

    private bool Flag(Setting setting)
    {
        string text = Text(setting) ?? "false";
        if (bool.TryParse(text, out bool value)) return value;
        Fault(setting, $"'{text}' is neither true nor false");
        return false;
    }

    /// <summary>Null means auto, which only settings whose default is auto take.</summary>
    private int? Int(Setting setting, int min, int max) => (int?)Number(setting, min, max, NoUnit);

    private long? Bytes(Setting setting, long min, long max) => Number(setting, min, max, ByteUnit);

    private long? Number(Setting setting, long min, long max, Func<string, long?> unit)
    {
        string text = Text(setting) ?? setting.Default!;
        if (text == "auto" && setting.Default == "auto") return null;
        int digits = text.TakeWhile(char.IsAsciiDigit).Count();
        if (digits > 0 && long.TryParse(text.AsSpan(0, digits), NumberStyles.None, CultureInfo.InvariantCulture, out long value)
            && unit(text[digits..].Trim()) is { } factor && value <= long.MaxValue / factor && value * factor >= min && value * factor <= max)
            return value * factor;
        string auto = setting.Default == "auto" ? "auto or " : "";
        string units = unit == ByteUnit ? " (B, KiB, MiB, GiB, TiB may follow)" : "";
        Fault(setting, $"'{text}' is not {auto}a whole number from {min} to {max}{units}");
        return setting.Default == "auto" ? null : min;
    }

    private static readonly Func<string, long?> NoUnit = static u => u.Length == 0 ? 1 : null;

    private static readonly Func<string, long?> ByteUnit = static u => u switch
    {
        "" or "B" => 1,
        "KiB" => 1L << 10,
        "MiB" => 1L << 20,
        "GiB" => 1L << 30,
        "TiB" => 1L << 40,
        _ => null,
    };

    private TimeSpan Duration(Setting setting, TimeSpan min, TimeSpan max)
    {
        string text = Text(setting) ?? setting.Default!;
        string number = text.TrimEnd('m', 's', 'h');
        double? unit = text[number.Length..] switch { "" or "s" => 1, "ms" => 0.001, "m" => 60, "h" => 3600, _ => null };
        if (unit is { } seconds && double.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out double value)
            && value * seconds >= min.TotalSeconds && value * seconds <= max.TotalSeconds)
            return TimeSpan.FromSeconds(value * seconds);
        Fault(setting, $"'{text}' is not a time from {min.TotalSeconds:0.###}s to {max.TotalSeconds:0.###}s (ms, s, m, h may follow)");
        return min;
    }

    private T Choice<T>(Setting setting) where T : struct, Enum
    {
        string[] names = Enum.GetNames<T>();
        string text = OneOf(setting, [.. names.Select(n => n.ToLowerInvariant())]);
        return Enum.Parse<T>(names.First(n => n.Equals(text, StringComparison.OrdinalIgnoreCase)));
    }

    private string OneOf(Setting setting, params string[] allowed)
    {
        string text = (Text(setting) ?? setting.Default!).ToLowerInvariant();
        if (allowed.Contains(text)) return text;
        Fault(setting, $"'{text}' is none of {string.Join(", ", allowed)}");
        return allowed[0];
    }

    private (string? Value, string Source) Find(Setting setting)
    {
        if (_commandLine.TryGetValue(setting.Name, out string? value)) return (value, setting.CommandLine);
        if (_environment.TryGetValue(setting.Environment, out value)) return (value, setting.Environment);
        if (_file.TryGetValue(setting.Json, out value)) return (value, $"{JsonSection}:{setting.Json} in {_fileName}");
        return (setting.Default, setting.CommandLine);
    }

    private void Fault(Setting setting, string message) => _errors.Add($"{Find(setting).Source}: {message}");

    private void ReadFile(string path)
    {
        IConfigurationRoot root;
        try
        {
            root = new ConfigurationBuilder().AddJsonFile(Path.GetFullPath(path), optional: false).Build();
        }
        catch (Exception e) when (e is IOException or InvalidDataException or FormatException or UnauthorizedAccessException)
        {
            _errors.Add($"{path}: cannot be read as JSON: {(e.InnerException ?? e).Message}");
            return;
        }
        foreach (var entry in root.GetSection(JsonSection).GetChildren())
        {
            if (Settings.All.All(s => !s.Json.Equals(entry.Key, StringComparison.OrdinalIgnoreCase)))
                _errors.Add($"{JsonSection}:{entry.Key} in {path}: no such setting");
            _file[entry.Key] = entry.Value ?? string.Join(',', entry.GetChildren().Select(c => c.Value));
        }
    }
}

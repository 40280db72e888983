using System.Diagnostics;
using System.Diagnostics.Metrics;
using Grpc.Core;

namespace Inference.Server.Telemetry;

/// <summary>What OpenTelemetry's conventions ask of an RPC server; the gRPC library has no meter of its own. Any thread.</summary>
internal sealed class RpcMetrics
{
    public const string MeterName = "Inference.Server";

    // Seconds. Unary calls take milliseconds, streams of long answers minutes.
    private static readonly double[] DurationBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];

    private readonly Histogram<double> _duration;
    private readonly UpDownCounter<long> _active;

    public RpcMetrics(IMeterFactory meters)
    {
        var meter = meters.Create(MeterName);
        _duration = meter.CreateHistogram(
            "rpc.server.call.duration", "s", "Time from a call's start to its status.",
            advice: new InstrumentAdvice<double> { HistogramBucketBoundaries = DurationBuckets });
        _active = meter.CreateUpDownCounter<long>("inference.server.active_calls", "{call}", "Calls whose status has not been sent.");
    }

    public void Started(string method) => _active.Add(1, Tags(method));

    public void Ended(string method, StatusCode status, TimeSpan duration)
    {
        _active.Add(-1, Tags(method));
        var tags = Tags(method);
        tags.Add("rpc.response.status_code", Name(status));
        _duration.Record(duration.TotalSeconds, tags);
    }

    private static TagList Tags(string method) => new() { { "rpc.system.name", "grpc" }, { "rpc.method", method.TrimStart('/') } };

    /// <summary>As gRPC spells it: INVALID_ARGUMENT.</summary>
    internal static string Name(StatusCode status)
    {
        if (status == StatusCode.OK) return "OK";
        string name = status.ToString();
        return string.Concat(name.Select((c, i) => i > 0 && char.IsUpper(c) ? "_" + c : char.ToUpperInvariant(c).ToString()));
    }
}

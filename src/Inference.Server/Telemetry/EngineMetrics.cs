using System.Diagnostics;
using System.Diagnostics.Metrics;
using Inference.Runtime.Engine;
using Inference.Server.Hosting;

namespace Inference.Server.Telemetry;

/// <summary>
/// What the engine does, as meters: gauges and counters read the engine's own statistics when someone asks, times are recorded as
/// requests end. Names follow OpenTelemetry's conventions for generative servers where there are any (gen_ai.server.*). No label holds
/// anything a client wrote.
/// </summary>
internal sealed class EngineMetrics
{
    public const string MeterName = "Inference.Engine";

    private static readonly double[] FirstTokenBuckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600];
    private static readonly double[] PerTokenBuckets = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5];

    private readonly EngineHost _host;
    private readonly Histogram<double> _firstToken, _perToken, _request, _queue;
    private readonly Counter<long> _cachedTokens;

    public EngineMetrics(IMeterFactory meters, EngineHost host)
    {
        _host = host;
        var meter = meters.Create(MeterName);
        _firstToken = Times(meter, "gen_ai.server.time_to_first_token", "From a request's arrival to its first token.", FirstTokenBuckets);
        _perToken = Times(meter, "gen_ai.server.time_per_output_token", "Mean time per token after the first.", PerTokenBuckets);
        _request = Times(meter, "gen_ai.server.request.duration", "From a request's arrival to its end.", FirstTokenBuckets);
        _queue = Times(meter, "inference.queue.duration", "From a request's arrival to its first step.", FirstTokenBuckets);
        _cachedTokens = meter.CreateCounter<long>("inference.tokens.cached", "{token}", "Prompt tokens taken from the cache instead of computed.");
        Gauge(meter, "inference.requests.waiting", "{request}", "Requests in the queue.", s => s.Waiting);
        Gauge(meter, "inference.requests.running", "{request}", "Requests that hold cache pages.", s => s.Running);
        Gauge(meter, "inference.requests.stalled", "{request}", "Requests that rest because their reader does not read.", s => s.Stalled);
        Count(meter, "inference.requests.accepted", "{request}", "Requests the engine took.", s => s.Accepted);
        Count(meter, "inference.tokens.prompt", "{token}", "Prompt tokens computed.", s => s.PromptTokens);
        Count(meter, "inference.tokens.recomputed", "{token}", "Tokens computed again after a preemption.", s => s.RecomputedTokens);
        Count(meter, "inference.tokens.output", "{token}", "Tokens generated.", s => s.OutputTokens);
        Count(meter, "inference.steps", "{step}", "Steps of the engine.", s => s.Steps);
        Count(meter, "inference.preemptions", "{request}", "Requests whose pages were taken away.", s => s.Preemptions);
        meter.CreateObservableGauge("inference.step.last_duration", () => Stats(s => (double)s.LastStepDuration.TotalSeconds), "s", "Of the last step.");
        meter.CreateObservableGauge("inference.state", State, "{state}", "1 for the state the server is in, 0 for the others.");
        meter.CreateObservableGauge("inference.stuck", () => host.IsStuck ? 1L : 0L, null, "1 while the engine has work and does not get on.");
        meter.CreateObservableGauge("inference.kv.pages.used", () => Pages(p => p.TotalPages - p.FreePages), "{page}", "Cache pages in use.");
        meter.CreateObservableGauge("inference.kv.pages.total", () => Pages(p => p.TotalPages), "{page}", "Cache pages there are.");
        Disk(meter.CreateObservableGauge, "inference.kv.disk.bytes", "By", "State on disk.", d => d.Bytes);
        Disk(meter.CreateObservableGauge, "inference.kv.disk.waiting", "{prefix}", "Prefixes that wait to be written to disk.", d => d.Waiting);
        Disk(meter.CreateObservableCounter, "inference.kv.disk.written", "By", "State written to disk.", d => d.BytesWritten);
        Disk(meter.CreateObservableCounter, "inference.kv.disk.read", "By", "State read from disk.", d => d.BytesRead);
        Disk(meter.CreateObservableCounter, "inference.kv.disk.failures", "{operation}", "Writes and reads that failed.", d => d.WriteFailures + d.ReadsFailed);
        Disk(meter.CreateObservableCounter, "inference.kv.disk.unusable", "{extent}", "Files found damaged, foreign or of another model, and dropped.", d => d.Unusable);
        meter.CreateObservableCounter("inference.requests.finished", Finished, "{request}", "Requests ended, by reason.");
    }

    /// <summary>A request has ended.</summary>
    public void Ended(GenerationFinished e)
    {
        _request.Record(e.Timings.Total.TotalSeconds, Reason(e.Reason));
        _queue.Record(e.Timings.Queue.TotalSeconds);
        _cachedTokens.Add(e.Usage.CachedTokens);
        if (e.Usage.OutputTokens == 0) return;
        _firstToken.Record(e.Timings.TimeToFirstToken.TotalSeconds);
        if (e.Usage.OutputTokens > 1)
            _perToken.Record((e.Timings.Total - e.Timings.TimeToFirstToken).TotalSeconds / (e.Usage.OutputTokens - 1));
    }

    private static TagList Reason(FinishReason reason) => new() { { "reason", Snake(reason.ToString()) } };

    private static string Snake(string name) =>
        string.Concat(name.Select((c, i) => char.IsUpper(c) ? (i > 0 ? "_" : "") + char.ToLowerInvariant(c) : c.ToString()));

    private static Histogram<double> Times(Meter meter, string name, string help, double[] buckets) =>
        meter.CreateHistogram(name, "s", help, advice: new InstrumentAdvice<double> { HistogramBucketBoundaries = buckets });

    private void Gauge(Meter meter, string name, string unit, string help, Func<EngineStats, long> value) =>
        meter.CreateObservableGauge(name, () => Stats(value), unit, help);

    private void Count(Meter meter, string name, string unit, string help, Func<EngineStats, long> value) =>
        meter.CreateObservableCounter(name, () => Stats(value), unit, help);

    private IEnumerable<Measurement<T>> Stats<T>(Func<EngineStats, T> value) where T : struct =>
        _host.Loaded is { } model ? [new Measurement<T>(value(model.Engine.Stats))] : [];

    private delegate Instrument Create(string name, Func<IEnumerable<Measurement<long>>> values, string unit, string help);

    private void Disk(Create create, string name, string unit, string help, Func<KvDiskStats, long> value) =>
        create(name, () => _host.Loaded?.Engine.Stats.Disk is { } disk ? [new Measurement<long>(value(disk))] : [], unit, help);

    private IEnumerable<Measurement<long>> Pages(Func<KvPoolStats, long> value) =>
        _host.Loaded is { } model
            ? model.Engine.Stats.Kv.Select(p => new Measurement<long>(value(p), new KeyValuePair<string, object?>("pool", p.Name)))
            : [];

    private IEnumerable<Measurement<long>> Finished() =>
        _host.Loaded is { } model
            ? model.Engine.Stats.Finished.Select((count, i) => new Measurement<long>(count, Reason((FinishReason)i)))
            : [];

    private IEnumerable<Measurement<long>> State() =>
        Enum.GetValues<ServingState>().Select(s => new Measurement<long>(s == _host.State ? 1 : 0, new KeyValuePair<string, object?>("state", Snake(s.ToString()))));
}

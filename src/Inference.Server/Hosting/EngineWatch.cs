using System.Diagnostics;
using Inference.Runtime.Engine;

namespace Inference.Server.Hosting;

/// <summary>
/// Looks every second whether the engine, having work, gets on (<see cref="ProgressWatch"/>). If it does not, the server says that it is not ready,
/// in the log, on /readyz, in health and as a metric, so that nobody sends it more; requests that it has wait on, and so does the
/// process: what looks stuck may be slow, and then it is ready again.
/// </summary>
internal sealed class EngineWatch(EngineHost host, ILogger<EngineWatch> logger) : BackgroundService
{
    /// <summary>Without a step, an ending or a byte from disk, in spite of work.</summary>
    public static readonly TimeSpan Limit = TimeSpan.FromSeconds(60);

    private static readonly TimeSpan Interval = TimeSpan.FromSeconds(1);

    private readonly Lock _lock = new();
    private readonly ProgressWatch _watch = new(Limit);
    private TimeSpan _last;

    /// <param name="now">Any clock that only goes on; an earlier time than the last is ignored.</param>
    public void Look(TimeSpan now)
    {
        if (host.Loaded?.Engine is not { } engine) return;
        lock (_lock)
        {
            if (now < _last) return;
            _last = now;
            var stuck = host.State is ServingState.Serving ? _watch.StuckFor(engine.Stats, engine.Queued, now) : null;
            if (!host.MarkStuck(stuck is not null)) return;
            if (stuck is { } time) ServerLog.EngineStuck(logger, time.TotalSeconds, engine.Stats.Running, engine.Stats.Waiting);
            else ServerLog.EngineGetsOn(logger);
        }
    }

    protected override async Task ExecuteAsync(CancellationToken stoppingToken)
    {
        long start = Stopwatch.GetTimestamp();
        using var timer = new PeriodicTimer(Interval);
        try
        {
            while (await timer.WaitForNextTickAsync(stoppingToken)) Look(Stopwatch.GetElapsedTime(start));
        }
        catch (OperationCanceledException)
        {
            // The server stops.
        }
    }
}

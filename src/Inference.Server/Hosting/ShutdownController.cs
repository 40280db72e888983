using System.Diagnostics;
using System.Runtime.InteropServices;
using Inference.Runtime.Engine;
using Inference.Server.Options;
using Microsoft.Extensions.Hosting.Systemd;

namespace Inference.Server.Hosting;

/// <summary>Exit codes of <c>serve</c>; service managers decide by them.</summary>
internal static class ExitCode
{
    public const int Stopped = 0;
    /// <summary>The model could not be loaded or the engine broke.</summary>
    public const int EngineFailed = 70;
    /// <summary>The configuration cannot be used.</summary>
    public const int Configuration = 78;
    /// <summary>128 + number of the signal that ended a drain.</summary>
    public const int Signalled = 128;
}

/// <summary>
/// The process's way out, in place of the host's own: at the first SIGTERM, SIGINT or SIGQUIT
///   1. the server says that it is not ready (health, /readyz) and refuses new requests, while it keeps listening, so that clients hear why;
///   2. accepted requests run to their end, and their clients read it, for at most the drain limit;
///   3. calls without an end (health watches, reflection) are told to end;
///   4. the host stops.
/// A second signal ends the process at once. A broken engine goes the same way without waiting, with a non-zero exit code.
/// </summary>
internal sealed class ShutdownController(
    EngineHost engine, IHostApplicationLifetime lifetime, ServerOptions options, ISystemdNotifier systemd, ILogger<ShutdownController> logger)
    : IHostLifetime, IDisposable
{
    // At least this long for the last bytes of streams that the engine has ended, and for calls without an end.
    private static readonly TimeSpan LastBytesLimit = TimeSpan.FromSeconds(5);

    // So long at least health watches live on after they were told that the server is not ready, so that they can pass it on.
    private static readonly TimeSpan WatchNotice = TimeSpan.FromMilliseconds(500);

    // Some senders signal a process and its group: one wish, two signals.
    private static readonly TimeSpan SameSignal = TimeSpan.FromMilliseconds(250);

    private readonly List<PosixSignalRegistration> _signals = [];
    private readonly Lock _lock = new();
    private long _firstSignal;
    private readonly CancellationTokenSource _endless = new();
    private int _stopping;

    /// <summary>Of the process, once the host has stopped.</summary>
    public int ExitCode { get; private set; } = Hosting.ExitCode.Stopped;

    /// <summary>Cancelled when calls that have no end of their own must end.</summary>
    public CancellationToken EndlessCallsEnd => _endless.Token;

    /// <summary>Calls that come to an end by themselves.</summary>
    public OpenCalls Calls { get; } = new();

    /// <summary>Calls that last until someone ends them.</summary>
    public OpenCalls EndlessCalls { get; } = new();

    /// <summary>False where another owns the process, as in tests.</summary>
    public bool CatchSignals { get; init; } = true;

    public Task WaitForStartAsync(CancellationToken cancellationToken)
    {
        if (CatchSignals)
            foreach (var signal in (PosixSignal[])[PosixSignal.SIGTERM, PosixSignal.SIGINT, PosixSignal.SIGQUIT])
                _signals.Add(PosixSignalRegistration.Create(signal, OnSignal));
        engine.StateChanged += state =>
        {
            if (state == ServingState.Serving) systemd.Notify(ServiceState.Ready);
        };
        _ = EndWhenBrokenAsync();
        return Task.CompletedTask;
    }

    private void OnSignal(PosixSignalContext context)
    {
        context.Cancel = true;
        lock (_lock)
        {
            if (_firstSignal == 0)
            {
                _firstSignal = Stopwatch.GetTimestamp();
                _ = ShutDownAsync(context.Signal.ToString());
                return;
            }
            if (Stopwatch.GetElapsedTime(_firstSignal) < SameSignal) return;
        }
        ServerLog.SecondSignal(logger, context.Signal.ToString());
        Environment.Exit(Hosting.ExitCode.Signalled + Number(context.Signal));
    }

    private static int Number(PosixSignal signal) => signal switch { PosixSignal.SIGINT => 2, PosixSignal.SIGQUIT => 3, _ => 15 };

    /// <summary>Steps 1 to 4.</summary>
    public async Task ShutDownAsync(string cause)
    {
        if (Interlocked.Exchange(ref _stopping, 1) == 1) return;
        long start = Stopwatch.GetTimestamp();
        ServerLog.DrainStarted(logger, cause, options.DrainLimit.TotalSeconds);
        systemd.Notify(ServiceState.Stopping);
        await engine.DrainAsync(options.DrainLimit);
        await EndCallsAsync(options.DrainLimit - Stopwatch.GetElapsedTime(start));
        ServerLog.Drained(logger, (long)Stopwatch.GetElapsedTime(start).TotalMilliseconds);
        lifetime.StopApplication();
    }

    private async Task EndWhenBrokenAsync()
    {
        await engine.WhenFailed;
        ExitCode = engine.Failure is EngineOptionsException or OptionsException ? Hosting.ExitCode.Configuration : Hosting.ExitCode.EngineFailed;
        Volatile.Write(ref _stopping, 1);
        await EndCallsAsync(TimeSpan.Zero);
        lifetime.StopApplication();
    }

    private async Task EndCallsAsync(TimeSpan left)
    {
        var notice = Task.Delay(WatchNotice);
        await Calls.WhenNoneAsync(left > LastBytesLimit ? left : LastBytesLimit);
        if (EndlessCalls.Count > 0) await notice;
        await _endless.CancelAsync();
        await EndlessCalls.WhenNoneAsync(LastBytesLimit);
    }

    public Task StopAsync(CancellationToken cancellationToken) => Task.CompletedTask;

    public void Dispose()
    {
        foreach (var signal in _signals) signal.Dispose();
        _endless.Dispose();
    }
}

/// <summary>How many calls are open. Any thread.</summary>
internal sealed class OpenCalls
{
    private readonly Lock _lock = new();
    private TaskCompletionSource? _none;

    public int Count { get; private set; }

    public void Enter()
    {
        lock (_lock) Count++;
    }

    public void Leave()
    {
        lock (_lock)
            if (--Count == 0) _none?.TrySetResult();
    }

    /// <summary>Completes when no call is open, or after <paramref name="limit"/>.</summary>
    public async Task WhenNoneAsync(TimeSpan limit)
    {
        Task none;
        lock (_lock)
        {
            if (Count == 0) return;
            none = (_none = new(TaskCreationOptions.RunContinuationsAsynchronously)).Task;
        }
        await Task.WhenAny(none, Task.Delay(limit));
    }
}

using System.Diagnostics;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Errors;
using Inference.Server.Options;

namespace Inference.Server.Hosting;

/// <summary>
/// The served model's life inside the process: loads it in the background, says what state it is in, drains it. It owns the
/// <see cref="ServedModel"/>; the engine owns everything about requests. State only moves forward, and everyone who asks sees it move in
/// the same order.
/// </summary>
internal sealed class EngineHost : IAsyncDisposable
{
    /// <summary>When to come back while the model is being loaded.</summary>
    private static readonly TimeSpan LoadingRetry = TimeSpan.FromSeconds(2);

    private readonly Func<CancellationToken, Task<ServedModel>> _load;
    private readonly ILogger _logger;
    private readonly Lock _lock = new();
    private readonly CancellationTokenSource _stopLoading = new();
    private readonly TaskCompletionSource _failed = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private Task _loading = Task.CompletedTask;
    private Task? _draining;
    private ServedModel? _model;

    /// <param name="load">Makes the model; may take minutes; called once, on a thread of its own.</param>
    public EngineHost(Func<CancellationToken, Task<ServedModel>> load, ILogger<EngineHost> logger) => (_load, _logger) = (load, logger);

    public ServingState State { get; private set; }

    /// <summary>The engine has work and does not get on: not ready, though Serving (<see cref="EngineWatch"/>).</summary>
    public bool IsStuck { get; private set; }

    /// <summary>Raised after each change of <see cref="State"/> or <see cref="IsStuck"/>, one at a time.</summary>
    public event Action<ServingState>? StateChanged;

    /// <summary>Completes when loading failed or the engine broke.</summary>
    public Task WhenFailed => _failed.Task;

    /// <summary>What went wrong, in state Failed.</summary>
    public Exception? Failure { get; private set; }

    /// <summary>The loaded model; null while there is none.</summary>
    public ServedModel? Loaded => Volatile.Read(ref _model);

    /// <summary>Begins loading; returns at once.</summary>
    public void Start() => _loading = Task.Factory.StartNew(LoadAsync, TaskCreationOptions.LongRunning).Unwrap();

    /// <summary>The model a call means.</summary>
    /// <param name="name">Empty: the default one.</param>
    /// <exception cref="RequestException">No such model, or none that can answer now.</exception>
    public ServedModel Require(string name)
    {
        var model = Loaded;
        if (model is not null && name.Length > 0 && name != model.Name)
            throw new RequestException(ErrorReason.ModelNotFound, $"There is no model of the name asked for; this server has '{model.Name}'.");
        return State switch
        {
            ServingState.Serving when model is not null => model,
            ServingState.Loading => throw new RequestException(ErrorReason.Loading, "The model is being loaded.") { RetryAfter = LoadingRetry },
            ServingState.Failed => throw new RequestException(ErrorReason.EngineFailed, "The engine has failed; this server ends. Go to another."),
            _ => throw new RequestException(ErrorReason.Draining, "This server is stopping and takes no new requests. Go to another."),
        };
    }

    private async Task LoadAsync()
    {
        try
        {
            long start = Stopwatch.GetTimestamp();
            var model = await _load(_stopLoading.Token);
            Volatile.Write(ref _model, model);
            model.Engine.StateChanged += OnEngineState;
            model.Engine.Start();
            await model.Engine.WhenReady.WaitAsync(_stopLoading.Token);
            ServerLog.Ready(_logger, model.Name, (long)Stopwatch.GetElapsedTime(start).TotalMilliseconds, model.Info.KvFormat);
            Move(ServingState.Serving);
        }
        catch (OperationCanceledException) when (_stopLoading.IsCancellationRequested)
        {
            // Told to stop before it was ready: DrainAsync says the rest.
        }
        catch (Exception e)
        {
            if (IsOperatorsFault(e)) ServerLog.LoadRefused(_logger, e.Message);
            else ServerLog.LoadFailed(_logger, e);
            Fail(e);
        }
    }

    /// <summary>Faults whose message says all that an operator needs.</summary>
    private static bool IsOperatorsFault(Exception e) =>
        e is ModelLoadException or TokenizerException or EngineOptionsException or OptionsException or InvalidDataException
        or BackendException { Kind: BackendErrorKind.Capacity };

    private void OnEngineState(EngineState state)
    {
        if (state != EngineState.Failed) return;
        ServerLog.EngineFailed(_logger, Loaded?.Engine.Failure);
        Fail(Loaded?.Engine.Failure ?? new InvalidOperationException("The engine failed."));
    }

    private void Fail(Exception cause)
    {
        Failure ??= cause;
        Move(ServingState.Failed);
        _failed.TrySetResult();
    }

    /// <summary>Refuses new requests at once; completes when the accepted ones have ended, or <paramref name="limit"/> has passed.</summary>
    public Task DrainAsync(TimeSpan limit)
    {
        lock (_lock) return _draining ??= DrainOnceAsync(limit);
    }

    private async Task DrainOnceAsync(TimeSpan limit)
    {
        Move(ServingState.Draining);
        await _stopLoading.CancelAsync();
        await _loading;
        if (Loaded is { } model) await model.Engine.DrainAsync(limit);
        Move(ServingState.Stopped);
    }

    /// <summary>False if it was said before.</summary>
    public bool MarkStuck(bool stuck)
    {
        lock (_lock)
        {
            if (stuck == IsStuck) return false;
            IsStuck = stuck;
            StateChanged?.Invoke(State);
            return true;
        }
    }

    private void Move(ServingState state)
    {
        lock (_lock)
        {
            if (state <= State) return;
            State = state;
            ServerLog.State(_logger, state);
            StateChanged?.Invoke(state);
        }
    }

    public async ValueTask DisposeAsync()
    {
        await _stopLoading.CancelAsync();
        await _loading;
        if (Loaded is { } model) await model.DisposeAsync();
        _stopLoading.Dispose();
    }
}

using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>
/// An engine's <see cref="EngineState"/>: moves only forward, tells whoever listens, and completes the tasks that wait for it. Any thread.
/// </summary>
internal sealed class EngineLife(ILogger log)
{
    private readonly Lock _lock = new();
    private readonly TaskCompletionSource _ready = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly TaskCompletionSource _stopped = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private volatile EngineState _state = EngineState.Starting;
    private Exception? _failure;

    public event Action<EngineState>? Changed;

    public EngineState State => _state;
    public Exception? Failure => Volatile.Read(ref _failure);
    public Task WhenReady => _ready.Task;
    public Task WhenStopped => _stopped.Task;

    /// <summary>False, and nothing happened, if the state is this or a later one already.</summary>
    public bool MoveTo(EngineState state, Exception? failure = null)
    {
        lock (_lock)
        {
            if (_state >= state || _state == EngineState.Stopped) return false;
            if (failure is not null) Volatile.Write(ref _failure, failure);
            _state = state;
            EngineLog.StateChanged(log, state);
            Tell(state);
            return true;
        }
    }

    /// <summary>Completes the tasks that wait for the state; called when everything that the state promises is true.</summary>
    public void Announce()
    {
        if (_state == EngineState.Ready) _ready.TrySetResult();
        if (_state < EngineState.Stopped) return;
        if (_state == EngineState.Stopped) _ready.TrySetCanceled();
        else if (_ready.TrySetException(_failure!)) _ = _ready.Task.Exception;  // observed: nobody has to wait for readiness
        _stopped.TrySetResult();
    }

    private void Tell(EngineState state)
    {
        foreach (var handler in Changed?.GetInvocationList() ?? [])
        {
            try
            {
                ((Action<EngineState>)handler)(state);
            }
            catch (Exception e)
            {
                EngineLog.HandlerFailed(log, e);
            }
        }
    }
}

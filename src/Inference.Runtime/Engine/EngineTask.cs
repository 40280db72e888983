using Inference.Runtime.KvCache;

namespace Inference.Runtime.Engine;

/// <summary>Something to be done on the engine's thread, once, or never if the engine stops before.</summary>
internal abstract class EngineTask
{
    public abstract void Run(KvCacheManager cache);

    public abstract void Abandon(Exception cause);
}

/// <inheritdoc/>
internal sealed class EngineTask<T>(Func<KvCacheManager, T> what) : EngineTask
{
    private readonly TaskCompletionSource<T> _done = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public Task<T> Completion => _done.Task;

    public override void Run(KvCacheManager cache)
    {
        try
        {
            _done.SetResult(what(cache));
        }
        catch (Exception e)
        {
            _done.SetException(e);
        }
    }

    public override void Abandon(Exception cause) => _done.SetException(cause);
}

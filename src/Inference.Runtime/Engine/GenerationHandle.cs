using System.Threading.Channels;

namespace Inference.Runtime.Engine;

/// <summary>
/// An accepted request in the hands of its client. Read <see cref="Events"/> until it completes, or cancel; a handle that is neither read
/// nor cancelled keeps its place in the engine until its deadline. Safe for use from several threads; the events have one reader.
/// </summary>
public sealed class GenerationHandle : IDisposable
{
    private readonly Action _cancel;

    internal GenerationHandle(string requestId, ChannelReader<GenerationEvent> events, Action cancel)
    {
        (RequestId, Events, _cancel) = (requestId, events, cancel);
    }

    public string RequestId { get; }

    /// <summary>The events in their order; completes, without an error, after <see cref="GenerationFinished"/>.</summary>
    public ChannelReader<GenerationEvent> Events { get; }

    /// <summary>Asks the engine to end the request; its end still comes, as <see cref="FinishReason.Cancelled"/> unless another was
    /// faster. May be called at any time, any number of times.</summary>
    public void Cancel() => _cancel();

    /// <summary>The client is gone: as <see cref="Cancel"/>.</summary>
    public void Dispose() => _cancel();
}

using Inference.Backends;
using Inference.Runtime.Models;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>
/// Runs many requests on one model. (Public surface; the step loop follows.)
/// </summary>
public sealed class InferenceEngine : IAsyncDisposable
{
    /// <param name="model">Not disposed by the engine.</param>
    /// <param name="backend">Not disposed by the engine; from <see cref="Start"/> on only the engine's thread calls it.</param>
    /// <param name="text">Makes the detokenizer of a request.</param>
    /// <exception cref="EngineOptionsException">An option cannot work with this model and backend.</exception>
    public InferenceEngine(
        IModel model, IBackend backend, Func<GenerationRequest, ISequenceText> text, EngineOptions options, TimeProvider time, ILogger logger)
    {
        Options = options;
        throw new NotSupportedException("The step loop is not here yet.");
    }

    /// <summary>The options in force: nothing automatic is left, except the byte capacity that the token capacity replaced.</summary>
    public EngineOptions Options { get; }

    public EngineState State { get; private set; }

    /// <summary>Raised after each change of <see cref="State"/>, one at a time, on the thread that caused it. Handlers must be quick.</summary>
    public event Action<EngineState>? StateChanged;

    /// <summary>What broke the engine, in state <see cref="EngineState.Failed"/>.</summary>
    public Exception? Failure { get; private set; }

    /// <summary>Picture of the engine after its last step. Any thread.</summary>
    public EngineStats Stats => throw new NotSupportedException();

    /// <summary>Starts the engine's thread, which lets the model make its first step and then is <see cref="EngineState.Ready"/>. Once.</summary>
    public void Start() => StateChanged?.Invoke(State);

    /// <summary>Completes when the engine is ready; fails with <see cref="Failure"/> if it never gets there.</summary>
    public Task WhenReady => throw new NotSupportedException();

    /// <summary>Completes when the engine is stopped or failed.</summary>
    public Task WhenStopped => throw new NotSupportedException();

    /// <summary>Takes a request, or refuses it at once. Any thread; never waits for a step.</summary>
    /// <exception cref="RequestRejectedException">Nothing of the request was kept.</exception>
    public GenerationHandle Submit(GenerationRequest request) => throw new NotSupportedException();

    /// <summary>
    /// Refuses new requests and lets the accepted ones run to their end, for at most <paramref name="limit"/>; those still there then end
    /// with <see cref="FinishReason.Error"/>. Completes when the engine is stopped. Further calls may only shorten the limit.
    /// </summary>
    public Task DrainAsync(TimeSpan limit) => throw new NotSupportedException();

    /// <summary>As <see cref="DrainAsync"/> with no time left.</summary>
    public ValueTask DisposeAsync() => throw new NotSupportedException();
}

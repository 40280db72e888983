using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;

namespace Inference.Server.Hosting;

/// <summary>A model with everything that serves it. Owns its parts and disposes them in order: engine, model, backend.</summary>
internal sealed class ServedModel : IAsyncDisposable
{
    /// <summary>What clients call it.</summary>
    public required string Name { get; init; }

    public required GenerationDefaults Defaults { get; init; }

    /// <summary>What an unset max_tokens becomes.</summary>
    public required int DefaultMaxTokens { get; init; }

    public required IBackend Backend { get; init; }

    public required IModel Model { get; init; }

    public required InferenceEngine Engine { get; init; }

    public ModelInfo Info => Model.Info;

    /// <summary>Most tokens of prompt and answer together: the model's limit, or the operator's.</summary>
    public int ContextMax => Engine.Options.ContextMax ?? Info.ContextMax;

    public async ValueTask DisposeAsync()
    {
        await Engine.DisposeAsync();
        Model.Dispose();
        Backend.Dispose();
    }
}

using Inference.Backends;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;

namespace Inference.Server.Hosting;

/// <summary>A model with everything that serves it. Owns its parts and disposes them in order: engine, model, backend.</summary>
internal sealed class ServedModel : IAsyncDisposable
{
    /// <summary>What clients call it.</summary>
    public required string Name { get; init; }

    public required GenerationDefaults Defaults { get; init; }

    /// <summary>What an unset max_tokens becomes.</summary>
    public required int DefaultMaxTokens { get; init; }

    public required ModelTokenizer Tokenizer { get; init; }

    /// <summary>Null when conversations cannot be rendered for this model.</summary>
    public DeepSeekV4ChatEncoding? Chat { get; init; }

    /// <summary>What an unset thinking mode becomes: on.</summary>
    public bool DefaultThinking { get; init; }

    public required IBackend Backend { get; init; }

    public required IModel Model { get; init; }

    public required InferenceEngine Engine { get; init; }

    public required KvSessions Sessions { get; init; }

    public ModelInfo Info => Model.Info;

    /// <summary>Most tokens of prompt and answer together: the model's limit, or the operator's, or what the cache holds.</summary>
    public required int ContextMax { get; init; }

    /// <summary>Text to token ids.</summary>
    /// <param name="policy">Which control tokens written in the text count as such.</param>
    public List<int> Encode(string text, AddedTokenPolicy policy) => Tokenizer.Encode(text, policy);

    /// <summary>A rendered conversation to token ids; only what the encoding itself wrote can become a control token.</summary>
    public List<int> Encode(RenderedPrompt prompt)
    {
        TextSegment[] segments = [.. prompt.Segments.Select(s => s.Trusted ? TextSegment.Trusted(s.Text) : TextSegment.Untrusted(s.Text))];
        var ids = new List<int>();
        Tokenizer.Encode(segments, ids);
        return ids;
    }

    /// <summary>The last places of a prompt at which a message begins (<see cref="GenerationRequest.Boundaries"/>).</summary>
    public List<int> Boundaries(IReadOnlyList<int> ids)
    {
        var boundaries = new List<int>();
        for (int i = ids.Count - 1; i > 0 && boundaries.Count < BoundariesMax; i--)
            if (_messageOpeners.Value.Contains(ids[i])) boundaries.Add(i);
        boundaries.Reverse();
        return boundaries;
    }

    // Conversations part near their end; older messages have the regular snapshots.
    private const int BoundariesMax = 8;

    private readonly Lazy<HashSet<int>> _messageOpeners;

    public ServedModel() => _messageOpeners = new(() =>
        Chat is null ? [] : [.. DeepSeekV4ChatEncoding.MessageOpeners.Select(o => Tokenizer!.IdOf(o)).OfType<int>()]);

    public async ValueTask DisposeAsync()
    {
        Sessions.Dispose();
        await Engine.DisposeAsync();
        Model.Dispose();
        Backend.Dispose();
    }
}

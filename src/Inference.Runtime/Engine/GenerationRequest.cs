using Inference.Runtime.Sampling;

namespace Inference.Runtime.Engine;

/// <summary>
/// What a client asks of the engine: token ids in, with everything resolved (no unset values). Immutable.
/// </summary>
public sealed record GenerationRequest
{
    /// <summary>For logs and events; need not be unique.</summary>
    public required string RequestId { get; init; }

    /// <summary>At least one token; every id in [0, vocabulary).</summary>
    public required IReadOnlyList<int> PromptTokenIds { get; init; }

    public required SamplingParams Sampling { get; init; }

    /// <summary>Most tokens to generate; prompt + this must fit the context. 0 = only bring the prompt into the cache.</summary>
    public required int OutputTokensMax { get; init; }

    /// <summary>Token ids that end the answer (the model's EOS among them unless the client ignores it); not part of the text.</summary>
    public IReadOnlyList<int> StopTokenIds { get; init; } = [];

    /// <summary>Strings that end the answer; cut from the text.</summary>
    public IReadOnlyList<string> StopStrings { get; init; } = [];

    /// <summary>Keep the stop string in the text.</summary>
    public bool IncludeStop { get; init; }

    /// <summary>Tokens flagged special appear in the text (chat parsers need them).</summary>
    public bool KeepSpecialTokens { get; init; }

    /// <summary>Report this many most likely tokens per output token besides the chosen one; null = no logprobs.</summary>
    public int? TopLogprobs { get; init; }

    /// <summary>Ascending positions of the prompt at which a later prompt is likely to part from it (a chat message begins there): the state there is
    /// worth keeping.</summary>
    public IReadOnlyList<int> Boundaries { get; init; } = [];

    /// <summary>Whose request it is: separates what may be shared, and tenants get the engine by their weights
    /// (<see cref="EngineOptions.TenantWeights"/>).</summary>
    public string Tenant { get; init; } = "";

    /// <summary>From <see cref="PriorityMin"/> to <see cref="PriorityMax"/>: among its tenant's requests each level puts it ahead of those submitted up to
    /// <see cref="EngineOptions.PriorityAhead"/> earlier. It takes nothing from other tenants.</summary>
    public int Priority { get; init; }

    public const int PriorityMin = -2, PriorityMax = 2;

    /// <summary>When the answer is of no more use; null = never.</summary>
    public DateTimeOffset? Deadline { get; init; }

    /// <summary>When its first token is of no more use; null = never.</summary>
    public DateTimeOffset? FirstTokenDeadline { get; init; }
}

/// <summary>Why an answer ended.</summary>
public enum FinishReason
{
    /// <summary>An end token, a stop token or a stop string.</summary>
    Stop,
    /// <summary><see cref="GenerationRequest.OutputTokensMax"/> or the context limit.</summary>
    Length,
    /// <summary>The client cancelled or went away.</summary>
    Cancelled,
    /// <summary>The deadline passed.</summary>
    DeadlineExceeded,
    /// <summary>This sequence failed; see the event's error.</summary>
    Error,
    /// <summary>The deadline of the first token passed without one.</summary>
    FirstTokenDeadlineExceeded,
    /// <summary>Refused before any work: its first token could not have come before its deadline; see the event's estimate.</summary>
    DeadlineUnreachable,
}

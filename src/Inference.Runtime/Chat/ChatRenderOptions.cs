namespace Inference.Runtime.Chat;

/// <summary>Whether the model thinks before it answers.</summary>
public enum ThinkingMode
{
    Chat,
    Thinking,
}

/// <summary>How hard a thinking model is told to think. Which names a release knows is the encoding's business.</summary>
public enum ReasoningEffort
{
    Low,
    Medium,
    High,
    XHigh,
    Max,
}

/// <summary>Choices of one request that shape its prompt.</summary>
public sealed record ChatRenderOptions
{
    /// <summary>On unless the request says otherwise, as in the official API (specification 5.5).</summary>
    public ThinkingMode ThinkingMode { get; init; } = ThinkingMode.Thinking;

    /// <summary>Leave out reasoning from before the last user turn; has no effect when any message brings tools.</summary>
    public bool DropThinking { get; init; } = true;

    /// <summary>Null is the encoder's own default: no effort text.</summary>
    public ReasoningEffort? ReasoningEffort { get; init; }

    /// <summary>Begin with the begin-of-sequence token.</summary>
    public bool BeginOfSequence { get; init; } = true;

    /// <summary>End with what asks the model to answer, where the last message calls for an answer.</summary>
    public bool AsksForAnswer { get; init; } = true;
}

namespace Inference.Runtime.Chat;

/// <summary>What a piece of a completion is.</summary>
public enum CompletionEventKind
{
    /// <summary>Text is more reasoning.</summary>
    ReasoningDelta,

    /// <summary>Text is more content.</summary>
    ContentDelta,

    /// <summary>A call begins; Text is the function's name, whole.</summary>
    ToolCallStart,

    /// <summary>Text is more of the JSON text of the call's arguments.</summary>
    ToolCallArgumentsDelta,

    /// <summary>The call is complete.</summary>
    ToolCallEnd,

    /// <summary>The call ends unfinished, because the text ended or went wrong: do not execute it.</summary>
    ToolCallCutOff,
}

/// <summary>One step of a completion's message, in order.</summary>
/// <param name="Kind">What happened.</param>
/// <param name="Text">See the kinds; empty for the two endings.</param>
/// <param name="ToolCallIndex">Zero-based index of the call among all that began; -1 for text.</param>
public readonly record struct CompletionEvent(CompletionEventKind Kind, string Text, int ToolCallIndex = -1);

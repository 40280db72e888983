namespace Inference.Runtime.Chat;

/// <summary>How a completion breaks the format of its family.</summary>
public enum CompletionViolation
{
    /// <summary>A tool-call block begins before the reasoning has ended.</summary>
    ToolCallInReasoning,

    /// <summary>The text ends inside the reasoning.</summary>
    ReasoningNotEnded,

    /// <summary>A control token stands inside reasoning or content.</summary>
    ControlToken,

    /// <summary>The end token is missing.</summary>
    EndOfSequenceMissing,

    /// <summary>Something other than a call or the block's end stands in a tool-call block.</summary>
    ToolBlockFormat,

    /// <summary>The opening tag of a call is not well formed.</summary>
    ToolNameFormat,

    /// <summary>A parameter of a call is not well formed.</summary>
    ParameterFormat,

    /// <summary>A call gives the same parameter twice.</summary>
    ParameterRepeated,

    /// <summary>The text ends inside a tool-call block.</summary>
    ToolBlockNotEnded,

    /// <summary>Text stands between the tool-call block and the end token.</summary>
    TextAfterToolCalls,

    /// <summary>Text stands after the end token.</summary>
    TextAfterEnd,
}

/// <summary>A completion that the strict parser refuses.</summary>
public sealed class CompletionFormatException : ChatEncodingException
{
    internal CompletionFormatException(CompletionViolation violation, long position)
        : base(
            $"the completion breaks the format at character {position} ({violation})",
            "parse it leniently to keep what can be read, or generate it again",
            field: "completion")
    {
        Violation = violation;
        Position = position;
    }

    public CompletionViolation Violation { get; }

    /// <summary>Zero-based offset of the offending element, in UTF-16 units.</summary>
    public long Position { get; }
}

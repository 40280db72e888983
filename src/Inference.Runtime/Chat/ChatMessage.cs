// The conversation as the encoders see it: what an OpenAI-style request means, without its wire names.
//
// Nothing here knows a model family, a token or the network. All records are immutable; the JSON that a client
// sent (tool schemas, response format) is kept as text that PythonJson has already normalised, because the
// prompt is made of exactly that text. Arguments of a tool call stay as the client spelled them: whether they
// parse decides how they are rendered.

namespace Inference.Runtime.Chat;

/// <summary>Who speaks. <see cref="Developer"/> and <see cref="LatestReminder"/> belong to internal pipelines.</summary>
public enum ChatRole
{
    System,
    Developer,
    User,
    Assistant,
    Tool,
    LatestReminder,
}

/// <summary>Quick-instruction task of a message (specification 5.6): the next turn is its short answer.</summary>
public enum ChatTask
{
    Action,
    Query,
    Authority,
    Domain,
    Title,
    ReadUrl,
}

/// <summary>One part of a message's content. Only the type <c>text</c> is rendered; others leave a placeholder.</summary>
/// <param name="Type">The client's type name, e.g. <c>text</c> or <c>image_url</c>.</param>
/// <param name="Text">The text of a text part; ignored for other types.</param>
public sealed record ContentPart(string Type, string Text)
{
    public const string TextType = "text";

    public bool IsText => Type == TextType;

    public static ContentPart OfText(string text) => new(TextType, text);
}

/// <summary>A call that an assistant message makes.</summary>
/// <param name="Id">The client's or server's id; null where none was given.</param>
/// <param name="Name">Name of the function.</param>
/// <param name="Arguments">JSON text of the arguments, as spelled by whoever made the call.</param>
public sealed record ToolCall(string? Id, string Name, string Arguments);

/// <summary>One message of a conversation.</summary>
public sealed record ChatMessage
{
    public required ChatRole Role { get; init; }

    /// <summary>Content in parts; a plain string is one text part, no content is an empty list.</summary>
    public IReadOnlyList<ContentPart> Content { get; init; } = [];

    /// <summary>Reasoning of an assistant message; null or empty when there is none.</summary>
    public string? ReasoningContent { get; init; }

    /// <summary>Calls of an assistant message, in the order they were made.</summary>
    public IReadOnlyList<ToolCall> ToolCalls { get; init; } = [];

    /// <summary>For a tool message: the id of the call that it answers.</summary>
    public string? ToolCallId { get; init; }

    /// <summary>Tools offered with this (system or developer) message.</summary>
    public IReadOnlyList<ToolDefinition> Tools { get; init; } = [];

    /// <summary>Normalised JSON of the response format asked for in this (system or developer) message; null for none.</summary>
    public string? ResponseFormatJson { get; init; }

    public ChatTask? Task { get; init; }

    /// <summary>Leave the end token off this assistant message, so that the model goes on with it.</summary>
    public bool WithoutEndOfSequence { get; init; }

    /// <summary>A message whose content is one text.</summary>
    public static ChatMessage Of(ChatRole role, string text) => new() { Role = role, Content = [ContentPart.OfText(text)] };
}

using System.Text;

namespace Inference.Runtime.Chat;

/// <summary>What a completion says, taken apart.</summary>
/// <param name="Content">Text for the reader.</param>
/// <param name="ReasoningContent">Reasoning; empty when the model did not think.</param>
/// <param name="ToolCalls">Calls that are complete, in order, without ids.</param>
public sealed record ParsedMessage(string Content, string ReasoningContent, IReadOnlyList<ToolCall> ToolCalls)
{
    /// <summary>
    /// Calls that the end of the text or a fault cut off (lenient parsing only): their arguments are a prefix and no
    /// JSON. They must not be executed.
    /// </summary>
    public IReadOnlyList<ToolCall> UnfinishedToolCalls { get; init; } = [];

    /// <summary>The message as it enters the next turn's conversation.</summary>
    public ChatMessage ToChatMessage() => new()
    {
        Role = ChatRole.Assistant,
        Content = [ContentPart.OfText(Content)],
        ReasoningContent = ReasoningContent,
        ToolCalls = ToolCalls,
    };

    /// <summary>Puts the events of one completion together.</summary>
    public static ParsedMessage FromEvents(IEnumerable<CompletionEvent> events)
    {
        var content = new StringBuilder();
        var reasoning = new StringBuilder();
        var arguments = new StringBuilder();
        var complete = new List<ToolCall>();
        var unfinished = new List<ToolCall>();
        string name = "";
        foreach (var e in events)
        {
            switch (e.Kind)
            {
                case CompletionEventKind.ReasoningDelta:
                    reasoning.Append(e.Text);
                    break;
                case CompletionEventKind.ContentDelta:
                    content.Append(e.Text);
                    break;
                case CompletionEventKind.ToolCallStart:
                    name = e.Text;
                    arguments.Clear();
                    break;
                case CompletionEventKind.ToolCallArgumentsDelta:
                    arguments.Append(e.Text);
                    break;
                case CompletionEventKind.ToolCallEnd:
                    complete.Add(new ToolCall(null, name, arguments.ToString()));
                    break;
                case CompletionEventKind.ToolCallCutOff:
                    unfinished.Add(new ToolCall(null, name, arguments.ToString()));
                    break;
            }
        }
        return new ParsedMessage(content.ToString(), reasoning.ToString(), complete) { UnfinishedToolCalls = unfinished };
    }
}

/// <summary>Writes a parsed message in OpenAI's form.</summary>
public static class ParsedMessageJson
{
    /// <summary>
    /// One line, spelled as Python's <c>json.dumps(message, ensure_ascii=False)</c>: <c>role</c>, <c>content</c>,
    /// <c>reasoning_content</c>, <c>tool_calls</c> (each <c>id</c> if it has one, <c>type</c>, <c>function</c>).
    /// </summary>
    public static string Write(ParsedMessage message) => PythonJson.Write(Object(
        ("role", Text("assistant")),
        ("content", Text(message.Content)),
        ("reasoning_content", Text(message.ReasoningContent)),
        ("tool_calls", PythonValue.OfArray(message.ToolCalls.Select(Call).ToList()))));

    private static PythonValue Call(ToolCall call)
    {
        var function = Object(("name", Text(call.Name)), ("arguments", Text(call.Arguments)));
        return call.Id is null
            ? Object(("type", Text("function")), ("function", function))
            : Object(("id", Text(call.Id)), ("type", Text("function")), ("function", function));
    }

    private static PythonValue Text(string text) => PythonValue.OfString(text);

    private static PythonValue Object(params (string Key, PythonValue Value)[] members) =>
        PythonValue.OfObject(members.Select(member => KeyValuePair.Create(member.Key, member.Value)).ToList());
}

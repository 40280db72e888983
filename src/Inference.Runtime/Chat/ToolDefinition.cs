namespace Inference.Runtime.Chat;

/// <summary>A function that the model may call.</summary>
/// <remarks>The prompt holds the function object as the client wrote it: all keys, in its order, spelled as Python would.</remarks>
public sealed class ToolDefinition
{
    internal ToolDefinition(string name, string functionJson)
    {
        Name = name;
        FunctionJson = functionJson;
    }

    public string Name { get; }

    /// <summary>Normalised JSON of the function object (<c>name</c>, <c>description</c>, <c>parameters</c>, ...).</summary>
    public string FunctionJson { get; }

    /// <summary>Reads one OpenAI-style tool, <c>{"type": "function", "function": {"name": ...}}</c>.</summary>
    /// <exception cref="ChatEncodingException">Not JSON, or not of that shape.</exception>
    public static ToolDefinition Parse(string toolJson) => ConversationJson.ReadTool(toolJson);
}

namespace Inference.Runtime.Chat;

/// <summary>The messages of one request, oldest first.</summary>
public sealed record Conversation(IReadOnlyList<ChatMessage> Messages)
{
    /// <summary>
    /// The conversation with tools that came beside the messages: they go to the first message if that is a system
    /// message, else to an empty system message in front of it, which is where the reference puts them (specification
    /// 5.4 and trap 40).
    /// </summary>
    /// <exception cref="ChatEncodingException">The system message already brings tools of its own.</exception>
    public Conversation WithTools(IReadOnlyList<ToolDefinition> tools)
    {
        if (tools.Count == 0)
            return this;
        if (StartsWithSystem && Messages[0].Tools.Count > 0)
            throw new ChatEncodingException("tools are given both here and beside the messages", "give them in one place", 0, "tools");
        return OnSystemMessage(system => system with { Tools = tools });
    }

    /// <summary>The conversation with a response format that came beside the messages; placed as tools are.</summary>
    /// <param name="responseFormatJson">Normalised JSON text (<see cref="PythonJson.Normalize"/>).</param>
    /// <exception cref="ChatEncodingException">The system message already has a response format.</exception>
    public Conversation WithResponseFormat(string responseFormatJson)
    {
        if (StartsWithSystem && Messages[0].ResponseFormatJson is not null)
        {
            throw new ChatEncodingException(
                "a response format is given both here and beside the messages", "give it in one place", 0, "response_format");
        }
        return OnSystemMessage(system => system with { ResponseFormatJson = responseFormatJson });
    }

    private bool StartsWithSystem => Messages.Count > 0 && Messages[0].Role == ChatRole.System;

    private Conversation OnSystemMessage(Func<ChatMessage, ChatMessage> change) => StartsWithSystem
        ? new([change(Messages[0]), .. Messages.Skip(1)])
        : new([change(ChatMessage.Of(ChatRole.System, "")), .. Messages]);
}

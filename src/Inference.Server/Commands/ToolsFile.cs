using Inference.Runtime.Chat;

namespace Inference.Server.Commands;

/// <summary>Reads a file of tools in OpenAI's form: an array, or one tool.</summary>
internal static class ToolsFile
{
    public static IReadOnlyList<ToolDefinition> Read(string? path)
    {
        if (path is null) return [];
        string json = InputFile.Text(path, "--tools").Trim();
        if (!json.StartsWith('[')) json = $"[{json}]";
        var request = ConversationJson.Read($"{{\"messages\":[],\"tools\":{json}}}");
        return request.Conversation.Messages.Count == 0 ? [] : request.Conversation.Messages[0].Tools;
    }
}

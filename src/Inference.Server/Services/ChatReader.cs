using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Runtime.Chat;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>A conversation of a client, checked, in the runtime's words.</summary>
internal sealed record ChatRequest(Conversation Conversation, ChatRenderOptions Options)
{
    /// <exception cref="ChatEncodingException">The model's encoding cannot express it.</exception>
    public RenderedPrompt Render(ServedModel model) => model.Chat!.Render(Conversation, Options);
}

/// <summary>
/// From ChatPrompt to the runtime's conversation: roles, parts, calls, tools, thinking. What a conversation means to a model is the chat
/// encoding's business; here is only what every conversation needs.
/// </summary>
internal static class ChatReader
{
    private const int MessagesMax = 65_536;
    private const int ToolsMax = 1024;

    /// <returns>Null when there are violations.</returns>
    public static ChatRequest? Check(V1.ChatPrompt chat, string field, ServedModel model, FieldChecks checks)
    {
        if (model.Chat is null)
        {
            checks.Add(field, "cannot be rendered: this model has no chat encoding; give text or token_ids.");
            return null;
        }
        if (chat.Messages.Count is 0 or > MessagesMax)
            checks.Add($"{field}.messages", $"has {chat.Messages.Count} entries; give 1 to {MessagesMax}.");
        if (chat.Tools.Count > ToolsMax) checks.Add($"{field}.tools", $"has {chat.Tools.Count} entries; give at most {ToolsMax}.");
        var options = Options(chat, field, model, checks);
        if (checks.Any) return null;
        var messages = chat.Messages.Select((m, i) => Message(m, $"{field}.messages[{i}]", checks)).ToList();
        var tools = Tools(chat, field, checks);
        return checks.Any ? null : new ChatRequest(new Conversation(messages).WithTools(tools), options);
    }

    private static ChatRenderOptions Options(V1.ChatPrompt chat, string field, ServedModel model, FieldChecks checks)
    {
        var thinking = checks.Known($"{field}.thinking", chat.HasThinking, chat.Thinking);
        var effort = checks.Known($"{field}.reasoning_effort", chat.HasReasoningEffort, chat.ReasoningEffort);
        bool thinks = thinking is { } asked ? asked == V1.ThinkingMode.On : model.DefaultThinking || effort is not null;
        if (effort is not null && !thinks) checks.Add($"{field}.reasoning_effort", "goes with thinking only; leave it out or set thinking on.");
        return new ChatRenderOptions
        {
            ThinkingMode = thinks ? ThinkingMode.Thinking : ThinkingMode.Chat,
            DropThinking = !chat.HasDropEarlierReasoning || chat.DropEarlierReasoning,
            ReasoningEffort = effort switch
            {
                V1.ReasoningEffort.Low => ReasoningEffort.Low,
                V1.ReasoningEffort.Medium => ReasoningEffort.Medium,
                V1.ReasoningEffort.High => ReasoningEffort.High,
                V1.ReasoningEffort.Xhigh => ReasoningEffort.XHigh,
                V1.ReasoningEffort.Max => ReasoningEffort.Max,
                _ => null,
            },
        };
    }

    private static ChatMessage Message(V1.Message message, string field, FieldChecks checks)
    {
        ChatRole? role = message.Role switch
        {
            V1.Role.System => ChatRole.System,
            V1.Role.User => ChatRole.User,
            V1.Role.Assistant => ChatRole.Assistant,
            V1.Role.Tool => ChatRole.Tool,
            V1.Role.Developer => ChatRole.Developer,
            _ => null,
        };
        if (role is null) checks.Add($"{field}.role", message.Role == V1.Role.Unspecified ? "is missing." : $"is {(int)message.Role}, a value that this server does not know.");
        else CheckOwner(message, role.Value, field, checks);
        return new ChatMessage
        {
            Role = role ?? ChatRole.User,
            Content = [.. message.Content.Select((part, i) => Part(part, $"{field}.content[{i}]", checks))],
            ReasoningContent = message.HasReasoning ? message.Reasoning : null,
            ToolCalls = [.. message.ToolCalls.Select((call, i) => Call(call, $"{field}.tool_calls[{i}]", checks))],
            ToolCallId = message.HasToolCallId ? message.ToolCallId : null,
        };
    }

    /// <summary>Fields that only some roles have.</summary>
    private static void CheckOwner(V1.Message message, ChatRole role, string field, FieldChecks checks)
    {
        if (role != ChatRole.Assistant && message.HasReasoning) checks.Add($"{field}.reasoning", "belongs to an assistant's message.");
        if (role != ChatRole.Assistant && message.ToolCalls.Count > 0) checks.Add($"{field}.tool_calls", "belong to an assistant's message.");
        if (role != ChatRole.Tool && message.HasToolCallId) checks.Add($"{field}.tool_call_id", "belongs to a tool's message.");
        if (role == ChatRole.Tool && message.ToolCallId.Length == 0) checks.Add($"{field}.tool_call_id", "is missing: a tool's message answers a call.");
    }

    private static ContentPart Part(V1.ContentPart part, string field, FieldChecks checks)
    {
        if (part.PartCase != V1.ContentPart.PartOneofCase.Text) checks.Add(field, "holds nothing that this server knows; give text.");
        return ContentPart.OfText(part.Text);
    }

    private static ToolCall Call(V1.ToolCall call, string field, FieldChecks checks)
    {
        if (call.Name.Length == 0) checks.Add($"{field}.name", "is empty; give the function's name.");
        return new ToolCall(call.Id.Length == 0 ? null : call.Id, call.Name, call.Arguments.Length == 0 ? "{}" : call.Arguments);
    }

    private static List<ToolDefinition> Tools(V1.ChatPrompt chat, string field, FieldChecks checks)
    {
        var tools = new List<ToolDefinition>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        for (int i = 0; i < chat.Tools.Count; i++)
        {
            var tool = chat.Tools[i];
            string at = $"{field}.tools[{i}]";
            if (tool.Name.Length == 0) checks.Add($"{at}.name", "is empty; give the function's name.");
            else if (!names.Add(tool.Name)) checks.Add($"{at}.name", "is given to two tools; names are unique.");
            if (Definition(tool, at, checks) is { } definition) tools.Add(definition);
        }
        return tools;
    }

    private static ToolDefinition? Definition(V1.Tool tool, string field, FieldChecks checks)
    {
        try
        {
            return ToolDefinition.Parse(ToolJson(tool));
        }
        catch (ChatEncodingException e)
        {
            checks.Add($"{field}.parameters", $"is no JSON object: {e.Message}");
            return null;
        }
    }

    /// <summary>The tool as the chat encodings expect it. The schema stays as the client wrote it: the model reads that text.</summary>
    private static string ToolJson(V1.Tool tool)
    {
        var head = new JsonObject { ["name"] = tool.Name };
        if (tool.Description.Length > 0) head["description"] = tool.Description;
        if (tool.HasStrict) head["strict"] = tool.Strict;
        string function = head.ToJsonString();
        if (tool.Parameters.Length > 0) function = $"{function[..^1]},\"parameters\":{tool.Parameters}}}";
        return $"{{\"type\":\"function\",\"function\":{function}}}";
    }
}

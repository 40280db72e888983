// Reads conversations from OpenAI-style JSON: a whole request {messages, thinking_mode?, drop_thinking?,
// reasoning_effort?, tools?, response_format?}, a bare array of messages, or the pieces a server holds apart.
//
// It checks shapes and names; what a shape means for the prompt is the encoding's business. Field names are those of
// the reference encoder (reasoning_content, wo_eos, task, ...); unknown fields are ignored.

using System.Text;

namespace Inference.Runtime.Chat;

/// <summary>A conversation and how to render it, as one file or request gives them.</summary>
public sealed record ConversationRequest(Conversation Conversation, ChatRenderOptions Options);

/// <summary>Reads conversations from JSON. Every fault is a <see cref="ChatEncodingException"/> that names its place.</summary>
public static class ConversationJson
{
    private static readonly UTF8Encoding StrictUtf8 = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

    /// <summary>Reads a request from UTF-8 bytes; a byte order mark in front is skipped.</summary>
    /// <param name="defaults">Values of the options that the JSON leaves out; null for the record's own.</param>
    public static ConversationRequest Read(ReadOnlySpan<byte> utf8, ChatRenderOptions? defaults = null)
    {
        if (utf8.StartsWith("\uFEFF"u8))
            utf8 = utf8[3..];
        string json;
        try
        {
            json = StrictUtf8.GetString(utf8);
        }
        catch (DecoderFallbackException fault)
        {
            throw new ChatEncodingException("the JSON is not UTF-8", "send it as UTF-8", inner: fault);
        }
        return Read(json, defaults);
    }

    /// <summary>Reads a request: an object with <c>messages</c> and options, or a bare array of messages.</summary>
    /// <param name="defaults">Values of the options that the JSON leaves out; null for the record's own.</param>
    public static ConversationRequest Read(string json, ChatRenderOptions? defaults = null)
    {
        var root = Parse(json, "the request");
        var options = defaults ?? new ChatRenderOptions();
        if (root.Kind == PythonKind.Array)
            return new(new Conversation(Messages(root.Items)), options);

        var request = new JsonFields(root, null, "", "an object with 'messages', or an array of messages");
        if (request.Value("messages") is null)
            throw request.Wrong("messages", "is missing", "give an array of messages");
        var conversation = new Conversation(Messages(request.Array("messages"))).WithTools(Tools(request, null));
        if (request.Value("response_format") is { IsTruthy: true } format && !IsPlainText(format))
            conversation = conversation.WithResponseFormat(PythonJson.Write(format));
        return new(conversation, Options(request, options));
    }

    /// <summary>Reads a JSON array of messages.</summary>
    public static Conversation ReadMessages(string json)
    {
        var root = Parse(json, "the messages");
        return root.Kind == PythonKind.Array
            ? new Conversation(Messages(root.Items))
            : throw new ChatEncodingException($"expected an array, found {root.Describe()}", "give an array of messages", null, "messages");
    }

    /// <summary>Reads one OpenAI-style tool object.</summary>
    public static ToolDefinition ReadTool(string json) => Tool(Parse(json, "the tool"), null, "tool");

    /// <summary>Reads a thinking mode by its wire name, <c>chat</c> or <c>thinking</c>.</summary>
    public static ThinkingMode ReadThinkingMode(string name) => name switch
    {
        "chat" => ThinkingMode.Chat,
        "thinking" => ThinkingMode.Thinking,
        _ => throw new ChatEncodingException($"unknown mode '{Shown(name)}'", "use chat or thinking", null, "thinking_mode"),
    };

    /// <summary>Reads an effort by its wire name. Whether a release knows it is decided when the prompt is rendered.</summary>
    public static ReasoningEffort ReadReasoningEffort(string name) => name switch
    {
        "low" => ReasoningEffort.Low,
        "medium" => ReasoningEffort.Medium,
        "high" => ReasoningEffort.High,
        "xhigh" => ReasoningEffort.XHigh,
        "max" => ReasoningEffort.Max,
        _ => throw new ChatEncodingException(
            $"unknown effort '{Shown(name)}'", "use low, medium, high, xhigh or max", null, "reasoning_effort"),
    };

    private static ChatRenderOptions Options(JsonFields request, ChatRenderOptions defaults) => defaults with
    {
        ThinkingMode = request.String("thinking_mode") is { } mode ? ReadThinkingMode(mode) : defaults.ThinkingMode,
        DropThinking = request.Flag("drop_thinking") ?? defaults.DropThinking,
        ReasoningEffort = request.String("reasoning_effort") is { } effort ? ReadReasoningEffort(effort) : defaults.ReasoningEffort,
    };

    private static List<ChatMessage> Messages(IReadOnlyList<PythonValue> items) => items.Select(Message).ToList();

    private static ChatMessage Message(PythonValue value, int index)
    {
        var fields = new JsonFields(value, index, "", "a message object with a role");
        return new ChatMessage
        {
            Role = Role(fields),
            Content = Content(fields, index),
            ReasoningContent = fields.String("reasoning_content"),
            ToolCalls = fields.Array("tool_calls").Select((call, i) => Call(call, index, $"tool_calls[{i}]")).ToList(),
            ToolCallId = fields.String("tool_call_id"),
            Tools = Tools(fields, index),
            ResponseFormatJson = fields.Value("response_format") is { IsTruthy: true } format ? PythonJson.Write(format) : null,
            Task = Task(fields),
            WithoutEndOfSequence = fields.Flag("wo_eos") ?? false,
        };
    }

    private static ChatRole Role(JsonFields fields)
    {
        const string known = "use system, developer, user, assistant, tool or latest_reminder";
        return fields.RequiredString("role", known) switch
        {
            "system" => ChatRole.System,
            "developer" => ChatRole.Developer,
            "user" => ChatRole.User,
            "assistant" => ChatRole.Assistant,
            "tool" => ChatRole.Tool,
            "latest_reminder" => ChatRole.LatestReminder,
            var role => throw fields.Wrong("role", $"unknown role '{Shown(role)}'", known),
        };
    }

    private static ChatTask? Task(JsonFields fields) => fields.String("task") switch
    {
        null => null,
        "action" => ChatTask.Action,
        "query" => ChatTask.Query,
        "authority" => ChatTask.Authority,
        "domain" => ChatTask.Domain,
        "title" => ChatTask.Title,
        "read_url" => ChatTask.ReadUrl,
        var task => throw fields.Wrong(
            "task", $"unknown task '{Shown(task)}'", "use action, query, authority, domain, title or read_url"),
    };

    private static List<ContentPart> Content(JsonFields fields, int index) => fields.Value("content") switch
    {
        null => [],
        { Kind: PythonKind.String } text => [ContentPart.OfText(text.Text)],
        { Kind: PythonKind.Array } parts => parts.Items.Select((part, i) => Part(part, index, $"content[{i}]")).ToList(),
        var value => throw fields.Wrong(
            "content", $"expected a string or an array of parts, found {value.Describe()}", "give the text as a JSON string"),
    };

    private static ContentPart Part(PythonValue value, int index, string path)
    {
        var fields = new JsonFields(value, index, path, "a part object such as {\"type\": \"text\", \"text\": ...}");
        string type = fields.RequiredString("type", "give the part's type, e.g. text");
        return new ContentPart(type, type == ContentPart.TextType ? fields.String("text") ?? "" : "");
    }

    private static ToolCall Call(PythonValue value, int index, string path)
    {
        var call = new JsonFields(value, index, path, "a call object with a function");
        var function = Function(call, index);
        string name = function.RequiredString("name", "give the name of the called function");
        return new ToolCall(call.String("id") ?? function.String("id"), name, Arguments(function));
    }

    // The reference takes a JSON text. Some clients send the object itself: it can only mean that text.
    private static string Arguments(JsonFields function) => function.Value("arguments") switch
    {
        null => throw function.Wrong("arguments", "is missing", "give the arguments as JSON text, \"{}\" for none"),
        { Kind: PythonKind.String } text => text.Text,
        { Kind: PythonKind.Object } value => PythonJson.Write(value),
        var value => throw function.Wrong(
            "arguments", $"expected JSON text, found {value.Describe()}", "give the arguments as a JSON string that holds an object"),
    };

    private static List<ToolDefinition> Tools(JsonFields fields, int? index) =>
        fields.Array("tools").Select((tool, i) => Tool(tool, index, $"tools[{i}]")).ToList();

    private static ToolDefinition Tool(PythonValue value, int? index, string path)
    {
        var tool = new JsonFields(value, index, path, "a tool object with a function");
        string name = Function(tool, index).RequiredString("name", "give the function's name");
        return new ToolDefinition(name, PythonJson.Write(tool.Value("function")!));
    }

    private static JsonFields Function(JsonFields owner, int? index)
    {
        const string wanted = "\"function\": {\"name\": ...}";
        var function = owner.Value("function") ?? throw owner.Wrong("function", "is missing", $"give {wanted}");
        return new JsonFields(function, index, owner.PathOf("function"), wanted);
    }

    // OpenAI's way of saying "no format".
    private static bool IsPlainText(PythonValue format) => format.Member("type") is { Kind: PythonKind.String, Text: "text" };

    private static PythonValue Parse(string json, string what)
    {
        try
        {
            return PythonJson.Parse(json);
        }
        catch (PythonJsonException fault)
        {
            throw new ChatEncodingException($"{what} is not JSON ({fault.Message})", "send one JSON value", inner: fault);
        }
    }

    // A name from outside, short and on one line, for a message.
    internal static string Shown(string name)
    {
        string line = new(name.Take(40).Select(c => char.IsControl(c) || char.IsSurrogate(c) ? '?' : c).ToArray());
        return name.Length > 40 ? line + "..." : line;
    }
}

// Step 4 of the encoding (specification 5.4): turns become segments, one after the other. Each turn has a body and,
// where the model is to speak next, a trailer: the assistant header or a task's token.
//
// Owned by one Render call and used once. Invariant: what a client or a model wrote enters the prompt only through
// Untrusted, what this file knows only through Trusted.

namespace Inference.Runtime.Chat;

internal sealed class DeepSeekV4Renderer
{
    private readonly PromptBuilder _prompt = new();
    private readonly ChatRenderOptions _options;
    private readonly string _effortPrefix;
    private readonly List<Turn> _turns;
    private readonly int _lastUser;
    private readonly bool _drops;
    private bool _opensReasoning;

    public DeepSeekV4Renderer(Conversation conversation, ChatRenderOptions options, string effortPrefix)
    {
        _options = options;
        _effortPrefix = effortPrefix;
        _turns = DeepSeekV4Turns.Of(conversation.Messages);
        _drops = options.DropThinking && !_turns.Any(turn => turn.HasTools);
        if (Thinks && _drops)
            _turns = DeepSeekV4Turns.WithoutPastDevelopers(_turns);
        _lastUser = DeepSeekV4Turns.LastUserIndex(_turns);
    }

    private bool Thinks => _options.ThinkingMode == ThinkingMode.Thinking;

    public RenderedPrompt Render()
    {
        if (_options.BeginOfSequence)
            _prompt.Trusted(DeepSeekV4Wire.BeginOfSequence);
        if (Thinks && _turns.Count > 0)
            _prompt.Trusted(_effortPrefix);
        for (int i = 0; i < _turns.Count; i++)
        {
            Body(i);
            if (i + 1 == _turns.Count ? _options.AsksForAnswer : _turns[i + 1].Role is ChatRole.Assistant or ChatRole.LatestReminder)
                Trailer(i);
        }
        return new RenderedPrompt(_prompt.ToSegments(), _opensReasoning);
    }

    private void Body(int index)
    {
        var turn = _turns[index];
        switch (turn.Role)
        {
            case ChatRole.System:
                Content(turn.MessageIndex, turn.Message);
                Appendices(turn);
                break;
            case ChatRole.Developer:
                Developer(turn);
                break;
            case ChatRole.User:
                _prompt.Trusted(DeepSeekV4Wire.User);
                Blocks(turn.Blocks);
                break;
            case ChatRole.LatestReminder:
                _prompt.Trusted(DeepSeekV4Wire.LatestReminder);
                Content(turn.MessageIndex, turn.Message);
                break;
            case ChatRole.Assistant:
                Assistant(index);
                break;
            default:
                throw new ChatEncodingException($"unknown role {(int)turn.Role}", "use one of ChatRole", turn.MessageIndex, "role");
        }
    }

    private void Developer(Turn turn)
    {
        if (turn.Message.Content.All(part => part.IsText && part.Text.Length == 0))
            throw new ChatEncodingException("a developer message needs content", "give its text", turn.MessageIndex, "content");
        _prompt.Trusted(DeepSeekV4Wire.User);
        Content(turn.MessageIndex, turn.Message);
        Appendices(turn);
    }

    private void Blocks(List<TurnBlock> blocks)
    {
        for (int i = 0; i < blocks.Count; i++)
        {
            if (i > 0)
                _prompt.Trusted(DeepSeekV4Wire.BlankLine);
            if (blocks[i].IsToolResult)
                _prompt.Trusted(DeepSeekV4Wire.ToolResultStart);
            Content(blocks[i].MessageIndex, blocks[i].Message);
            if (blocks[i].IsToolResult)
                _prompt.Trusted(DeepSeekV4Wire.ToolResultEnd);
        }
    }

    private void Content(int messageIndex, ChatMessage message)
    {
        for (int i = 0; i < message.Content.Count; i++)
        {
            var part = message.Content[i];
            if (i > 0)
                _prompt.Trusted(DeepSeekV4Wire.BlankLine);
            if (part.IsText)
            {
                _prompt.Untrusted(part.Text, messageIndex, "content");
            }
            else
            {
                _prompt.Trusted("[Unsupported ");
                _prompt.Untrusted(part.Type, messageIndex, "content");
                _prompt.Trusted("]");
            }
        }
    }

    // Tools and response format follow the message's own text.
    private void Appendices(Turn turn)
    {
        var message = turn.Message;
        if (message.Tools.Count > 0)
        {
            _prompt.Trusted(DeepSeekV4Wire.BlankLine + DeepSeekV4Wire.ToolsHead);
            for (int i = 0; i < message.Tools.Count; i++)
            {
                if (i > 0)
                    _prompt.Trusted("\n");
                _prompt.Untrusted(message.Tools[i].FunctionJson, turn.MessageIndex, "tools");
            }
            _prompt.Trusted(DeepSeekV4Wire.ToolsTail);
        }
        if (message.ResponseFormatJson is { } format)
        {
            _prompt.Trusted(DeepSeekV4Wire.BlankLine + DeepSeekV4Wire.ResponseFormatHead);
            _prompt.Untrusted(format, turn.MessageIndex, "response_format");
        }
    }

    private void Assistant(int index)
    {
        var turn = _turns[index];
        bool answersTask = index > 0 && _turns[index - 1].Task is not null;
        if (Thinks && !answersTask && (!_drops || index > _lastUser))
        {
            _prompt.Untrusted(turn.Message.ReasoningContent ?? "", turn.MessageIndex, "reasoning_content");
            _prompt.Trusted(DeepSeekV4Wire.ThinkEnd);
        }
        Content(turn.MessageIndex, turn.Message);
        if (turn.Message.ToolCalls.Count > 0)
            ToolCalls(turn);
        if (!turn.Message.WithoutEndOfSequence)
            _prompt.Trusted(DeepSeekV4Wire.EndOfSequence);
    }

    private void ToolCalls(Turn turn)
    {
        var calls = turn.Message.ToolCalls;
        _prompt.Trusted(DeepSeekV4Wire.BlankLine + DeepSeekV4Wire.CallsStart + ">\n");
        for (int i = 0; i < calls.Count; i++)
        {
            _prompt.Trusted(DeepSeekV4Wire.InvokeStart + DeepSeekV4Wire.NameAttribute);
            _prompt.Untrusted(calls[i].Name, turn.MessageIndex, $"tool_calls[{i}].function.name");
            _prompt.Trusted("\">\n");
            Arguments(calls[i], turn.MessageIndex, $"tool_calls[{i}].function.arguments");
            _prompt.Trusted("\n" + DeepSeekV4Wire.InvokeEnd + ">\n");
        }
        _prompt.Trusted(DeepSeekV4Wire.CallsEnd);
    }

    private void Arguments(ToolCall call, int messageIndex, string field)
    {
        if (!PythonJson.TryParse(call.Arguments, out var arguments) || arguments.Kind != PythonKind.Object)
        {
            Parameter(DeepSeekV4Wire.UnparsedArgumentsName, PythonValue.OfString(call.Arguments), messageIndex, field);
            return;
        }
        for (int i = 0; i < arguments.Members.Count; i++)
        {
            if (i > 0)
                _prompt.Trusted("\n");
            Parameter(arguments.Members[i].Key, arguments.Members[i].Value, messageIndex, field);
        }
    }

    // A string is written raw, as the reference does; only its control tokens are disarmed, by being untrusted.
    private void Parameter(string name, PythonValue value, int messageIndex, string field)
    {
        bool isString = value.Kind == PythonKind.String;
        _prompt.Trusted(DeepSeekV4Wire.ParameterStart + DeepSeekV4Wire.NameAttribute);
        _prompt.Untrusted(name, messageIndex, field);
        _prompt.Trusted(isString ? DeepSeekV4Wire.StringAttribute : DeepSeekV4Wire.JsonAttribute);
        _prompt.Untrusted(isString ? value.Text : PythonJson.Write(value), messageIndex, field);
        _prompt.Trusted(DeepSeekV4Wire.ParameterEnd + ">");
    }

    // What asks the model to go on: a task's token, or the header of its answer.
    private void Trailer(int index)
    {
        var turn = _turns[index];
        _opensReasoning = false;
        if (turn.Task is { } task)
        {
            if (task == ChatTask.Action)
                Header(opens: Thinks);
            _prompt.Trusted(DeepSeekV4Wire.TaskToken(task));
            _opensReasoning = false;
        }
        else if (turn.AsksForAnswer)
        {
            Header(opens: Thinks && (!_drops || index >= _lastUser));
        }
    }

    private void Header(bool opens)
    {
        _prompt.Trusted(DeepSeekV4Wire.Assistant);
        _prompt.Trusted(opens ? DeepSeekV4Wire.ThinkStart : DeepSeekV4Wire.ThinkEnd);
        _opensReasoning = opens;
    }
}

// From messages to turns: steps 1 to 3 of the encoding (specification 5.4).
//
//   1 merge    user and tool messages in a row become one user turn of blocks; a turn that has a task takes no
//              further text, only tool results. A merged message's own task is lost, as in the reference.
//   2 order    the tool results of a turn are put into the order in which the assistant made the calls.
//   3 drop     what a thinking model need not see again from before the last user turn.
//
// Pure: messages are read, never changed. A turn remembers which message each block came from, for error messages.

namespace Inference.Runtime.Chat;

/// <summary>A block of a user turn: a user message's text or a tool message's result.</summary>
internal readonly record struct TurnBlock(int MessageIndex, ChatMessage Message)
{
    public bool IsToolResult => Message.Role == ChatRole.Tool;
}

/// <summary>What is rendered as one: a user turn of blocks, or one message of another role.</summary>
internal sealed class Turn
{
    public Turn(int messageIndex, ChatMessage message)
    {
        MessageIndex = messageIndex;
        Message = message;
        IsUser = message.Role is ChatRole.User or ChatRole.Tool;
        if (IsUser)
            Blocks.Add(new TurnBlock(messageIndex, message));
    }

    /// <summary>Index and message that opened the turn.</summary>
    public int MessageIndex { get; }

    public ChatMessage Message { get; }

    public bool IsUser { get; }

    /// <summary>Blocks of a user turn; empty for other roles.</summary>
    public List<TurnBlock> Blocks { get; } = [];

    public ChatRole Role => IsUser ? ChatRole.User : Message.Role;

    // A turn that a tool message opened has no task: only a user message brings one.
    public ChatTask? Task => Message.Role == ChatRole.Tool ? null : Message.Task;

    /// <summary>Tools on a user or tool message are not rendered and do not count.</summary>
    public bool HasTools => !IsUser && Message.Tools.Count > 0;

    /// <summary>A turn that the model answers, so that an assistant header follows it.</summary>
    public bool AsksForAnswer => Role is ChatRole.User or ChatRole.Developer;
}

internal static class DeepSeekV4Turns
{
    /// <summary>Steps 1 and 2.</summary>
    public static List<Turn> Of(IReadOnlyList<ChatMessage> messages)
    {
        var turns = Merge(messages);
        OrderToolResults(turns);
        return turns;
    }

    /// <summary>
    /// Step 3, for thinking mode without tools: developer messages before the last user turn go. (The reasoning
    /// there goes too, by not being rendered.)
    /// </summary>
    public static List<Turn> WithoutPastDevelopers(List<Turn> turns)
    {
        int lastUser = LastUserIndex(turns);
        return turns.Where((turn, i) => i >= lastUser || turn.Role != ChatRole.Developer).ToList();
    }

    /// <summary>Index of the last user or developer turn; -1 when there is none.</summary>
    public static int LastUserIndex(List<Turn> turns) => turns.FindLastIndex(turn => turn.AsksForAnswer);

    private static List<Turn> Merge(IReadOnlyList<ChatMessage> messages)
    {
        var turns = new List<Turn>();
        for (int i = 0; i < messages.Count; i++)
        {
            var message = messages[i];
            if (turns.Count > 0 && TakesInto(turns[^1], message))
                turns[^1].Blocks.Add(new TurnBlock(i, message));
            else
                turns.Add(new Turn(i, message));
        }
        return turns;
    }

    private static bool TakesInto(Turn turn, ChatMessage message) => message.Role switch
    {
        ChatRole.Tool => turn.IsUser,
        ChatRole.User => turn.IsUser && turn.Task is null,
        _ => false,
    };

    private static void OrderToolResults(List<Turn> turns)
    {
        var callOrder = new Dictionary<string, int>();
        foreach (var turn in turns)
        {
            if (turn.Role == ChatRole.Assistant && turn.Message.ToolCalls.Count > 0)
                callOrder = CallOrder(turn.Message.ToolCalls);
            else if (turn.IsUser)
                OrderToolResults(turn.Blocks, callOrder);
        }
    }

    private static Dictionary<string, int> CallOrder(IReadOnlyList<ToolCall> calls)
    {
        var order = new Dictionary<string, int>();
        for (int i = 0; i < calls.Count; i++)
        {
            if (!string.IsNullOrEmpty(calls[i].Id))
                order[calls[i].Id!] = i;
        }
        return order;
    }

    // Results whose call is unknown count as answers to the first; OrderBy is stable; texts keep their slots.
    private static void OrderToolResults(List<TurnBlock> blocks, Dictionary<string, int> callOrder)
    {
        var ordered = new Queue<TurnBlock>(blocks
            .Where(block => block.IsToolResult)
            .OrderBy(block => callOrder.GetValueOrDefault(block.Message.ToolCallId ?? "", 0)));
        for (int i = 0; i < blocks.Count && ordered.Count > 0; i++)
        {
            if (blocks[i].IsToolResult)
                blocks[i] = ordered.Dequeue();
        }
    }
}

namespace Inference.Runtime.Chat;

/// <summary>
/// A conversation or a completion that cannot be encoded or decoded. The message names the place (message
/// index and field), what is wrong with it and the way out; a server maps it to "invalid argument".
/// </summary>
public class ChatEncodingException : Exception
{
    /// <param name="problem">What is wrong, without the place.</param>
    /// <param name="wayOut">What the sender can do about it, as a full clause.</param>
    /// <param name="messageIndex">Zero-based index into the conversation, if one message is at fault.</param>
    /// <param name="field">Path of the field inside the message (or inside the request).</param>
    public ChatEncodingException(string problem, string wayOut, int? messageIndex = null, string? field = null, Exception? inner = null)
        : base($"{Place(messageIndex, field)}{problem}; {wayOut}.", inner)
    {
        MessageIndex = messageIndex;
        Field = field;
    }

    /// <summary>Zero-based index of the message at fault; null when the fault is not in one message.</summary>
    public int? MessageIndex { get; }

    /// <summary>Path of the field at fault, e.g. <c>tool_calls[0].function.name</c>; null when there is none.</summary>
    public string? Field { get; }

    private static string Place(int? messageIndex, string? field) => (messageIndex, field) switch
    {
        (null, null) => "",
        (null, _) => $"{field}: ",
        (_, null) => $"messages[{messageIndex}]: ",
        _ => $"messages[{messageIndex}].{field}: ",
    };
}

using Inference.Runtime.Chat;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

public sealed class ParsedMessageTests
{
    [Fact]
    public void Is_written_in_the_form_of_the_reference()
    {
        var message = new ParsedMessage("c \"é\"\n", "r", [new ToolCall(null, "f", "{\"n\": 3}"), new ToolCall("call_1", "g", "{}")]);
        Assert.Equal(
            "{\"role\": \"assistant\", \"content\": \"c \\\"é\\\"\\n\", \"reasoning_content\": \"r\", \"tool_calls\": [" +
            "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{\\\"n\\\": 3}\"}}, " +
            "{\"id\": \"call_1\", \"type\": \"function\", \"function\": {\"name\": \"g\", \"arguments\": \"{}\"}}]}",
            ParsedMessageJson.Write(message));
        Assert.Equal(
            "{\"role\": \"assistant\", \"content\": \"\", \"reasoning_content\": \"\", \"tool_calls\": []}",
            ParsedMessageJson.Write(new ParsedMessage("", "", [])));
    }

    [Fact]
    public void Reads_back_as_a_message_of_a_conversation()
    {
        var message = new ParsedMessage("c", "r", [new ToolCall("call_1", "g", "{\"a\": \"🙂\"}")]);
        var read = ConversationJson.ReadMessages($"[{ParsedMessageJson.Write(message)}]").Messages.Single();
        var direct = message.ToChatMessage();
        Assert.Equal(direct.Content, read.Content);
        Assert.Equal(direct.ReasoningContent, read.ReasoningContent);
        Assert.Equal(direct.ToolCalls, read.ToolCalls);
        Assert.Equal(ChatRole.Assistant, read.Role);
    }
}

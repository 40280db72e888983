using System.Text;
using Inference.Runtime.Chat;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

public sealed class ConversationJsonTests
{
    [Fact]
    public void Reads_every_field_of_a_message()
    {
        var message = ConversationJson.ReadMessages("""
            [{"role":"assistant","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}],"reasoning_content":"r",
              "tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{ }"}}],"tool_call_id":"t",
              "tools":[{"type":"function","function":{"name":"g","x":[1,2.50]}}],"response_format":{"type":"json_object"},
              "task":"read_url","wo_eos":true,"mask":1,"unknown":{"a":[]}}]
            """).Messages.Single();

        Assert.Equal(ChatRole.Assistant, message.Role);
        Assert.Equal([new ContentPart("text", "a"), new ContentPart("image_url", "")], message.Content);
        Assert.Equal("r", message.ReasoningContent);
        Assert.Equal([new ToolCall("c1", "f", "{ }")], message.ToolCalls);
        Assert.Equal("t", message.ToolCallId);
        Assert.Equal("g", message.Tools.Single().Name);
        Assert.Equal("""{"name": "g", "x": [1, 2.5]}""", message.Tools.Single().FunctionJson);
        Assert.Equal("""{"type": "json_object"}""", message.ResponseFormatJson);
        Assert.Equal(ChatTask.ReadUrl, message.Task);
        Assert.True(message.WithoutEndOfSequence);
    }

    [Fact]
    public void A_null_field_is_a_missing_field()
    {
        var message = ConversationJson.ReadMessages("""
            [{"role":"user","content":null,"reasoning_content":null,"tool_calls":null,"tool_call_id":null,"tools":null,
              "response_format":null,"task":null,"wo_eos":null}]
            """).Messages.Single();

        Assert.Empty(message.Content);
        Assert.Null(message.ReasoningContent);
        Assert.Empty(message.ToolCalls);
        Assert.Empty(message.Tools);
        Assert.Null(message.ResponseFormatJson);
        Assert.Null(message.Task);
        Assert.False(message.WithoutEndOfSequence);
    }

    [Fact]
    public void Options_come_from_the_request_and_else_from_the_caller()
    {
        var defaults = new ChatRenderOptions
        {
            ThinkingMode = ThinkingMode.Chat,
            DropThinking = false,
            ReasoningEffort = ReasoningEffort.Max,
            BeginOfSequence = false,
        };
        Assert.Equal(defaults, ConversationJson.Read("""{"messages":[]}""", defaults).Options);
        Assert.Equal(defaults, ConversationJson.Read("[]", defaults).Options);
        Assert.Equal(new ChatRenderOptions(), ConversationJson.Read("[]").Options);
        Assert.Equal(
            new ChatRenderOptions
            {
                ThinkingMode = ThinkingMode.Thinking,
                DropThinking = true,
                ReasoningEffort = ReasoningEffort.High,
                BeginOfSequence = false,
            },
            ConversationJson.Read(
                """{"messages":[],"thinking_mode":"thinking","drop_thinking":true,"reasoning_effort":"high"}""", defaults).Options);
    }

    [Fact]
    public void Reads_bytes_with_or_without_a_byte_order_mark()
    {
        byte[] json = Encoding.UTF8.GetBytes("""{"messages":[{"role":"user","content":"é"}]}""");
        Assert.Equal("é", ConversationJson.Read(json).Conversation.Messages[0].Content[0].Text);
        Assert.Equal("é", ConversationJson.Read([0xEF, 0xBB, 0xBF, .. json]).Conversation.Messages[0].Content[0].Text);
        Assert.Contains("UTF-8", Assert.Throws<ChatEncodingException>(() => ConversationJson.Read([.. json, 0xFF])).Message);
    }

    [Fact]
    public void A_repeated_field_counts_as_its_last_value()
    {
        var message = ConversationJson.ReadMessages("""[{"role":"user","content":"first","content":"last"}]""").Messages.Single();
        Assert.Equal("last", message.Content.Single().Text);
    }

    [Theory]
    [InlineData("", null, null, "is not JSON (expected a value at character 0)")]
    [InlineData("""{"messages":[}""", null, null, "is not JSON (expected a value at character 13)")]
    [InlineData("3", null, null, "expected an object, found a number; give an object with 'messages', or an array of messages")]
    [InlineData("{}", null, "messages", "messages: is missing; give an array of messages")]
    [InlineData("""{"messages":"x"}""", null, "messages", "expected an array, found a string")]
    [InlineData("""{"messages":[],"thinking_mode":"deep"}""", null, "thinking_mode", "unknown mode 'deep'; use chat or thinking")]
    [InlineData("""{"messages":[],"thinking_mode":1}""", null, "thinking_mode", "expected a string, found a number")]
    [InlineData("""{"messages":[],"drop_thinking":"no"}""", null, "drop_thinking", "expected true or false, found a string")]
    [InlineData("""{"messages":[],"reasoning_effort":"none"}""", null, "reasoning_effort", "unknown effort 'none'; use low, medium, high, xhigh or max")]
    [InlineData("""{"messages":[],"tools":[{}]}""", null, "tools[0].function", "is missing")]
    [InlineData("""{"messages":[{"role":"system","tools":[{"function":{"name":"f"}}]}],"tools":[{"function":{"name":"f"}}]}""", 0, "tools", "give them in one place")]
    [InlineData("""{"messages":[{"role":"system","response_format":1}],"response_format":2}""", 0, "response_format", "give it in one place")]
    [InlineData("""[1]""", 0, null, "messages[0]: expected an object, found a number")]
    [InlineData("""[{"role":"user"},{}]""", 1, "role", "messages[1].role: is missing; use system, developer, user")]
    [InlineData("""[{"role":"User"}]""", 0, "role", "unknown role 'User'")]
    [InlineData("""[{"role":"a\u0007b\ud800c"}]""", 0, "role", "unknown role 'a?b?c'")]
    [InlineData("""[{"role":"user","content":1.5}]""", 0, "content", "expected a string or an array of parts, found a number")]
    [InlineData("""[{"role":"user","content":["x"]}]""", 0, "content[0]", "expected an object, found a string")]
    [InlineData("""[{"role":"user","content":[{"text":"x"}]}]""", 0, "content[0].type", "is missing")]
    [InlineData("""[{"role":"user","content":[{"type":"text","text":[]}]}]""", 0, "content[0].text", "expected a string, found an array")]
    [InlineData("""[{"role":"user","task":"think"}]""", 0, "task", "unknown task 'think'; use action, query")]
    [InlineData("""[{"role":"user","wo_eos":1}]""", 0, "wo_eos", "expected true or false, found a number")]
    [InlineData("""[{"role":"assistant","reasoning_content":false}]""", 0, "reasoning_content", "expected a string, found false")]
    [InlineData("""[{"role":"assistant","tool_calls":{}}]""", 0, "tool_calls", "expected an array, found an object")]
    [InlineData("""[{"role":"assistant","tool_calls":[{"name":"f"}]}]""", 0, "tool_calls[0].function", "is missing; give \"function\": {\"name\": ...}")]
    [InlineData("""[{"role":"assistant","tool_calls":[{"function":{"arguments":"{}"}}]}]""", 0, "tool_calls[0].function.name", "is missing")]
    [InlineData("""[{"role":"assistant","tool_calls":[{"function":{"name":"f"}}]}]""", 0, "tool_calls[0].function.arguments", "\"{}\" for none")]
    [InlineData("""[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":[1]}}]}]""", 0, "tool_calls[0].function.arguments", "expected JSON text, found an array")]
    [InlineData("""[{"role":"system","tools":[{"function":{"name":"f"}},{"function":"f"}]}]""", 0, "tools[1].function", "expected an object, found a string")]
    [InlineData("""[{"role":"system","tools":[{"function":{}}]}]""", 0, "tools[0].function.name", "is missing")]
    [InlineData("""[{"role":"tool","tool_call_id":7}]""", 0, "tool_call_id", "expected a string, found a number")]
    public void Names_the_place_the_fault_and_the_way_out(string json, int? message, string? field, string text)
    {
        var fault = Assert.Throws<ChatEncodingException>(() => ConversationJson.Read(json));
        Assert.Equal((message, field), (fault.MessageIndex, fault.Field));
        Assert.Contains(text, fault.Message);
        Assert.Contains("; ", fault.Message);
        Assert.EndsWith(".", fault.Message);
    }

    [Fact]
    public void A_long_name_is_shortened_in_the_message()
    {
        string role = new('x', 100_000);
        var fault = Assert.Throws<ChatEncodingException>(() => ConversationJson.ReadMessages($$"""[{"role":"{{role}}"}]"""));
        Assert.InRange(fault.Message.Length, 40, 250);
    }

    [Fact]
    public void A_tool_reads_alone()
    {
        var tool = ToolDefinition.Parse("""{"type":"function","function":{"name":"f","parameters":{"b":1e5,"a":"é"}}}""");
        Assert.Equal("f", tool.Name);
        Assert.Equal("""{"name": "f", "parameters": {"b": 100000.0, "a": "é"}}""", tool.FunctionJson);
        Assert.Throws<ChatEncodingException>(() => ToolDefinition.Parse("{"));
        Assert.Equal("tool.function", Assert.Throws<ChatEncodingException>(() => ToolDefinition.Parse("{}")).Field);
    }
}

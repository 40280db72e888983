// `inference chat` with its lines from standard input: several turns, commands, tools, a saved conversation that renders to what the model read.
using System.Text.Json;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class ChatCommandTests
{
    private const string About =
        "I am Pebble, a tiny mixture-of-experts model that ships with this server. I can recall facts from a long text, add small numbers, " +
        "spell words, tell short stories, write JSON and call tools.";

    [Fact]
    public void Turns_build_on_each_other_and_the_saved_conversation_is_what_the_model_read()
    {
        using var folder = new TemporaryFolder();
        string file = folder["saved.json"];
        var result = Cli.RunWithInput(
            $"What are you?\n/thinking on\nAdd 57 and 57.\n/stats\n/save {file}\n/exit\nnever read\n", "chat").Succeeds();
        Assert.Equal("", result.Error);
        foreach (string part in (string[])[About, "Thinking is on.", "57 + 57: ones 7 + 7 = 14, tens 5 + 5 = 10. Total 114.", "57 + 57 = 114.", "Saved 4 messages"])
            Assert.Contains(part, result.Out, StringComparison.Ordinal);
        Assert.DoesNotContain("never read", result.Out, StringComparison.Ordinal);

        string prompt = Cli.Run("render", "--messages", file).Succeeds().Out;
        Assert.StartsWith($"<｜begin▁of▁sentence｜><｜User｜>What are you?<｜Assistant｜></think>{About}<｜end▁of▁sentence｜><｜User｜>Add 57 and 57.<｜Assistant｜><think>",
            prompt, StringComparison.Ordinal);
        // The second prompt: the first turn, its answer, the second question.
        int tokens = Cli.RunWithInput(prompt[..(prompt.LastIndexOf("<think>", StringComparison.Ordinal) + "<think>".Length)], "tokenize", "--text", "-", "--json")
            .Json.GetProperty("ids").GetArrayLength();
        Assert.Contains($"prompt {tokens} tokens", result.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tools_result_is_the_next_line_after_its_call()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["tools.json"], """
            {"type": "function", "function": {"name": "get_weather", "description": "Current weather of a city",
             "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
            """);
        var result = Cli.RunWithInput($"What is the weather in Lima?\nsunny, 21 degrees\n/save {folder["saved.json"]}\n", "chat", "--tools", folder["tools.json"]).Succeeds();
        Assert.Contains("[tool call] get_weather {\"city\": \"Lima\"}\n", result.Out, StringComparison.Ordinal);
        var messages = JsonDocument.Parse(File.ReadAllText(folder["saved.json"])).RootElement.GetProperty("messages").EnumerateArray().ToList();
        Assert.Equal(["system", "user", "assistant", "tool", "assistant"], messages.Select(m => m.GetProperty("role").GetString()));
        Assert.Equal("sunny, 21 degrees", messages[3].GetProperty("content").GetString());
        Assert.Equal(messages[2].GetProperty("tool_calls")[0].GetProperty("id").GetString(), messages[3].GetProperty("tool_call_id").GetString());
        Assert.Contains("<tool_result>sunny, 21 degrees</tool_result>", Cli.Run("render", "--messages", folder["saved.json"]).Succeeds().Out, StringComparison.Ordinal);
    }

    [Fact]
    public void Commands_do_what_help_says()
    {
        using var folder = new TemporaryFolder();
        var result = Cli.RunWithInput(
            $"/help\n/stats\n/thinking maybe\n/system Be kind.\n\nWhat are you?\n/reset\n/save {folder["a.json"]}\n/save\n/save {folder["none/b.json"]}\n/sing\n", "chat").Succeeds();
        foreach (string part in (string[])["/system TEXT", "No answer yet.", "Give on or off.", "Thinking is off.", "System text set", "forgotten",
            "Saved 0 messages", "Give a file", "cannot be written", "no command /sing"])
            Assert.Contains(part, result.Out, StringComparison.Ordinal);
        var saved = JsonDocument.Parse(File.ReadAllText(folder["a.json"])).RootElement;
        var message = Assert.Single(saved.GetProperty("messages").EnumerateArray());
        Assert.Equal(("system", "Be kind."), (message.GetProperty("role").GetString(), message.GetProperty("content").GetString()));
    }

    [Fact]
    public void A_question_that_does_not_fit_is_told_and_the_dialogue_goes_on()
    {
        var result = Cli.RunWithInput($"{string.Join(' ', Enumerable.Repeat("many words", 60))}\nAdd 1 and 2.\n", "chat", "--context-max", "100").Succeeds();
        Assert.Contains("exceed the context of 100", result.Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", result.Error, StringComparison.Ordinal);
        Assert.NotEqual("", result.Out.Trim());
    }

    [Fact]
    public void A_backslash_takes_the_next_line_along()
    {
        using var folder = new TemporaryFolder();
        Cli.RunWithInput($"one\\\ntwo\n/save {folder["a.json"]}\n", "chat", "--max-tokens", "2").Succeeds();
        var messages = JsonDocument.Parse(File.ReadAllText(folder["a.json"])).RootElement.GetProperty("messages");
        Assert.Equal("one\ntwo", messages[0].GetProperty("content").GetString());
    }
}

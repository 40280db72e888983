// `inference render`, `parse` and `tokenize` on conversations and completions of the released encoder and parser, on Pebble's examples, and on
// input that is wrong. (The encoder itself is tested in full in Inference.Runtime.Tests; here it is the way from a file to standard output.)
using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class TextCommandTests
{
    private static readonly JsonArray Conversations = Fixture("deepseek_v4_preview.json"), Completions = Fixture("deepseek_v4_completions.json");
    private static readonly JsonArray Examples = Read(Path.Combine(RepositoryPaths.Pebble, "examples.json"));

    public static TheoryData<int> SomeConversations => [.. Some(Conversations, 10)];

    public static TheoryData<int> SomeCompletions => [.. Some(Completions, 8)];

    public static TheoryData<int> ExamplesOfEachTask =>
        [.. Examples.Select((e, i) => (Task: (string)e!["task"]!, Index: i)).GroupBy(e => e.Task).Select(g => g.First().Index)];

    [Theory, MemberData(nameof(SomeConversations))]
    public void Render_gives_the_released_encoders_prompt(int index)
    {
        using var folder = new TemporaryFolder();
        var fixture = Conversations[index]!.AsObject();
        string file = Write(folder, fixture);
        string prompt = (string)fixture["prompt"]!;
        var json = Cli.Run("render", "--messages", file, "--json").Json;
        Assert.Equal(prompt, json.GetProperty("prompt").GetString());
        // The ids say the same text, in the tokenizer's own words.
        var tokenizer = TokenizerFactory.Load(RepositoryPaths.Pebble);
        int[] ids = [.. json.GetProperty("token_ids").EnumerateArray().Select(id => id.GetInt32())];
        Assert.Equal(prompt, tokenizer.Decode(ids));
    }

    [Theory, MemberData(nameof(ExamplesOfEachTask))]
    public void Render_gives_the_ids_that_Pebble_was_trained_on(int index)
    {
        using var folder = new TemporaryFolder();
        var example = Examples[index]!.AsObject();
        var json = Cli.Run("render", "--model", RepositoryPaths.Pebble, "--messages", Write(folder, example), "--json").Json;
        Assert.Equal((string)example["prompt"]!, json.GetProperty("prompt").GetString());
        Assert.Equal(example["prompt_ids"]!.AsArray().Select(id => (int)id!), json.GetProperty("token_ids").EnumerateArray().Select(id => id.GetInt32()));
    }

    [Fact]
    public void Render_without_json_prints_the_prompt_and_nothing_else()
    {
        var example = Examples[0]!.AsObject();
        string input = new JsonObject { ["messages"] = example["messages"]!.DeepClone(), ["thinking_mode"] = "chat" }.ToJsonString();
        Assert.Equal((string)example["prompt"]!, Cli.RunWithInput(input, "render", "--messages", "-").Succeeds().Out);
    }

    [Theory, MemberData(nameof(SomeCompletions))]
    public void Parse_gives_the_released_parsers_message(int index)
    {
        using var folder = new TemporaryFolder();
        var fixture = Completions[index]!.AsObject();
        string file = folder["completion.txt"];
        File.WriteAllText(file, (string)fixture["completion"]!);
        var result = Cli.Run("parse", "--completion", file, "--thinking-mode", (string)fixture["thinking_mode"]!, "--json");
        Assert.True(JsonNode.DeepEquals(fixture["message"], JsonNode.Parse(result.Succeeds().Out)), result.Out);
    }

    [Fact]
    public void Parse_takes_the_line_end_that_an_editor_adds_and_shows_parts_without_json()
    {
        const string completion = "Hm.</think>Yes.<｜end▁of▁sentence｜>\n";
        var result = Cli.RunWithInput(completion, "parse", "--completion", "-", "--thinking-mode", "thinking").Succeeds();
        Assert.Equal("[reasoning]\nHm.\n[content]\nYes.\n", result.Out);
    }

    [Fact]
    public void Parse_is_strict_unless_told_otherwise()
    {
        Cli.RunWithInput("cut", "parse", "--completion", "-").Fails(2, "EndOfSequenceMissing", "leniently");
        Assert.Equal("[content]\ncut\n", Cli.RunWithInput("cut", "parse", "--completion", "-", "--lenient").Succeeds().Out);
    }

    [Fact]
    public void Tokenize_reads_control_tokens_unless_told_not_to()
    {
        const string text = "<｜User｜>naïve 你好\n🙂";
        var tokenizer = TokenizerFactory.Load(RepositoryPaths.Pebble);
        foreach (bool plain in (bool[])[false, true])
        {
            string[] more = plain ? ["--no-special"] : [];
            var json = Cli.RunWithInput(text, ["tokenize", "--text", "-", "--json", .. more]).Json;
            var ids = json.GetProperty("ids").EnumerateArray().Select(id => id.GetInt32()).ToList();
            Assert.Equal(tokenizer.Encode(text, plain ? AddedTokenPolicy.None : AddedTokenPolicy.All), ids);
            Assert.Equal(ids.Select(tokenizer.TokenText), json.GetProperty("tokens").EnumerateArray().Select(t => t.GetString()));
            Assert.Equal(!plain, ids.Contains(1015));
        }
        Assert.Contains("1015  '<｜User｜>'", Cli.RunWithInput(text, "tokenize", "--text", "-").Succeeds().Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_text_is_scored_as_it_is_tokenized()
    {
        const string text = "<｜User｜>What";
        var lines = Cli.RunWithInput(text, "score", "--text", "-", "--json").JsonLines;
        Assert.Equal([1015, 378], lines.Select(l => l.GetProperty("token_id").GetInt32()));
        Assert.Contains("'What'", Cli.RunWithInput(text, "score", "--text", "-").Succeeds().Out, StringComparison.Ordinal);
    }

    [Fact]
    public void Wrong_input_is_named_with_its_place()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllBytes(folder["latin1.txt"], [0x61, 0xE9, 0x61]);
        Cli.Run("tokenize", "--text", folder["none.txt"]).Fails(2, "--text", "none.txt", "no file");
        Cli.Run("tokenize", "--text", folder["latin1.txt"]).Fails(2, "--text", "not UTF-8", "byte 1");
        Cli.Run("tokenize").Fails(2, "--text");
        Cli.RunWithInput("[{\"role\":\"usr\"}]", "render", "--messages", "-").Fails(2, "messages[0].role", "'usr'", "assistant");
        Cli.RunWithInput("{", "render", "--messages", "-").Fails(2, "not JSON");
        Cli.RunWithInput("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"reasoning_effort\":\"low\"}", "render", "--messages", "-")
            .Fails(2, "reasoning_effort", "high or max");
        Cli.Run("parse", "--completion", folder["latin1.txt"], "--thinking-mode", "deep").Fails(2);
        Cli.RunWithInput("x", "parse", "--completion", "-", "--thinking-mode", "deep").Fails(2, "thinking_mode", "'deep'", "chat or thinking");
        TinyDeepSeekV4.TA.Write(folder.Path);
        Cli.RunWithInput("x", "tokenize", "--model", folder.Path, "--text", "-").Fails(2, "no tokenizer.json");
        File.WriteAllText(folder["tokenizer.json"], "{\"model\":{}}");
        Cli.RunWithInput("x", "tokenize", "--model", folder.Path, "--text", "-").Fails(2, "tokenizer.json");
    }

    private static string Write(TemporaryFolder folder, JsonObject fixture)
    {
        var request = new JsonObject { ["messages"] = fixture["messages"]!.DeepClone() };
        foreach (string name in (string[])["thinking_mode", "drop_thinking", "reasoning_effort"])
            if (fixture[name] is { } value) request[name] = value.DeepClone();
        string file = folder["messages.json"];
        File.WriteAllText(file, request.ToJsonString());
        return file;
    }

    // Spread over the whole file.
    private static IEnumerable<int> Some(JsonArray cases, int count) => Enumerable.Range(0, count).Select(i => i * cases.Count / count);

    private static JsonArray Fixture(string name) => Read(RepositoryPaths.Combine("tests", "Inference.Runtime.Tests", "Fixtures", "encoding", name));

    private static JsonArray Read(string file) => JsonNode.Parse(File.ReadAllText(file))!.AsArray();
}

using System.Text;
using System.Text.Json;
using Inference.Runtime.Chat;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

/// <summary>Random damage, fixed seeds: every input gives a result or a typed error, and nothing else.</summary>
public sealed class ChatFuzzTests
{
    private const int Rounds = 25_000;

    private static readonly string[] JsonPieces =
    [
        "{", "}", "[", "]", "\"", "\\", ",", ":", "null", "true", "1e999", "-", "\"\\ud800\"", "\"role\"", "\"tool\"", "\"user\"", "\"system\"",
        "\"developer\"", "\"assistant\"", "\"content\"", "\"tools\"", "\"tool_calls\"", "\"function\"", "\"task\":\"action\",", "\"wo_eos\":true,",
        "\"arguments\"", "[]", "{}", "\"\"", "\u0001", "\ud83d", "｜DSML｜", "[[[[[[[[", "0", "NaN",
    ];

    private static readonly string[] CompletionPieces =
    [
        "\n", "\n\n", ">", "<", "/", "\"", " ", "x", "｜DSML｜", "<think>", "</think>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
        "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>", "<｜DSML｜invoke name=\"", "</｜DSML｜invoke>\n", "<｜DSML｜parameter name=\"",
        "</｜DSML｜parameter>\n", "\" string=\"true\">", "\" string=\"false\">", "\">\n", "\ud83d", "\ude42", "\0",
    ];

    [Fact]
    public void Damaged_conversations_render_or_are_refused()
    {
        var encoding = new DeepSeekV4ChatEncoding(EncodingRelease.Ga);
        var seeds = EncodingFixtures.Prompts("deepseek_v4_corners.json").Select(c => WithoutPrompt(c.Json)).ToArray();
        var random = new Random(13);
        int rendered = 0;
        for (int round = 0; round < Rounds; round++)
        {
            string json = Damage(random, seeds[random.Next(seeds.Length)], JsonPieces);
            try
            {
                var request = ConversationJson.Read(json);
                var prompt = encoding.Render(request.Conversation, request.Options);
                rendered++;
                Assert.StartsWith("<｜begin▁of▁sentence｜>", prompt.Text);
                Encoding.UTF8.GetByteCount(prompt.Text);
            }
            catch (ChatEncodingException fault)
            {
                Assert.Contains("; ", fault.Message);
            }
        }
        Assert.InRange(rendered, Rounds / 20, Rounds * 19 / 20);
    }

    [Fact]
    public void Damaged_completions_parse_or_are_refused_and_leniently_always_parse()
    {
        var seeds = EncodingFixtures.Completions;
        var random = new Random(14);
        int parsed = 0;
        for (int round = 0; round < Rounds; round++)
        {
            var seed = seeds[random.Next(seeds.Count)];
            string text = Damage(random, seed.Text, CompletionPieces);
            var lenient = DeepSeekV4ChatEncoding.Parse(text, seed.Mode, CompletionParsing.Lenient);
            try
            {
                var strict = DeepSeekV4ChatEncoding.Parse(text, seed.Mode);
                parsed++;
                // Only an end token inside a call means something else to the lenient parser.
                if (text.IndexOf("<｜end▁of▁sentence｜>", StringComparison.Ordinal) == text.Length - "<｜end▁of▁sentence｜>".Length)
                    Assert.Equal(ParsedMessageJson.Write(strict), ParsedMessageJson.Write(lenient));
            }
            catch (CompletionFormatException fault)
            {
                Assert.InRange(fault.Position, 0, text.Length);
            }
        }
        Assert.InRange(parsed, Rounds / 50, Rounds * 19 / 20);
    }

    private static string WithoutPrompt(string json)
    {
        using var document = JsonDocument.Parse(json);
        var kept = document.RootElement.EnumerateObject().Where(p => p.Name != "prompt").Select(p => $"{JsonSerializer.Serialize(p.Name)}:{p.Value.GetRawText()}");
        return "{" + string.Join(",", kept) + "}";
    }

    private static string Damage(Random random, string text, string[] pieces)
    {
        for (int edits = random.Next(1, 5); edits > 0; edits--)
        {
            int at = random.Next(text.Length + 1);
            int length = Math.Min(text.Length - at, random.Next(1, 1 << random.Next(1, 8)));
            string piece = random.Next(8) == 0 ? ((char)random.Next(0x10000)).ToString() : pieces[random.Next(pieces.Length)];
            text = random.Next(5) switch
            {
                0 => text.Remove(at, length),
                1 => text.Insert(at, piece),
                2 => text.Remove(at, length).Insert(at, piece),
                3 => text.Insert(random.Next(text.Length + 1), text.Substring(at, length)),
                _ => random.Next(4) == 0 ? text[..at] : ReplaceOneToken(random, text, pieces),
            };
        }
        return text;
    }

    // Keeps the shape and changes one quoted word: most of these are still JSON, or still tags.
    private static string ReplaceOneToken(Random random, string text, string[] pieces)
    {
        int open = text.IndexOf('"', random.Next(text.Length + 1));
        int close = open < 0 || open + 1 >= text.Length ? -1 : text.IndexOf('"', open + 1);
        if (close < 0)
            return text;
        return string.Concat(text.AsSpan(0, open), pieces[random.Next(pieces.Length)], text.AsSpan(close + 1));
    }
}

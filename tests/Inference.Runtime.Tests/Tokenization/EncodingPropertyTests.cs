using System.Text.Json;
using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>What holds for every text.</summary>
public sealed class EncodingPropertyTests
{
    private const int TextsPerFamily = 3000;

    // Families whose encoding loses nothing: no normaliser, no space put first.
    public static TheoryData<string> Lossless => ["pebble", "deepseek-v3", "llama-3", "llama-4", "gpt-oss", "glm-4", "kimi-k2", "minimax-m2", "mistral-tekken", "gpt2", "tiktoken-llama4-like"];

    public static TheoryData<string> Families => [.. TokenizerFixtures.AllFamilies, "pebble"];

    [Theory]
    [MemberData(nameof(Lossless))]
    public void Text_reads_back_as_it_was(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var texts = new NastyText(41);
        for (var i = 0; i < TextsPerFamily; i++)
        {
            var text = texts.Next(12, ["<|a|>", "<soft>"]);
            foreach (var policy in (AddedTokenPolicy[])[AddedTokenPolicy.None, AddedTokenPolicy.NonSpecial, AddedTokenPolicy.All])
            {
                // Tokens that swallow white space or decode as bytes are the reference's doing; they are not in these literals.
                var decoded = tokenizer.Decode(tokenizer.Encode(text, policy).ToArray());
                if (policy == AddedTokenPolicy.None || !text.Contains("wörd", StringComparison.Ordinal))
                    Assert.True(text == decoded, $"text {i} {JsonSerializer.Serialize(text)} reads back as {JsonSerializer.Serialize(decoded)}");
            }
        }
    }

    [Theory]
    [InlineData("mixtral")]
    [InlineData("mixtral-metaspace")]
    public void Text_of_byte_fallback_families_reads_back_but_for_markers(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var texts = new NastyText(42);
        for (var i = 0; i < TextsPerFamily; i++)
        {
            var text = texts.Next(12, []).Replace('\u2581', ' ').TrimStart(' '); // a marker is a space there
            var decoded = tokenizer.Decode(tokenizer.Encode(text, AddedTokenPolicy.None).ToArray());
            Assert.True(text == decoded, $"text {i} {JsonSerializer.Serialize(text)} reads back as {JsonSerializer.Serialize(decoded)}");
        }
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Many_threads_get_the_ids_that_one_gets(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var texts = new NastyText(43);
        var (all, expected) = (new List<string>(), new List<List<int>>());
        for (var i = 0; i < 200; i++)
        {
            all.Add(texts.Next(60, ["<|a|>", "<soft>er", "<nörm>"]));
            expected.Add(tokenizer.Encode(all[i], AddedTokenPolicy.All));
        }
        Parallel.For(0, 2000, i => Assert.Equal(expected[i % 200], tokenizer.Encode(all[i % 200], AddedTokenPolicy.All)));
    }

    [Fact]
    public void Lone_surrogates_count_as_replacement_characters()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        Assert.Equal(tokenizer.Encode("a\ufffdb\ufffd", AddedTokenPolicy.All), tokenizer.Encode("a\ud83db\ude42", AddedTokenPolicy.All));
        Assert.Equal([0, 1, 2, 3], tokenizer.EncodeWithOffsets("a\ud83db\ude42", AddedTokenPolicy.All).Select(token => token.Start).Distinct());
    }

    [Fact]
    public void White_space_between_two_tokens_that_both_want_it_belongs_to_the_first()
    {
        var both = TokenizerFixtures.Load("deepseek-v3").EncodeWithOffsets("a<|rs|>  <|ls|>b", AddedTokenPolicy.All);
        Assert.Equal([(0, 1), (1, 9), (9, 15), (15, 16)], both.Select(token => (token.Start, token.End)));

        var json = TinyTokenizer.ByteLevel();
        var (first, second) = (TinyTokenizer.Added(264, "<r>", special: true), TinyTokenizer.Added(265, "\n\n<b>", special: true));
        (first["rstrip"], second["lstrip"]) = (true, true);
        json["added_tokens"]!.AsArray().Add(first);
        json["added_tokens"]!.AsArray().Add(second);
        var overlapping = TinyTokenizer.Load(json).EncodeWithOffsets("<r>\n\n<b>", AddedTokenPolicy.All);
        Assert.Equal([new TokenOffset(264, 0, 5), new TokenOffset(265, 5, 8)], overlapping);
    }

    [Fact]
    public void Ids_are_appended()
    {
        var tokenizer = TokenizerFixtures.Load("llama-3");
        var ids = new List<int> { -7 };
        tokenizer.Encode("", AddedTokenPolicy.All, ids);
        Assert.Equal([-7], ids);
        tokenizer.EncodeWithTemplate("", AddedTokenPolicy.All, ids);
        Assert.Equal([-7, 1204], ids);
        Assert.Equal([1204], tokenizer.TemplatePrefix);
        Assert.Empty(tokenizer.TemplateSuffix);
    }
}

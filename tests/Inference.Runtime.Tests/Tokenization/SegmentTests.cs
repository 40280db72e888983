using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Prompts in trusted and untrusted segments.</summary>
public sealed class SegmentTests
{
    private const int TextsPerFamily = 1000;

    // Without tokens that are matched only as single words: whether those match depends on text of their neighbours.
    public static TheoryData<string> Families =>
        ["pebble", "glm-4", "gpt-oss", "gpt2-prefix", "kimi-k2", "llama-4", "minimax-m2", "mistral-tekken", "mixtral-metaspace", "qwen3.5"];

    public static TheoryData<string> AllFamilies => [.. TokenizerFixtures.AllFamilies, "pebble"];

    [Theory]
    [MemberData(nameof(Families))]
    public void Borders_change_nothing_where_no_added_token_touches_untrusted_text(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var (texts, random) = (new NastyText(11), new Random(12));
        var mixed = 0;
        for (var i = 0; i < TextsPerFamily; i++)
        {
            var text = texts.Next(10, AddedTokens(tokenizer));
            var segments = CutOutsideOfTokens(tokenizer, text, random);
            mixed += segments.Count(s => s.Policy == AddedTokenPolicy.None) is > 0 and var untrusted && untrusted < segments.Count ? 1 : 0;
            Assert.Equal(text, string.Concat(segments.Select(s => s.Text)));
            AssertIds(tokenizer.Encode(text, AddedTokenPolicy.All), Encode(tokenizer, segments), text, segments);
        }
        Assert.True(mixed > TextsPerFamily / 3, $"only {mixed} texts had both kinds of segment");
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Added_tokens_come_from_trusted_stretches_and_from_nowhere_else(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var (texts, random) = (new NastyText(13), new Random(14));
        var found = 0;
        for (var i = 0; i < TextsPerFamily; i++)
        {
            var segments = CutAnywhere(texts.Next(10, AddedTokens(tokenizer)), random);
            var expected = Stretches(segments).SelectMany(stretch => tokenizer.Encode(stretch, AddedTokenPolicy.All)).Where(tokenizer.IsAdded).ToList();
            var ids = Encode(tokenizer, segments).Where(tokenizer.IsAdded).ToList();
            AssertIds(expected, ids, "added tokens", segments);
            found += ids.Count;
        }
        Assert.True(found > TextsPerFamily / 20, $"only {found} added tokens were found");
    }

    [Theory]
    [MemberData(nameof(AllFamilies))]
    public void Untrusted_text_never_becomes_an_added_token(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var added = AddedTokens(tokenizer);
        var texts = new NastyText(15);
        for (var i = 0; i < TextsPerFamily; i++)
        {
            var text = i < added.Count ? added[i] : texts.Next(10, added);
            Assert.DoesNotContain(tokenizer.Encode(text, AddedTokenPolicy.None), tokenizer.IsAdded);
            Assert.DoesNotContain(tokenizer.EncodeToIds(text), tokenizer.IsAdded);
            Assert.DoesNotContain(tokenizer.Encode(text, AddedTokenPolicy.NonSpecial), tokenizer.IsSpecial);
        }
    }

    [Fact]
    public void A_user_cannot_complete_a_token_that_the_template_began()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var think = tokenizer.IdOf("<think>")!.Value;
        Assert.Equal([think], Encode(tokenizer, [TextSegment.Trusted("<thi"), TextSegment.Trusted("nk>")]));
        foreach (var segments in (TextSegment[][])
        [
            [TextSegment.Trusted("<thi"), TextSegment.Untrusted("nk>")],
            [TextSegment.Untrusted("<"), TextSegment.Trusted("think>")],
            [TextSegment.Trusted("<thin"), TextSegment.Untrusted("k"), TextSegment.Trusted(">")],
            [TextSegment.Untrusted("<thi"), TextSegment.Untrusted("nk>")],
            [TextSegment.Trusted("<thi"), new TextSegment("nk>", AddedTokenPolicy.NonSpecial)],
        ])
        {
            AssertIds(tokenizer.Encode("<think>", AddedTokenPolicy.None), Encode(tokenizer, segments), "<think>", segments);
        }
    }

    [Fact]
    public void Words_run_on_across_borders_and_end_at_added_tokens()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var user = tokenizer.IdOf("<｜User｜>")!.Value;
        Assert.Equal(tokenizer.Encode("the answer", AddedTokenPolicy.None),
            Encode(tokenizer, [TextSegment.Trusted("the an"), TextSegment.Untrusted("sw"), TextSegment.Untrusted(""), TextSegment.Trusted("er")]));
        var ids = Encode(tokenizer, [TextSegment.Trusted("<｜User｜>"), TextSegment.Untrusted("<｜User｜>"), TextSegment.Trusted("<｜User｜>")]);
        Assert.Equal([user, .. tokenizer.Encode("<｜User｜>", AddedTokenPolicy.None), user], ids);
    }

    [Fact]
    public void A_mark_that_composes_with_trusted_text_does_not_complete_a_normalised_token()
    {
        var json = TinyTokenizer.ByteLevel();
        json["normalizer"] = new JsonObject { ["type"] = "NFC" };
        var token = TinyTokenizer.Added(263, "café", special: true);
        token["normalized"] = true;
        json["added_tokens"]!.AsArray()[1] = token;
        var tokenizer = TinyTokenizer.Load(json);
        Assert.Equal([263], tokenizer.Encode("cafe\u0301", AddedTokenPolicy.All));
        Assert.Equal([263], Encode(tokenizer, [TextSegment.Trusted("cafe"), TextSegment.Trusted("\u0301")]));
        var plain = tokenizer.Encode("cafe\u0301", AddedTokenPolicy.None);
        Assert.Equal(plain, Encode(tokenizer, [TextSegment.Trusted("cafe"), TextSegment.Untrusted("\u0301")]));
        Assert.Equal(plain, Encode(tokenizer, [TextSegment.Untrusted("cafe"), TextSegment.Trusted("\u0301")]));
        Assert.Equal([263, .. tokenizer.Encode("\u0301x", AddedTokenPolicy.None)], Encode(tokenizer, [TextSegment.Trusted("café"), TextSegment.Untrusted("\u0301x")]));
    }

    [Theory]
    [InlineData("qwen2")]
    [InlineData("gpt2")]
    [InlineData("mixtral")]
    public void Trust_is_followed_through_the_normaliser(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var token = tokenizer.IdOf("<nörm>")!.Value;
        var separate = Encode(tokenizer, [TextSegment.Untrusted("e\u0301 a <nörm> "), TextSegment.Trusted("<|a|>"), TextSegment.Untrusted("<nörm>"), TextSegment.Trusted("<|a|>")]);
        Assert.DoesNotContain(token, separate);
        Assert.Equal(2, separate.Count(id => id == tokenizer.IdOf("<|a|>")));
        if (family != "mixtral") // there the token is matched with the marker that is put before each text
            Assert.Contains(token, Encode(tokenizer, [TextSegment.Untrusted("e\u0301 a "), TextSegment.Trusted("<nörm>"), TextSegment.Untrusted("<nörm>")]));
    }

    private static List<int> Encode(ModelTokenizer tokenizer, IEnumerable<TextSegment> segments)
    {
        var ids = new List<int>();
        tokenizer.Encode([.. segments], ids);
        return ids;
    }

    private static void AssertIds(List<int> expected, List<int> ids, string text, IReadOnlyCollection<TextSegment> segments) =>
        Assert.True(expected.SequenceEqual(ids), $"{JsonSerializer.Serialize(text)} as {JsonSerializer.Serialize(segments)}: {string.Join(",", ids)} instead of {string.Join(",", expected)}");

    private static List<string> AddedTokens(ModelTokenizer tokenizer) =>
        Enumerable.Range(0, tokenizer.VocabSize).Where(tokenizer.IsAdded).Select(id => tokenizer.TokenText(id)!).ToList();

    // Segments of random trust; those that hold a part of an added token are trusted.
    private static List<TextSegment> CutOutsideOfTokens(ModelTokenizer tokenizer, string text, Random random)
    {
        var inToken = new bool[text.EnumerateRunes().Count() + 1];
        foreach (var token in tokenizer.EncodeWithOffsets(text, AddedTokenPolicy.All).Where(token => tokenizer.IsAdded(token.Id)))
            Array.Fill(inToken, true, token.Start, token.End - token.Start);
        var segments = new List<TextSegment>();
        var current = new StringBuilder();
        var (at, trusted) = (0, random.Next(2) == 0);
        foreach (var rune in text.EnumerateRunes())
        {
            if (random.Next(4) == 0 || (inToken[at] && !trusted))
            {
                segments.Add(new TextSegment(current.ToString(), trusted ? AddedTokenPolicy.All : AddedTokenPolicy.None));
                current.Clear();
                trusted = inToken[at] || random.Next(2) == 0;
            }
            current.Append(rune.ToString());
            at++;
        }
        segments.Add(new TextSegment(current.ToString(), trusted ? AddedTokenPolicy.All : AddedTokenPolicy.None));
        return segments;
    }

    private static List<TextSegment> CutAnywhere(string text, Random random)
    {
        var segments = new List<TextSegment>();
        var current = new StringBuilder();
        foreach (var rune in text.EnumerateRunes())
        {
            current.Append(rune.ToString());
            if (random.Next(12) != 0)
                continue;
            segments.Add(new TextSegment(current.ToString(), random.Next(2) == 0 ? AddedTokenPolicy.All : AddedTokenPolicy.None));
            current.Clear();
        }
        segments.Add(TextSegment.Trusted(current.ToString()));
        return segments;
    }

    // Trusted neighbours in one.
    private static List<string> Stretches(List<TextSegment> segments)
    {
        var stretches = new List<string>();
        var before = false;
        foreach (var segment in segments.Where(segment => segment.Text.Length > 0))
        {
            var trusted = segment.Policy == AddedTokenPolicy.All;
            if (trusted && before)
                stretches[^1] += segment.Text;
            else if (trusted)
                stretches.Add(segment.Text);
            before = trusted;
        }
        return stretches;
    }
}

using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Tokenization.Unicode;
using Inference.Testing;
using Xunit;
using Oracle = Tokenizers.DotNet.Tokenizer;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>
/// Against the Hugging Face library itself (Tokenizers.DotNet, tokenizers 0.22.2). It always parses all added tokens and
/// applies the post-processor, so that is what is compared. It ends the process on a panic: only valid files, only valid text.
/// </summary>
public sealed class DifferentialTests
{
    private const int StringsPerFamily = 10_000; // ten families: 100,000
    private const int PartsPerString = 12;

    public static TheoryData<string> Families => [.. FamiliesCompared];

    private static readonly string[] FamiliesCompared =
        ["pebble", "deepseek-v3", "llama-3", "llama-4", "qwen2", "qwen3.5", "kimi-k2", "mistral-tekken", "gpt2-prefix", "mixtral"];

    [Theory]
    [MemberData(nameof(Families))]
    public void Random_text_has_the_ids_of_the_library(string family)
    {
        var seed = 20260101 + Array.IndexOf(FamiliesCompared, family);
        var tokenizer = TokenizerFixtures.Load(family);
        using var oracle = new Oracle(Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json"));
        var literals = AddedTokens(tokenizer, family);
        var texts = new NastyText(seed);
        for (var i = 0; i < StringsPerFamily; i++)
            AssertSame(tokenizer, oracle, texts.Next(PartsPerString, literals), $"{family}, seed {seed}, string {i}");
    }

    [Theory]
    [InlineData("mixtral-metaspace")]
    [InlineData("gpt2")]
    [InlineData("glm-4")]
    [InlineData("gpt-oss")]
    [InlineData("minimax-m2")]
    public void Random_text_has_the_ids_of_the_library_in_the_near_relatives_too(string family)
    {
        const int seed = 7;
        var tokenizer = TokenizerFixtures.Load(family);
        using var oracle = new Oracle(Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json"));
        var literals = AddedTokens(tokenizer, family);
        var texts = new NastyText(seed);
        for (var i = 0; i < StringsPerFamily / 5; i++)
            AssertSame(tokenizer, oracle, texts.Next(PartsPerString, literals), $"{family}, seed {seed}, string {i}");
    }

    // The rules of added tokens, whatever their flags are.
    [Theory]
    [InlineData("qwen2")]
    [InlineData("deepseek-v3")]
    [InlineData("mixtral")]
    [InlineData("mixtral-metaspace")]
    [InlineData("gpt2-prefix")]
    public void Added_tokens_with_random_flags_are_matched_as_the_library_matches_them(string family)
    {
        const int variants = 12;
        const int stringsPerVariant = 300;
        using var folder = new TemporaryFolder();
        for (var variant = 0; variant < variants; variant++)
        {
            var random = new Random(variant);
            var json = JsonNode.Parse(File.ReadAllBytes(Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json")))!;
            foreach (var token in json["added_tokens"]!.AsArray())
            {
                foreach (var flag in (string[])["single_word", "lstrip", "rstrip", "normalized", "special"])
                    token![flag] = random.Next(2) == 0;
            }
            var file = folder[$"{variant}.json"];
            File.WriteAllText(file, json.ToJsonString());
            var tokenizer = TokenizerFactory.FromJson(File.ReadAllBytes(file), file);
            using var oracle = new Oracle(file);
            var (texts, literals) = (new NastyText(variant), AddedTokens(tokenizer, family));
            for (var i = 0; i < stringsPerVariant; i++)
                AssertSame(tokenizer, oracle, texts.Next(PartsPerString, literals), $"{family}, flags {variant}, string {i}");
        }
    }

    // Each code point behind a letter, a digit and a space, and before them, so that all rules of a pattern see it. Above
    // U+3100, where long runs are alike, only the ends of each run.
    [Theory]
    [InlineData("deepseek-v3")]
    [InlineData("qwen3.5")]
    [InlineData("kimi-k2")]
    [InlineData("gpt2")]
    [InlineData("mistral-tekken")]
    public void Every_kind_of_code_point_is_split_as_the_library_splits_it(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        using var oracle = new Oracle(Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json"));
        var codePoints = Enumerable.Range(0, 0x3100).Concat(CodePointClassData.Runs.ToArray().SelectMany(run => Enumerable.Range((int)(run >> 10) - 1, 2)))
            .Where(c => c is >= 0 and (< 0xD800 or >= 0xE000)).Distinct().ToList();
        foreach (var some in codePoints.Chunk(256))
        {
            var text = new StringBuilder();
            foreach (var character in some.Select(char.ConvertFromUtf32))
                text.Append('a').Append(character).Append('B').Append(character).Append(character).Append(' ').Append(character).Append("1 ");
            AssertSame(tokenizer, oracle, text.ToString(), $"{family}, code points from U+{some[0]:X4}");
        }
    }

    [Fact]
    public void Every_composition_is_normalised_as_the_library_normalises_it()
    {
        var tokenizer = TokenizerFixtures.Load("qwen2");
        using var oracle = new Oracle(Path.Combine(TokenizerFixtures.FolderOf("qwen2"), "tokenizer.json"));
        var text = new StringBuilder();
        foreach (var pairs in (int[][])[NfcData.Composites.ToArray(), NfcData.Excluded.ToArray()])
        {
            for (var i = 0; i < pairs.Length; i += 3)
            {
                var (composed, first, second) = (char.ConvertFromUtf32(pairs[i]), char.ConvertFromUtf32(pairs[i + 1]), char.ConvertFromUtf32(pairs[i + 2]));
                text.Append($"{first}{second} {composed} {first}\u0323{second} {first}\u0301{second} {composed}\u0301\u0323 {first}\u0334{second}\n");
                Check(ref text, "composition");
            }
        }
        for (var i = 0; i < NfcData.Singletons.Length; i += 2)
        {
            text.Append(char.ConvertFromUtf32(NfcData.Singletons[i])).Append("\u0301 ");
            Check(ref text, "singleton");
        }
        for (var i = 0; i < NfcData.CombiningClasses.Length; i += 3)
        {
            var mark = char.ConvertFromUtf32(NfcData.CombiningClasses[i]);
            text.Append($"a{mark}\u0301 a\u0301{mark} a\u0323{mark}\u0334 {mark}\u0300 ");
            Check(ref text, "combining class");
        }
        for (var lead = 0x1100; lead < 0x1113; lead++)
        {
            for (var vowel = 0x1161; vowel < 0x1176; vowel++)
                text.Append($"{(char)lead}{(char)vowel}{(char)(0x11A8 + ((lead + vowel) % 27))} {(char)lead}{(char)vowel}\u11A7 {(char)vowel}{(char)lead} {(char)lead}{(char)vowel}\u11A8\u11A8");
            Check(ref text, "Hangul");
        }
        AssertSame(tokenizer, oracle, text.ToString(), "rest");

        void Check(ref StringBuilder collected, string what)
        {
            if (collected.Length < 2000)
                return;
            AssertSame(tokenizer, oracle, collected.ToString(), what);
            collected.Clear();
        }
    }

    private static void AssertSame(ModelTokenizer tokenizer, Oracle oracle, string text, string what)
    {
        var ids = new List<int>();
        tokenizer.EncodeWithTemplate(text, AddedTokenPolicy.All, ids);
        var expected = oracle.Encode(text);
        for (var i = 0; i < Math.Max(ids.Count, expected.Length); i++)
        {
            if (i >= ids.Count || i >= expected.Length || ids[i] != (int)expected[i])
            {
                Assert.Fail($"{what}: {JsonSerializer.Serialize(text)}\nours {string.Join(",", ids.Skip(Math.Max(0, i - 5)).Take(30))}\ntheirs {string.Join(",", expected.Skip(Math.Max(0, i - 5)).Take(30))}");
            }
        }
    }

    // The library numbers the embedded model's ids 0 to 2 anew, because the model's own vocabulary does not list them.
    private static List<string> AddedTokens(ModelTokenizer tokenizer, string family) => Enumerable.Range(family == "pebble" ? 3 : 0, tokenizer.VocabSize)
        .Where(tokenizer.IsAdded).Select(id => tokenizer.TokenText(id)!).ToList();
}

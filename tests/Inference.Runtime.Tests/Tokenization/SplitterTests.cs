using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Tokenization.Loading;
using Inference.Runtime.Tokenization.Splitting;
using Inference.Runtime.Tokenization.Unicode;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>What the pre-tokenizers alone do, and the character classes behind them.</summary>
public sealed class SplitterTests
{
    [Theory]
    [InlineData("deepseek-v3", "deepseek-v3")]
    [InlineData("llama-3", "llama-3")]
    [InlineData("glm-4", "llama-3")]
    [InlineData("llama-4", "llama-4")]
    [InlineData("gpt-oss", "llama-4")]
    [InlineData("minimax-m2", "llama-4")]
    [InlineData("qwen2", "qwen2")]
    [InlineData("qwen3.5", "qwen3.5")]
    [InlineData("kimi-k2", "kimi-k2")]
    [InlineData("mistral-tekken", "mistral-tekken")]
    [InlineData("gpt2", "gpt2")]
    [InlineData("gpt2-prefix", "gpt2-prefix")]
    public void Pieces_are_those_of_the_reference(string family, string piecesOf)
    {
        var (splitter, addsSpace) = SplitterOf(family);
        var differences = new Differences();
        foreach (var entry in TokenizerFixtures.Read<JsonElement[][]>($"{piecesOf}/pieces.json"))
        {
            var text = entry[0].GetString()!;
            var expected = entry[1].EnumerateArray().Select(piece => piece.GetString()!).ToArray();
            var pieces = Pieces(splitter, addsSpace && !text.StartsWith(' ') && text.Length > 0 ? " " + text : text);
            differences.Check(pieces.SequenceEqual(expected), () => $"{JsonSerializer.Serialize(text)}: {string.Join(" | ", pieces)} instead of {string.Join(" | ", expected)}");
        }
        differences.AssertNone(800);
    }

    // A second opinion that small vocabularies cannot blur: the published pattern itself, run by .NET step by step. Its engine
    // sees UTF-16 units, so only on text of the basic plane; it folds no long s, so not on that.
    [Theory]
    [InlineData("deepseek-v3")]
    [InlineData("llama-3")]
    [InlineData("llama-4")]
    [InlineData("qwen2")]
    [InlineData("qwen3.5")]
    [InlineData("mistral-tekken")]
    public void Pieces_are_those_of_the_published_pattern(string family)
    {
        const int texts = 6000;
        var splitter = SplitterOf(family).Splitter;
        using var document = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json")));
        Regex[] steps = [.. document.RootElement.GetProperty("pre_tokenizer").GetProperty("pretokenizers").EnumerateArray()
            .Where(step => step.GetProperty("type").GetString() == "Split")
            .Select(step => new Regex(step.GetProperty("pattern").GetProperty("Regex").GetString()!, RegexOptions.CultureInvariant))];
        var source = new NastyText(51);
        var differences = new Differences();
        for (var i = 0; i < texts; i++)
        {
            var text = string.Concat(source.Next(10, []).Where(c => !char.IsSurrogate(c) && c != '\u017f'));
            IEnumerable<string> expected = text.Length == 0 ? [] : [text];
            foreach (var step in steps)
                expected = expected.SelectMany(piece => Isolate(step, piece)).ToArray();
            var pieces = Pieces(splitter, text);
            differences.Check(pieces.SequenceEqual(expected), () => $"{JsonSerializer.Serialize(text)}: {string.Join(" | ", pieces)} instead of {string.Join(" | ", expected)}");
        }
        differences.AssertNone(texts);
    }

    private static List<string> Isolate(Regex pattern, string text)
    {
        var (pieces, done) = (new List<string>(), 0);
        foreach (Match match in pattern.Matches(text))
        {
            if (match.Index > done)
                pieces.Add(text[done..match.Index]);
            pieces.Add(match.Value);
            done = match.Index + match.Length;
        }
        if (done < text.Length)
            pieces.Add(text[done..]);
        return pieces;
    }

    [Fact]
    public void Character_classes_hold_exactly_the_code_points_of_the_reference_engines()
    {
        using var document = JsonDocument.Parse(File.ReadAllBytes(Fixture.Path("tokenizers/unicode_classes.json")));
        var classes = document.RootElement.GetProperty("classes");
        var upperPart = (string[])["\\p{Lu}", "\\p{Lt}", "\\p{Lm}", "\\p{Lo}", "\\p{M}"];
        var lowerPart = (string[])["\\p{Ll}", "\\p{Lm}", "\\p{Lo}", "\\p{M}"];
        AssertClass(classes, CodePointClass.Letter, "\\p{L}");
        AssertClass(classes, CodePointClass.Number, "\\p{N}");
        AssertClass(classes, CodePointClass.Mark, "\\p{M}");
        AssertClass(classes, CodePointClass.Punctuation, "\\p{P}");
        AssertClass(classes, CodePointClass.Symbol, "\\p{S}");
        AssertClass(classes, CodePointClass.Space, "\\s");
        AssertClass(classes, CodePointClass.Han, "\\p{Han}");
        AssertClass(classes, CodePointClass.UpperPart, upperPart);
        AssertClass(classes, CodePointClass.LowerPart, lowerPart);
        var withoutHan = Enumerable.Range(0, 0x110000)
            .Where(c => (CodePoints.ClassOf(c) & (CodePointClass.UpperPart | CodePointClass.Han)) == CodePointClass.UpperPart);
        Assert.Equal(Ranges(classes, "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"), withoutHan.ToHashSet());
    }

    [Fact]
    public void Contractions_fold_case_as_the_reference_engines_do()
    {
        using var document = JsonDocument.Parse(File.ReadAllBytes(Fixture.Path("tokenizers/unicode_classes.json")));
        var classes = document.RootElement.GetProperty("classes");
        Assert.Equal(Ranges(classes, "(?i:s)"), SingleLettersThatContract());
        for (var c = 0x80; c < 0x20000; c++)
        {
            if (c is >= 0xD800 and < 0xE000 or 0x17F)
                continue;
            var rune = char.ConvertFromUtf32(c);
            foreach (var text in (string[])[$"'{rune}", $"'r{rune}", $"'{rune}e", $"'l{rune}", $"'{rune}l"])
                Assert.Equal(0, SplitRules.Contraction(Encoding.UTF8.GetBytes(text), 0));
        }
        foreach (var text in (string[])["'RE", "'Re", "'rE", "'VE", "'ve", "'LL", "'lL"])
            Assert.Equal(3, SplitRules.Contraction(Encoding.UTF8.GetBytes(text), 0));
        foreach (var text in (string[])["'", "'a", "'k", "'r", "'l", "'le", "'rl", "s", "''s"])
            Assert.Equal(0, SplitRules.Contraction(Encoding.UTF8.GetBytes(text), 0));
    }

    // Besides t, m and d, which only ASCII letters fold to.
    private static HashSet<int> SingleLettersThatContract() => Enumerable.Range(0, 0x110000)
        .Where(c => c is (< 0xD800 or >= 0xE000) and not ('t' or 'T' or 'm' or 'M' or 'd' or 'D'))
        .Where(c => Encoding.UTF8.GetBytes("'" + char.ConvertFromUtf32(c)) is var text && SplitRules.Contraction(text, 0) == text.Length)
        .ToHashSet();

    private static void AssertClass(JsonElement classes, CodePointClass flag, params string[] names)
    {
        var expected = names.SelectMany(name => Ranges(classes, name)).ToHashSet();
        for (var c = 0; c < 0x110000; c++)
        {
            if (c is (< 0xD800 or >= 0xE000) && expected.Contains(c) != ((CodePoints.ClassOf(c) & flag) != 0))
                Assert.Fail($"U+{c:X4} and {flag}");
        }
    }

    private static HashSet<int> Ranges(JsonElement classes, string name) => classes.GetProperty(name).EnumerateArray()
        .SelectMany(range => Enumerable.Range(range[0].GetInt32(), range[1].GetInt32() - range[0].GetInt32() + 1)).ToHashSet();

    private static (PieceSplitter Splitter, bool AddsSpace) SplitterOf(string family)
    {
        var file = Path.Combine(TokenizerFixtures.FolderOf(family), "tokenizer.json");
        using var document = JsonPlace.Parse(file, File.ReadAllBytes(file));
        var steps = TextSteps.Read(new JsonPlace(file, "$", document.RootElement));
        return (steps.Splitter!, steps.Preparation is not null);
    }

    private static List<string> Pieces(PieceSplitter splitter, string text)
    {
        var bytes = Encoding.UTF8.GetBytes(text);
        var pieces = new List<string>();
        for (int at = 0, end; at < bytes.Length; at = end)
        {
            end = splitter.EndOfPiece(bytes, at);
            pieces.Add(Encoding.UTF8.GetString(bytes[at..end]));
        }
        return pieces;
    }
}

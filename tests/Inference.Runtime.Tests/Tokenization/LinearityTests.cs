using System.Text;
using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Encoding costs time in proportion to the text, whatever the text.</summary>
public sealed class LinearityTests
{
    private const int Large = 1 << 20; // bytes
    private const int Growth = 16;
    private const int Runs = 2;

    // 16 times the text may take 16 times the time, and n log n and colder caches some more; n * n would take 256 times.
    private const double MostGrowth = Growth * 5;
    private const double LeastSeconds = 0.003; // below, a measurement says nothing
    private const double MostSecondsPerMegabyte = 1;

    public static TheoryData<string, string> Cases
    {
        get
        {
            var cases = new TheoryData<string, string>();
            foreach (var family in (string[])["pebble", "llama-4", "gpt2", "mixtral", "qwen2", "kimi-k2"])
            {
                foreach (var text in (string[])["spaces", "letters", "digits", "emoji", "random letters", "capitals", "line breaks", "marks", "controls", "markers", "tags"])
                    cases.Add(family, text);
            }
            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public void A_megabyte_of_one_kind_takes_time_in_proportion(string family, string kind)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        Seconds(tokenizer, Text(kind, Large / Growth / 8));
        var small = Seconds(tokenizer, Text(kind, Large / Growth));
        var large = Seconds(tokenizer, Text(kind, Large));
        AssertGrowth(small, large);
        Assert.True(large < MostSecondsPerMegabyte, $"a megabyte took {large:F4} s");
    }

    [Fact]
    public void Segments_by_the_thousand_cost_no_more_than_their_text()
    {
        var tokenizer = TokenizerFixtures.Load("gpt2"); // has added tokens that are matched normalised, so trust is followed
        Seconds(1000);
        var small = Seconds(2_000);
        var large = Seconds(2_000 * Growth);
        AssertGrowth(small, large);

        double Seconds(int count)
        {
            var segments = Enumerable.Range(0, count).Select(i => (i & 1) == 0 ? TextSegment.Trusted("<|a|> a <nörm> b") : TextSegment.Untrusted("e\u0301 <nörm>")).ToArray();
            return ThreadClock.MeasureBest(Runs, () => tokenizer.Encode(segments, new List<int>()));
        }
    }

    private static double Seconds(ModelTokenizer tokenizer, string text) =>
        ThreadClock.MeasureBest(Runs, () => tokenizer.Encode(text, AddedTokenPolicy.All));

    private static void AssertGrowth(double small, double large) => Assert.True(
        large < Math.Max(small, LeastSeconds) * MostGrowth, $"{Growth} times the text took {large:F4} s instead of {small:F4} s");

    private static string Text(string kind, int bytes)
    {
        var random = new Random(31);
        switch (kind)
        {
            case "spaces":
                return new string(' ', bytes) + "x";
            case "letters":
                return new string('a', bytes);
            case "digits":
                return new string('7', bytes);
            case "emoji":
                return string.Concat(Enumerable.Repeat("🙂", bytes / 4));
            case "capitals":
                return new string('A', bytes - 2) + "中B";
            case "line breaks":
                return string.Concat(Enumerable.Repeat("\n ", bytes / 2)) + "x";
            case "marks":
                return "e" + string.Concat(Enumerable.Repeat("\u0323\u0301", bytes / 4));
            case "controls":
                return new string('\u0001', bytes);
            case "markers":
                return string.Concat(Enumerable.Repeat("\u2581 ", bytes / 4));
            case "tags":
                return new string('<', bytes);
            default:
                var text = new StringBuilder(bytes);
                while (text.Length < bytes)
                    text.Append((char)random.Next('a', 'z' + 1));
                return text.ToString();
        }
    }
}

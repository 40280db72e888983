using System.Buffers;
using System.Text;
using System.Text.RegularExpressions;
using Microsoft.ML.Tokenizers;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>
/// Why the tokenizer is our own: faults of Microsoft.ML.Tokenizers 2.0.1, reproduced. Each test asserts the faulty behaviour, so
/// that the day a new version mends it the test fails and the decision can be looked at again.
/// </summary>
public sealed partial class MicrosoftTokenizerFaultTests
{
    private static readonly RegexPreTokenizer DeepSeekWords = new(DeepSeekWordsPattern(), null);

    private static readonly CompositePreTokenizer DeepSeek = new(
        [new RegexPreTokenizer(NumbersPattern(), null), new RegexPreTokenizer(CjkPattern(), null), DeepSeekWords]);

    [Fact]
    public void Fault_1_a_pattern_sees_surrogates_and_cuts_an_emoji_in_half()
    {
        const string text = "a🙂b";
        var pieces = DeepSeek.PreTokenize(text).ToArray();
        Assert.Contains(pieces, piece => char.IsLowSurrogate(text[piece.Item1]));
        Assert.NotEqual("a🙂b"u8.ToArray(), Decode(ByteLevel(DeepSeek).EncodeToIds(text)));
    }

    [Fact]
    public void Fault_2_a_piece_that_an_early_step_matched_is_not_passed_to_the_later_steps()
    {
        // The middle dot is punctuation: three pieces for the reference library (see Fixtures/tokenizers/deepseek-v3/pieces.json).
        Assert.Equal([(0, 7)], DeepSeek.PreTokenize("ジョン・スミス"));
    }

    [Theory]
    [InlineData("x\0")]
    [InlineData("ab\u200d")]
    public void Fault_3_a_tail_that_nothing_matches_gets_a_wrong_length_and_encoding_throws(string text)
    {
        var last = DeepSeek.PreTokenize(text).Last();
        Assert.True(last.Item1 + last.Item2 > text.Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => ByteLevel(DeepSeek).EncodeToIds(text));
    }

    [Fact]
    public void Fault_4_pieces_of_a_span_are_read_from_a_buffer_that_was_given_back()
    {
        var text = new string('1', 50) + " hello world, this buffer is somebody else's by now";
        var late = DeepSeek.PreTokenize(text.AsSpan()); // lazy: nothing has been read yet
        var others = Enumerable.Range(0, 8).Select(_ => ArrayPool<char>.Shared.Rent(text.Length)).ToArray();
        foreach (var buffer in others)
            Array.Fill(buffer, '7');
        var pieces = late.ToArray();
        foreach (var buffer in others)
            ArrayPool<char>.Shared.Return(buffer);
        Assert.NotEqual(DeepSeek.PreTokenize(text), pieces);
    }

    [Fact]
    public void Fault_5_one_long_piece_costs_more_than_its_length()
    {
        const int growth = 8;
        const double linear = growth * 1.5; // 25 to 35 is usual
        Time(1000, runs: 1);
        Assert.True(Time(12_500 * growth, runs: 1) / Time(12_500, runs: 3) > linear, "merging of a long piece has become linear");

        static double Time(int length, int runs)
        {
            var (tokenizer, text) = (ByteLevel(DeepSeekWords), new string('a', length));
            return ThreadClock.MeasureBest(runs, () => tokenizer.EncodeToIds(text));
        }
    }

    [Fact]
    public void Fault_6_of_special_tokens_the_first_listed_wins_and_not_the_longest_and_no_call_can_refuse_them()
    {
        var special = new Dictionary<string, int> { ["<|a|>"] = 300, ["<|a|>b"] = 301 };
        var tokenizer = ByteLevel(new RegexPreTokenizer(LettersPattern(), special), special);
        Assert.Equal([300, 'b'], tokenizer.EncodeToIds("<|a|>b"));
        var switches = typeof(EncodeSettings).GetProperties().Select(property => property.Name).Order();
        Assert.Equal(["ConsiderNormalization", "ConsiderPreTokenization", "MaxTokenCount"], switches);
    }

    [Fact]
    public void Fault_7_a_byte_level_tokenizer_without_pre_tokenizer_deletes_spaces() =>
        Assert.Equal("ab"u8.ToArray(), Decode(ByteLevel(null).EncodeToIds("a b")));

    private static BpeTokenizer ByteLevel(PreTokenizer? preTokenizer, Dictionary<string, int>? special = null)
    {
        var vocabulary = Enumerable.Range(0, 256).Select(value => new KeyValuePair<string, int>(TinyTokenizer.Spell((byte)value), value)).ToList();
        foreach (var token in (string[])["aa", "aaaa", "aaaaaaaa"])
            vocabulary.Add(new KeyValuePair<string, int>(token, vocabulary.Count));
        return BpeTokenizer.Create(new BpeOptions(vocabulary)
        {
            Merges = ["a a", "aa aa", "aaaa aaaa"],
            ByteLevel = true,
            PreTokenizer = preTokenizer,
            SpecialTokens = special,
        });
    }

    private static byte[] Decode(IEnumerable<int> ids) => [.. ids.Select(id => (byte)id)];

    [GeneratedRegex(@"\p{N}{1,3}")]
    private static partial Regex NumbersPattern();

    [GeneratedRegex("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")]
    private static partial Regex CjkPattern();

    [GeneratedRegex(@"[!""#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")]
    private static partial Regex DeepSeekWordsPattern();

    [GeneratedRegex(@"\p{L}+")]
    private static partial Regex LettersPattern();
}

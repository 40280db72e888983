using System.Buffers;
using System.Text;
using Inference.Runtime.Tokenization;
using Microsoft.ML.Tokenizers;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>The tokenizer as .NET code sees it that knows only Microsoft's type.</summary>
public sealed class BaseTypeTests
{
    private const string Text = "Hello wörld 🙂👩‍💻, e\u0301 日本語 1234\r\n  x";

    public static TheoryData<string> Families => [.. TokenizerFixtures.AllFamilies, "pebble"];

    [Theory]
    [MemberData(nameof(Families))]
    public void Ids_tokens_and_counts_agree(string family)
    {
        var own = TokenizerFixtures.Load(family);
        Tokenizer tokenizer = own;
        var ids = own.Encode(Text, AddedTokenPolicy.None);
        Assert.Equal(ids, tokenizer.EncodeToIds(Text));
        Assert.Equal(ids, tokenizer.EncodeToIds(Text.AsSpan()));
        Assert.Equal(ids.Count, tokenizer.CountTokens(Text));
        var tokens = tokenizer.EncodeToTokens(Text, out var normalized);
        Assert.Null(normalized);
        Assert.Equal(ids, tokens.Select(token => token.Id));
        Assert.Equal(own.Decode(ids.ToArray()), tokenizer.Decode(ids));
        Assert.Equal(own.TokenText(ids[0]), tokens[0].Value);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Offsets_are_utf_16_units_that_cover_the_text_and_never_cut_a_pair(string family)
    {
        Tokenizer tokenizer = TokenizerFixtures.Load(family);
        var end = 0;
        foreach (var token in tokenizer.EncodeToTokens(Text, out _))
        {
            var (start, stop) = (token.Offset.Start.Value, token.Offset.End.Value);
            Assert.True(start <= end || Text[end] == '\u0301', $"a gap before {start}");
            Assert.False(start < Text.Length && char.IsLowSurrogate(Text[start]));
            Assert.False(char.IsHighSurrogate(Text[stop - 1]));
            end = stop;
        }
        Assert.Equal(Text.Length, end);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void A_text_can_be_cut_at_any_token_count(string family)
    {
        Tokenizer tokenizer = TokenizerFixtures.Load(family);
        var total = tokenizer.CountTokens(Text);
        for (var most = 1; most <= total + 1; most++)
        {
            var index = tokenizer.GetIndexByTokenCount(Text, most, out _, out var count);
            Assert.InRange(count, 0, most);
            Assert.InRange(index, 0, Text.Length);
            Assert.False(index < Text.Length && char.IsLowSurrogate(Text[index]));
            Assert.Equal(most >= total, index == Text.Length);
            var ids = tokenizer.EncodeToIds(Text, most, out _, out var consumed);
            Assert.Equal((count, index), (ids.Count, consumed));
            Assert.Equal(tokenizer.EncodeToIds(Text).Take(count), ids);

            var fromEnd = tokenizer.GetIndexByTokenCountFromEnd(Text, most, out _, out var countFromEnd);
            Assert.InRange(countFromEnd, 0, most);
            Assert.False(fromEnd < Text.Length && char.IsLowSurrogate(Text[fromEnd]));
            Assert.Equal(most >= total, fromEnd == 0);
        }
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Decoding_into_small_buffers_loses_nothing(string family)
    {
        var own = TokenizerFixtures.Load(family);
        Tokenizer tokenizer = own;
        var ids = own.Encode(Text, AddedTokenPolicy.None);
        var expected = own.Decode(ids.ToArray());
        for (var size = 16; size <= expected.Length + 4; size += 5)
        {
            var (rest, text, buffer) = (ids.ToArray(), new StringBuilder(), new char[size]);
            while (true)
            {
                var status = tokenizer.Decode(rest, buffer, out var consumed, out var written);
                text.Append(buffer, 0, written);
                rest = rest[consumed..];
                if (status == OperationStatus.Done)
                    break;
                Assert.Equal(OperationStatus.DestinationTooSmall, status);
                Assert.True(consumed > 0, $"nothing fits into {size}");
            }
            Assert.Empty(rest);
            if (!TokenizerFixtures.IsByteFallback(family)) // a new call is a new text there, whose first space is dropped
                Assert.Equal(expected, text.ToString());
        }
        Assert.Equal(OperationStatus.DestinationTooSmall, tokenizer.Decode(ids, [], out var none, out _));
        Assert.Equal(0, none);
    }

    [Fact]
    public void Steps_can_be_left_out()
    {
        Tokenizer qwen = TokenizerFixtures.Load("qwen2");
        Assert.NotEqual(qwen.EncodeToIds("e\u0301"), qwen.EncodeToIds("e\u0301", considerNormalization: false));
        Tokenizer tiny = TinyTokenizer.Load(TinyTokenizer.ByteLevel());
        Assert.Equal(tiny.EncodeToIds("hello"), tiny.EncodeToIds("hello", considerPreTokenization: false));
        Assert.Equal([.. "a"u8.ToArray().Select(b => (int)b), 260, 'x'], tiny.EncodeToIds("a wx"));
    }

    [Fact]
    public void Empty_text_has_no_tokens_and_no_count_is_not_a_limit()
    {
        Tokenizer tokenizer = TokenizerFixtures.Load("pebble");
        Assert.Empty(tokenizer.EncodeToIds(""));
        Assert.Equal(0, tokenizer.CountTokens(""));
        Assert.Equal("", tokenizer.Decode([]));
        Assert.Throws<ArgumentOutOfRangeException>(() => tokenizer.GetIndexByTokenCount("a", 0, out _, out _));
    }
}

using System.Text;
using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Sequences of ids to text: whole, and one id at a time.</summary>
public sealed class DecodingTests
{
    public static TheoryData<string> Families => TokenizerFixtures.Families;

    [Theory]
    [MemberData(nameof(Families))]
    public void Whole_decoding_is_that_of_the_reference(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<DecodingCase[]>($"{family}/decode.json"))
        {
            var decoded = tokenizer.Decode(c.Ids);
            differences.Check(decoded == c.Decoded, () => $"{c.Note} [{string.Join(",", c.Ids)}]: \"{decoded}\" instead of \"{c.Decoded}\"");
            var skipped = tokenizer.Decode(c.Ids, skipSpecial: true);
            if (family != "tiktoken-llama4-like")
                differences.Check(skipped == (c.DecodedSkipSpecial ?? c.Decoded), () => $"{c.Note}, without special tokens: \"{skipped}\"");
            if (c.Bytes is not null)
            {
                var bytes = c.Ids.SelectMany(id => tokenizer.TokenBytes(id).ToArray()).ToArray();
                differences.Check(Convert.ToHexStringLower(bytes) == c.Bytes, () => $"{c.Note}: bytes {Convert.ToHexStringLower(bytes)}");
            }
        }
        differences.AssertNone(80);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void One_id_at_a_time_gives_the_same_text(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<DecodingCase[]>($"{family}/decode.json"))
        {
            foreach (var skip in (bool[])[false, true])
            {
                var whole = tokenizer.Decode(c.Ids, skip);
                var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(SkipSpecial: skip));
                var text = new StringBuilder();
                var bytes = new List<byte>();
                foreach (var id in c.Ids)
                {
                    text.Append(detokenizer.Append(id));
                    bytes.AddRange(detokenizer.LastTokenBytes);
                    Assert.False(text.Length > 0 && char.IsHighSurrogate(text[^1]), c.Note);
                }
                text.Append(detokenizer.Flush());
                Assert.True(detokenizer.IsDrained);
                Assert.Equal(c.Ids.Where(id => !(skip && tokenizer.IsSpecial(id))).SelectMany(id => tokenizer.TokenBytes(id).ToArray()), bytes);
                // A run of byte tokens that is invalid as a whole may differ; then in what it blots out, and in nothing else.
                var mayDiffer = TokenizerFixtures.IsByteFallback(family) && whole.Contains('\uFFFD', StringComparison.Ordinal);
                differences.Check(text.ToString() == whole || (mayDiffer && AgreesOutsideOfRuns(tokenizer, c.Ids, skip, text.ToString())),
                    () => $"{c.Note} [{string.Join(",", c.Ids)}]: \"{text}\" instead of \"{whole}\"");
            }
        }
        differences.AssertNone(160);
    }

    // The streamed text must be that of lossy decoding with one U+FFFD per byte that belongs to no valid character of its run.
    private static bool AgreesOutsideOfRuns(ModelTokenizer tokenizer, int[] ids, bool skip, string streamed)
    {
        var expected = new StringBuilder();
        var run = new List<byte>();
        foreach (var id in ids)
        {
            if (!tokenizer.HasToken(id) || (skip && tokenizer.IsSpecial(id)))
                continue;
            var bytes = tokenizer.TokenBytes(id).ToArray();
            if (tokenizer.IdOf($"<0x{bytes[0]:X2}>") == id)
            {
                run.AddRange(bytes);
                continue;
            }
            AppendRun(expected, run);
            expected.Append(Encoding.UTF8.GetString(bytes));
        }
        AppendRun(expected, run);
        if (expected.Length > 0 && expected[0] == ' ')
            expected.Remove(0, 1);
        return expected.ToString() == streamed;
    }

    private static void AppendRun(StringBuilder text, List<byte> run)
    {
        ReadOnlySpan<byte> rest = run.ToArray();
        while (!rest.IsEmpty)
        {
            if (Rune.DecodeFromUtf8(rest, out var rune, out var length) == System.Buffers.OperationStatus.Done)
                text.Append(rune.ToString());
            else
                text.Append('\uFFFD', length);
            rest = rest[length..];
        }
        run.Clear();
    }
}

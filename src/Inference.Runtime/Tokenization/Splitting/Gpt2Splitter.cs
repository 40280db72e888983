using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Splitting;

/// <summary>
/// The pattern of the ByteLevel step itself (GPT-2):
/// <c>'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+</c>.
/// </summary>
internal sealed class Gpt2Splitter : PieceSplitter
{
    public override int EndOfPiece(ReadOnlySpan<byte> text, int start)
    {
        var contraction = Contraction(text, start);
        if (contraction != start)
            return contraction;
        var at = start;
        var classes = CodePoints.ClassAt(text, at, out var length);
        if (text[start] == (byte)' ' && start + 1 < text.Length)
            classes = CodePoints.ClassAt(text, ++at, out length);
        if ((classes & CodePointClass.Letter) != 0)
            return CodePoints.SkipWhile(text, at + length, CodePointClass.Letter);
        if ((classes & CodePointClass.Number) != 0)
            return CodePoints.SkipWhile(text, at + length, CodePointClass.Number);
        if ((classes & CodePointClass.Space) == 0)
            return CodePoints.SkipUntil(text, at + length, SplitRules.NotOther);
        return WhiteSpace(text, start);
    }

    // Lower case only, unlike the (?i:...) of the later patterns.
    private static int Contraction(ReadOnlySpan<byte> text, int at)
    {
        if (at + 1 >= text.Length || text[at] != (byte)'\'')
            return at;
        var next = at + 2 < text.Length ? text[at + 2] : (byte)0;
        return (char)text[at + 1] switch
        {
            's' or 't' or 'm' or 'd' => at + 2,
            'r' or 'v' when next == (byte)'e' => at + 3,
            'l' when next == (byte)'l' => at + 3,
            _ => at,
        };
    }

    // \s+(?!\S)|\s+ : line breaks have no rule of their own here.
    private static int WhiteSpace(ReadOnlySpan<byte> text, int start)
    {
        var end = CodePoints.SkipWhile(text, start, CodePointClass.Space);
        if (end == text.Length)
            return end;
        var last = CodePoints.StartOfCharacterBefore(text, end);
        return last == start ? end : last;
    }
}

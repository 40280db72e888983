using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Splitting;

/// <summary>
/// o200k (gpt-oss, Llama-4, MiniMax-M2) and its variants (Mistral tekken, Kimi):
/// <c>P?U*L+C?|P?U+L*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+</c> where
/// P = <c>[^\r\n\p{L}\p{N}]</c>, U = <c>[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]</c>, L = <c>[\p{Ll}\p{Lm}\p{Lo}\p{M}]</c>,
/// C = <c>(?i:'s|'t|'re|'ve|'m|'ll|'d)</c>. With <paramref name="hanFirst"/>, <c>[\p{Han}]+</c> comes first and U and L hold no Han.
/// </summary>
internal sealed class O200kSplitter(int digits, bool contractions, bool slash, bool hanFirst) : PieceSplitter
{
    private const CodePointClass Cased = CodePointClass.UpperPart | CodePointClass.LowerPart;

    public override int EndOfPiece(ReadOnlySpan<byte> text, int start)
    {
        var classes = CodePoints.ClassAt(text, start, out var length);
        if (hanFirst && (classes & CodePointClass.Han) != 0)
            return CodePoints.SkipWhile(text, start + length, CodePointClass.Han);
        var at = start + length;
        var word = Word(text, start, at, classes);
        if (word >= 0)
            return contractions ? SplitRules.Contraction(text, word) : word;
        if ((classes & CodePointClass.Number) != 0)
            return SplitRules.Digits(text, at, digits - 1);
        if (text[start] == (byte)' ' && at < text.Length)
        {
            var behind = CodePoints.ClassAt(text, at, out length);
            if ((behind & SplitRules.NotOther) == 0)
                return OtherRun(text, at + length);
        }
        return (classes & SplitRules.NotOther) == 0 ? OtherRun(text, at) : SplitRules.WhiteSpace(text, start);
    }

    // P?U*L+ then P?U+L*, each first with the prefix character and then without. A mark can be prefix and word at once.
    private int Word(ReadOnlySpan<byte> text, int start, int afterFirst, CodePointClass classes)
    {
        var mayPrecede = SplitRules.MayPrecedeWord(text[start], classes);
        var inWord = (classes & Cased) != 0;
        var end = -1;
        if (mayPrecede)
            end = EndsInLower(text, afterFirst);
        if (end < 0 && inWord)
            end = EndsInLower(text, start);
        if (end < 0 && mayPrecede)
            end = StartsInUpper(text, afterFirst);
        if (end < 0 && inWord)
            end = StartsInUpper(text, start);
        return end;
    }

    // U*L+: the run of U, then the run of L behind it. Where no L follows, the last character of the run that is in both sets
    // is the whole of L+. Returns -1 when there is none.
    private int EndsInLower(ReadOnlySpan<byte> text, int start)
    {
        int at = start, afterLastInBoth = -1;
        while (at < text.Length)
        {
            var classes = ClassAt(text, at, out var length);
            if ((classes & CodePointClass.UpperPart) == 0)
            {
                if ((classes & CodePointClass.LowerPart) != 0)
                    return SkipLower(text, at + length);
                break;
            }
            at += length;
            if ((classes & CodePointClass.LowerPart) != 0)
                afterLastInBoth = at;
        }
        return afterLastInBoth;
    }

    // U+L*.
    private int StartsInUpper(ReadOnlySpan<byte> text, int start)
    {
        var at = start;
        while (at < text.Length && (ClassAt(text, at, out var length) & CodePointClass.UpperPart) != 0)
            at += length;
        return at == start ? -1 : SkipLower(text, at);
    }

    private int SkipLower(ReadOnlySpan<byte> text, int at)
    {
        while (at < text.Length && (ClassAt(text, at, out var length) & CodePointClass.LowerPart) != 0)
            at += length;
        return at;
    }

    private CodePointClass ClassAt(ReadOnlySpan<byte> text, int at, out int length)
    {
        var classes = CodePoints.ClassAt(text, at, out length);
        return hanFirst && (classes & CodePointClass.Han) != 0 ? CodePointClass.None : classes;
    }

    private int OtherRun(ReadOnlySpan<byte> text, int at) =>
        SplitRules.LineBreaks(text, CodePoints.SkipUntil(text, at, SplitRules.NotOther), slash);
}

using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Splitting;

/// <summary>
/// Llama-3, GLM-4, Qwen2 and Qwen3.5:
/// <c>(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+</c>
/// with one or three digits, and with <c>[\p{L}\p{M}]</c> for <c>\p{L}</c> where <paramref name="marks"/> is set.
/// </summary>
internal sealed class Cl100kSplitter(int digits, bool marks) : PieceSplitter
{
    private readonly CodePointClass _word = marks ? CodePointClass.Letter | CodePointClass.Mark : CodePointClass.Letter;
    private readonly CodePointClass _notOther = marks ? SplitRules.NotOther | CodePointClass.Mark : SplitRules.NotOther;

    public override int EndOfPiece(ReadOnlySpan<byte> text, int start)
    {
        var contraction = SplitRules.Contraction(text, start);
        if (contraction != start)
            return contraction;
        var classes = CodePoints.ClassAt(text, start, out var length);
        var at = start + length;
        // A mark that may precede a word is part of the word anyway: the run is the same with and without the prefix.
        if ((classes & _word) != 0)
            return CodePoints.SkipWhile(text, at, _word);
        if (SplitRules.MayPrecedeWord(text[start], classes))
        {
            var end = CodePoints.SkipWhile(text, at, _word);
            if (end != at)
                return end;
        }
        if ((classes & CodePointClass.Number) != 0)
            return SplitRules.Digits(text, at, digits - 1);
        if (text[start] == (byte)' ' && at < text.Length)
        {
            var behind = CodePoints.ClassAt(text, at, out length);
            if ((behind & _notOther) == 0)
                return OtherRun(text, at + length);
        }
        return (classes & _notOther) == 0 ? OtherRun(text, at) : SplitRules.WhiteSpace(text, start);
    }

    private int OtherRun(ReadOnlySpan<byte> text, int at) =>
        SplitRules.LineBreaks(text, CodePoints.SkipUntil(text, at, _notOther), slash: false);
}

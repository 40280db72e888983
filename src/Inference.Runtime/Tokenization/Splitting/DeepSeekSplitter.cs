// DeepSeek V3 to V4: three split steps, each applied to the pieces of the one before (specs 5.1).
//
//   1. \p{N}{1,3}
//   2. [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+
//   3. A [ASCII punctuation][A-Za-z]+ | B [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ | C  ?[\p{P}\p{S}]+[\r\n]*
//      | D \s*[\r\n]+ | E \s+(?!\S) | F \s+
//
// Step 3 sees one piece of step 2 as its whole text, so here a character outside the region counts as the end of the text.
// What no alternative of step 3 matches (control and format characters) forms a gap, and a gap is a piece too.
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Splitting;

/// <summary>The pre-tokenizer of DeepSeek V3, V3.1, V3.2 and V4.</summary>
internal sealed class DeepSeekSplitter : PieceSplitter
{
    private const CodePointClass Word = CodePointClass.Letter | CodePointClass.Mark;
    private const CodePointClass Marks = CodePointClass.Punctuation | CodePointClass.Symbol;

    // Regions: text of step 2's ranges, or text that is neither of those nor a number.
    private const CodePointClass RegionMask = CodePointClass.Number | CodePointClass.DeepSeekCjk;

    public override int EndOfPiece(ReadOnlySpan<byte> text, int start)
    {
        var classes = CodePoints.ClassAt(text, start, out var length);
        if ((classes & CodePointClass.Number) != 0)
            return SplitRules.Digits(text, start + length, 2);
        var region = classes & RegionMask;
        var end = Match(text, start, classes, length, region);
        if (end != start)
            return end;
        for (var at = start + length; ; at += length)
        {
            classes = ClassAt(text, at, region, out length);
            if (length == 0 || Match(text, at, classes, length, region) != at)
                return at;
        }
    }

    // The end of what step 3 matches at this place, or the place itself.
    private static int Match(ReadOnlySpan<byte> text, int start, CodePointClass classes, int length, CodePointClass region)
    {
        var at = start + length;
        var first = text[start];
        if (length == 1 && (classes & Marks) != 0 && at < text.Length && char.IsAsciiLetter((char)text[at]))
            return AsciiLetters(text, at);
        if ((classes & Word) != 0)
            return Skip(text, at, Word, region);
        var next = ClassAt(text, at, region, out var nextLength);
        if ((classes & Marks) == 0 && first is not ((byte)'\r' or (byte)'\n') && (next & Word) != 0)
            return Skip(text, at + nextLength, Word, region);
        if ((classes & Marks) != 0)
            return LineBreaks(text, Skip(text, at, Marks, region), region);
        if (first == (byte)' ' && (next & Marks) != 0)
            return LineBreaks(text, Skip(text, at + nextLength, Marks, region), region);
        return (classes & CodePointClass.Space) != 0 ? WhiteSpace(text, start, region) : start;
    }

    private static int AsciiLetters(ReadOnlySpan<byte> text, int at)
    {
        while (at < text.Length && char.IsAsciiLetter((char)text[at]))
            at++;
        return at;
    }

    // Line breaks lie outside of the region of step 2's ranges.
    private static int LineBreaks(ReadOnlySpan<byte> text, int at, CodePointClass region) =>
        region == CodePointClass.None ? SplitRules.LineBreaks(text, at, slash: false) : at;

    // As SplitRules.WhiteSpace, but a number or a character of the other region ends the text.
    private static int WhiteSpace(ReadOnlySpan<byte> text, int start, CodePointClass region)
    {
        var end = SplitRules.WhiteSpace(text, start);
        if (end == text.Length || text[end - 1] is (byte)'\r' or (byte)'\n')
            return end;
        var classes = CodePoints.ClassAt(text, end, out var length);
        var runEnd = (classes & CodePointClass.Space) != 0 ? end + length : end;
        return ClassAt(text, runEnd, region, out length) == CodePointClass.None && length == 0 ? runEnd : end;
    }

    private static int Skip(ReadOnlySpan<byte> text, int at, CodePointClass wanted, CodePointClass region)
    {
        while ((ClassAt(text, at, region, out var length) & wanted) != 0)
            at += length;
        return at;
    }

    // Length 0 and no class at the end of the region.
    private static CodePointClass ClassAt(ReadOnlySpan<byte> text, int at, CodePointClass region, out int length)
    {
        if (at < text.Length)
        {
            var classes = CodePoints.ClassAt(text, at, out length);
            if ((classes & RegionMask) == region)
                return classes;
        }
        length = 0;
        return CodePointClass.None;
    }
}

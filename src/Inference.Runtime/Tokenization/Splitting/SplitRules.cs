// The alternatives that nearly all split patterns share.
using System.Runtime.CompilerServices;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Splitting;

internal static class SplitRules
{
    /// <summary>Classes that <c>[^\s\p{L}\p{N}]</c> leaves out.</summary>
    public const CodePointClass NotOther = CodePointClass.Space | CodePointClass.Letter | CodePointClass.Number;

    /// <summary><c>\s*[\r\n]+|\s+(?!\S)|\s+</c> at a white space character.</summary>
    /// <remarks>
    /// The first alternative ends behind the last line break of the run. Without one, the run stays whole at the end of the text,
    /// else its last character is left for the word behind it, unless it is the only one.
    /// </remarks>
    public static int WhiteSpace(ReadOnlySpan<byte> text, int start)
    {
        int at = start, afterBreak = -1, last = start;
        while (at < text.Length && (CodePoints.ClassAt(text, at, out var length) & CodePointClass.Space) != 0)
        {
            last = at;
            at += length;
            if (text[last] is (byte)'\n' or (byte)'\r')
                afterBreak = at;
        }
        if (afterBreak >= 0)
            return afterBreak;
        return at == text.Length || last == start ? at : last;
    }

    /// <summary><c>(?i:'s|'t|'re|'ve|'m|'ll|'d)</c> at <paramref name="at"/>: its end, or <paramref name="at"/> when it does not match.</summary>
    public static int Contraction(ReadOnlySpan<byte> text, int at)
    {
        if (at + 1 >= text.Length || text[at] != (byte)'\'')
            return at;
        var next = at + 2 < text.Length ? text[at + 2] | 0x20 : 0;
        switch (text[at + 1] | 0x20)
        {
            case 's' or 't' or 'm' or 'd':
                return at + 2;
            case 'r' or 'v' when next == 'e':
            case 'l' when next == 'l':
                return at + 3;
        }
        // U+017F LATIN SMALL LETTER LONG S folds to s (C5 BF in UTF-8).
        return text[at + 1] == 0xC5 && at + 2 < text.Length && text[at + 2] == 0xBF ? at + 3 : at;
    }

    /// <summary>Skips <c>[\r\n]*</c>, with <paramref name="slash"/> <c>[\r\n/]*</c>.</summary>
    public static int LineBreaks(ReadOnlySpan<byte> text, int at, bool slash)
    {
        while (at < text.Length && (text[at] is (byte)'\r' or (byte)'\n' || (slash && text[at] == (byte)'/')))
            at++;
        return at;
    }

    /// <summary>Skips up to <paramref name="most"/> characters of <c>\p{N}</c>.</summary>
    public static int Digits(ReadOnlySpan<byte> text, int at, int most)
    {
        while (most-- > 0 && at < text.Length && (CodePoints.ClassAt(text, at, out var length) & CodePointClass.Number) != 0)
            at += length;
        return at;
    }

    /// <summary>Whether the character may stand as <c>[^\r\n\p{L}\p{N}]?</c> before a word.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool MayPrecedeWord(byte first, CodePointClass classes) =>
        (classes & (CodePointClass.Letter | CodePointClass.Number)) == 0 && first is not ((byte)'\r' or (byte)'\n');
}

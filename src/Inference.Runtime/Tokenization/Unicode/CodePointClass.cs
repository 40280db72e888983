// The character classes that the split patterns use, for every code point, from pinned Unicode 16 data.
//
// It never asks the runtime for a category and never sees a UTF-16 surrogate: text here is valid UTF-8.
// The tables are built once, read only, and shared by all threads.
// Invariant: for each class the set of code points equals the one the reference regex engines see.
using System.Runtime.CompilerServices;

namespace Inference.Runtime.Tokenization.Unicode;

/// <summary>Classes of a code point; a code point has several.</summary>
[Flags]
internal enum CodePointClass : ushort
{
    None = 0,

    /// <summary><c>\p{L}</c>.</summary>
    Letter = 1,

    /// <summary><c>\p{M}</c>.</summary>
    Mark = 2,

    /// <summary><c>\p{N}</c>.</summary>
    Number = 4,

    /// <summary><c>\p{P}</c>.</summary>
    Punctuation = 8,

    /// <summary><c>\p{S}</c>.</summary>
    Symbol = 16,

    /// <summary><c>\s</c>: the Unicode property White_Space.</summary>
    Space = 32,

    /// <summary><c>[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]</c>: may stand in the upper-case part of a word.</summary>
    UpperPart = 64,

    /// <summary><c>[\p{Ll}\p{Lm}\p{Lo}\p{M}]</c>: may stand in the lower-case part of a word.</summary>
    LowerPart = 128,

    /// <summary><c>\p{Han}</c>.</summary>
    Han = 256,

    /// <summary><c>\w</c> of the Rust regex engine: alphabetic, marks, decimal digits, connectors, joiners.</summary>
    Word = 512,

    /// <summary>The ranges of DeepSeek's second split step: U+4E00..9FA5, U+3040..309F, U+30A0..30FF.</summary>
    DeepSeekCjk = 1024,
}

/// <summary>Class lookups by code point and in UTF-8 text.</summary>
internal static class CodePoints
{
    private const int BlockBits = 7;
    private const int BlockSize = 1 << BlockBits;
    private const int BlockCount = 0x110000 >> BlockBits;
    private const int ClassBitsInData = 10;

    private static readonly ushort[] BlockOf = new ushort[BlockCount];
    private static readonly CodePointClass[] Classes = BuildBlocks();

    /// <summary>The classes of one code point (at most U+10FFFF).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static CodePointClass ClassOf(int codePoint) =>
        Classes[(BlockOf[codePoint >> BlockBits] << BlockBits) | (codePoint & (BlockSize - 1))];

    /// <summary>The classes of the character that starts at <paramref name="at"/>, and its length in bytes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static CodePointClass ClassAt(ReadOnlySpan<byte> text, int at, out int length)
    {
        int first = text[at];
        if (first < 0x80)
        {
            length = 1;
            return Classes[first]; // block 0 is the first block of the table
        }
        return ClassOf(Decode(text, at, out length));
    }

    /// <summary>Decodes one character of valid UTF-8 that starts at <paramref name="at"/>.</summary>
    public static int Decode(ReadOnlySpan<byte> text, int at, out int length)
    {
        int first = text[at];
        switch (first)
        {
            case < 0x80:
                length = 1;
                return first;
            case < 0xE0:
                length = 2;
                return ((first & 0x1F) << 6) | (text[at + 1] & 0x3F);
            case < 0xF0:
                length = 3;
                return ((first & 0x0F) << 12) | ((text[at + 1] & 0x3F) << 6) | (text[at + 2] & 0x3F);
            default:
                length = 4;
                return ((first & 0x07) << 18) | ((text[at + 1] & 0x3F) << 12) | ((text[at + 2] & 0x3F) << 6) | (text[at + 3] & 0x3F);
        }
    }

    /// <summary>Where the character starts that ends just before <paramref name="end"/>.</summary>
    public static int StartOfCharacterBefore(ReadOnlySpan<byte> text, int end)
    {
        var at = end - 1;
        while ((text[at] & 0xC0) == 0x80)
            at--;
        return at;
    }

    /// <summary>Skips characters that have one of the <paramref name="wanted"/> classes; returns where the first other one starts.</summary>
    public static int SkipWhile(ReadOnlySpan<byte> text, int at, CodePointClass wanted)
    {
        while (at < text.Length && (ClassAt(text, at, out var length) & wanted) != 0)
            at += length;
        return at;
    }

    /// <summary>Skips characters that have none of the <paramref name="stop"/> classes.</summary>
    public static int SkipUntil(ReadOnlySpan<byte> text, int at, CodePointClass stop)
    {
        while (at < text.Length && (ClassAt(text, at, out var length) & stop) == 0)
            at += length;
        return at;
    }

    // Expands the runs block by block; equal blocks (all of the CJK ideographs, all of the unassigned planes) are kept once.
    private static CodePointClass[] BuildBlocks()
    {
        var blocks = new List<CodePointClass>(256 * BlockSize);
        var known = new Dictionary<string, ushort>(StringComparer.Ordinal);
        var block = new CodePointClass[BlockSize];
        var run = 0;
        for (var b = 0; b < BlockCount; b++)
        {
            for (var i = 0; i < BlockSize; i++)
            {
                var codePoint = (b << BlockBits) | i;
                while (run + 1 < CodePointClassData.Runs.Length && (CodePointClassData.Runs[run + 1] >> ClassBitsInData) <= codePoint)
                    run++;
                block[i] = (CodePointClass)(CodePointClassData.Runs[run] & ((1 << ClassBitsInData) - 1));
                if (codePoint is (>= 0x4E00 and <= 0x9FA5) or (>= 0x3040 and <= 0x30FF))
                    block[i] |= CodePointClass.DeepSeekCjk;
            }
            var key = string.Create(BlockSize, block, static (chars, values) =>
            {
                for (var i = 0; i < chars.Length; i++)
                    chars[i] = (char)values[i];
            });
            if (!known.TryGetValue(key, out var index))
            {
                index = (ushort)known.Count;
                known.Add(key, index);
                blocks.AddRange(block);
            }
            BlockOf[b] = index;
        }
        return [.. blocks];
    }
}

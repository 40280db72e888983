using Inference.Runtime.Tokenization.Normalization;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization;

/// <summary>Where a token comes from: first and last character, as byte offsets of their first bytes in the prompt.</summary>
/// <param name="First">The first character; -1 for a token that stands for no text.</param>
/// <param name="Last">The last one.</param>
/// <param name="SpacesBefore">White space characters its text begins with.</param>
/// <param name="SpacesBehind">White space characters its text ends with.</param>
internal readonly record struct TokenPlace(int First, int Last, int SpacesBefore, int SpacesBehind)
{
    public static TokenPlace Of(TracedText text, bool isAdded)
    {
        if (text.Text.IsEmpty)
            return new TokenPlace(-1, -1, 0, 0);
        var (before, behind) = isAdded ? CharacterSpaces(text.Text) : ByteSpaces(text.Text);
        return new TokenPlace(text.Origins[0], text.Origins[^1], before, behind);
    }

    // A token of the byte-level alphabet shows only the space as white space, all other bytes as letters.
    private static (int Before, int Behind) ByteSpaces(ReadOnlySpan<byte> text)
    {
        var before = text.IndexOfAnyExcept((byte)' ');
        return before < 0 ? (text.Length, text.Length) : (before, text.Length - 1 - text.LastIndexOfAnyExcept((byte)' '));
    }

    private static (int Before, int Behind) CharacterSpaces(ReadOnlySpan<byte> text)
    {
        int before = 0, behind = 0;
        for (int at = 0, length; at < text.Length && (CodePoints.ClassAt(text, at, out length) & CodePointClass.Space) != 0; at += length)
            before++;
        for (var end = text.Length; end > 0; behind++)
        {
            end = CodePoints.StartOfCharacterBefore(text, end);
            if ((CodePoints.ClassAt(text, end, out _) & CodePointClass.Space) == 0)
                break;
        }
        return (before, behind);
    }
}

// How a piece falls into the symbols that merging starts from: bytes in the byte-level families, characters with a fallback
// to byte tokens (or the unknown token) in the SentencePiece families. Immutable; safe from any thread.
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Bpe;

internal abstract class SymbolAlphabet
{
    /// <summary>An upper bound of the symbols of a piece.</summary>
    public abstract int MostSymbols(ReadOnlySpan<byte> piece);

    /// <summary>Writes the ids and start offsets of the first symbols; returns their count.</summary>
    public abstract int Split(ReadOnlySpan<byte> piece, Span<int> ids, Span<int> starts);
}

/// <summary>One symbol per byte. <paramref name="idOfByte"/> has 256 entries; -1 only for bytes that UTF-8 never holds.</summary>
internal sealed class ByteAlphabet(int[] idOfByte) : SymbolAlphabet
{
    public override int MostSymbols(ReadOnlySpan<byte> piece) => piece.Length;

    public override int Split(ReadOnlySpan<byte> piece, Span<int> ids, Span<int> starts)
    {
        for (var i = 0; i < piece.Length; i++)
            (ids[i], starts[i]) = (idOfByte[piece[i]], i);
        return piece.Length;
    }
}

/// <summary>
/// One symbol per character of the vocabulary; any other character becomes its byte tokens, or the unknown token where there are none.
/// </summary>
/// <param name="idOfCodePoint">Ids of the one-character entries.</param>
/// <param name="byteIds">The 256 byte tokens, or null without byte fallback.</param>
/// <param name="unknownId">The unknown token; used only without byte tokens.</param>
/// <param name="fuseUnknown">Whether neighbouring unknown characters become one token.</param>
internal sealed class CharacterAlphabet(Dictionary<int, int> idOfCodePoint, int[]? byteIds, int unknownId, bool fuseUnknown) : SymbolAlphabet
{
    public override int MostSymbols(ReadOnlySpan<byte> piece) => piece.Length;

    public override int Split(ReadOnlySpan<byte> piece, Span<int> ids, Span<int> starts)
    {
        var count = 0;
        var unknownBefore = false;
        for (int at = 0, length; at < piece.Length; at += length)
        {
            var codePoint = CodePoints.Decode(piece, at, out length);
            if (idOfCodePoint.TryGetValue(codePoint, out var id))
            {
                unknownBefore = false;
                (ids[count], starts[count++]) = (id, at);
            }
            else if (byteIds is not null)
            {
                for (var i = 0; i < length; i++)
                    (ids[count], starts[count++]) = (byteIds[piece[at + i]], at + i);
            }
            else if (!(unknownBefore && fuseUnknown))
            {
                unknownBefore = true;
                (ids[count], starts[count++]) = (unknownId, at);
            }
        }
        return count;
    }
}

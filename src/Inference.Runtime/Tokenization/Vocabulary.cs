using System.Diagnostics.CodeAnalysis;
using System.Text;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization;

/// <summary>Ids and their spellings: the model's entries by their spelling in the file, and the added tokens. Immutable.</summary>
/// <param name="Pieces">Entries by the bytes they match.</param>
/// <param name="Spellings">Entries by their spelling in the file; null where the file holds bytes (tiktoken).</param>
/// <param name="AddedTokens">All added tokens, by id.</param>
/// <param name="Decoding">What ids say.</param>
internal sealed record Vocabulary(
    PieceTable Pieces, IReadOnlyDictionary<string, int>? Spellings, IReadOnlyDictionary<int, AddedToken> AddedTokens, DecodingTable Decoding)
{
    private readonly Dictionary<string, int> _idOfContent = AddedTokens.Values.ToDictionary(token => token.Content, token => token.Id, StringComparer.Ordinal);

    /// <summary>One more than the largest id.</summary>
    public int Size => Decoding.Size;

    public bool TryGetId(string token, out int id)
    {
        if (_idOfContent.TryGetValue(token, out id))
            return true;
        if (Spellings is not null)
            return Spellings.TryGetValue(token, out id);
        id = Pieces.Find(Encoding.UTF8.GetBytes(token));
        return id >= 0;
    }

    public bool TryGetAddedToken(int id, [NotNullWhen(true)] out AddedToken? token) => AddedTokens.TryGetValue(id, out token);
}

// The "model" section of a tokenizer.json: entries and merges.
using System.Text.Json;
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization.Loading;

/// <summary>Entries and merges of a BPE model, checked against each other.</summary>
/// <param name="Ids">Id of each spelling.</param>
/// <param name="Merges">The merges, by rank.</param>
/// <param name="MergeProducts">Ids that a merge makes.</param>
/// <param name="UnknownToken">The unknown token's spelling, or null.</param>
/// <param name="FuseUnknown">Whether neighbouring unknown characters become one token.</param>
/// <param name="ByteFallback">Whether unknown characters become byte tokens.</param>
/// <param name="IgnoreMerges">Whether a piece that is an entry is taken whole.</param>
internal sealed record BpeModelJson(
    Dictionary<string, int> Ids, MergeTable Merges, HashSet<int> MergeProducts, string? UnknownToken, bool FuseUnknown, bool ByteFallback, bool IgnoreMerges)
{
    public static BpeModelJson Read(JsonPlace model)
    {
        if (model.Optional("type")?.Text() is { } type && type != "BPE")
            throw model.Fail($"the model type is {JsonPlace.Show(type)}", "Only BPE models are supported.");
        if (model.Optional("dropout") is { } dropout && !IsZero(dropout))
            throw dropout.Fail("merges would be dropped at random", "Set it to null.");
        foreach (var affix in (string[])["continuing_subword_prefix", "end_of_word_suffix"])
        {
            if (model.Optional(affix)?.Text() is { Length: > 0 } text)
                throw model.Fail($"\"{affix}\" is {JsonPlace.Show(text)}", "Models that mark sub-words by an affix are not supported.");
        }
        var ids = ReadVocabulary(model.Required("vocab"));
        var (merges, products) = ReadMerges(model.Required("merges"), ids);
        return new BpeModelJson(ids, merges, products, model.Optional("unk_token")?.Text(),
            model.Flag("fuse_unk", false), model.Flag("byte_fallback", false), model.Flag("ignore_merges", false));
    }

    /// <summary>Ids must lie below this, so that tables by id stay in proportion to the file.</summary>
    public static int IdLimit(int tokens) => (int)Math.Min(int.MaxValue, (tokens * 2L) + 65536);

    private static bool IsZero(JsonPlace node) =>
        node.Element.ValueKind == JsonValueKind.Number && node.Element.TryGetDouble(out var value) && value == 0;

    private static Dictionary<string, int> ReadVocabulary(JsonPlace vocab)
    {
        if (vocab.Element.ValueKind != JsonValueKind.Object)
            throw vocab.Fail("is not an object of tokens and ids");
        var count = vocab.Element.GetPropertyCount();
        var limit = IdLimit(count);
        var ids = new Dictionary<string, int>(count, StringComparer.Ordinal);
        var used = new HashSet<int>(count);
        foreach (var (token, value) in vocab.Members())
        {
            var id = value.Index(limit);
            if (token.Length == 0)
                throw vocab.Fail("a token is the empty string");
            if (!used.Add(id))
                throw vocab.Fail($"two tokens have the id {id}, one of them {JsonPlace.Show(token)}");
            ids.Add(token, id);
        }
        return ids;
    }

    private static (MergeTable Merges, HashSet<int> Products) ReadMerges(JsonPlace node, Dictionary<string, int> ids)
    {
        if (node.Element.ValueKind != JsonValueKind.Array)
            throw node.Fail("is not an array");
        var count = node.Element.GetArrayLength();
        var merges = new MergeTable(count);
        var products = new HashSet<int>(count);
        var rank = 0;
        foreach (var merge in node.Items())
        {
            var (left, right) = ReadPair(merge);
            if (!ids.TryGetValue(left, out var leftId) || !ids.TryGetValue(right, out var rightId) || !ids.TryGetValue(left + right, out var id))
                throw merge.Fail($"{JsonPlace.Show(left)} + {JsonPlace.Show(right)}: a part or the result is not in the vocabulary");
            if (!merges.TryAdd(leftId, rightId, rank++, id))
                throw merge.Fail($"{JsonPlace.Show(left)} + {JsonPlace.Show(right)} is listed twice");
            products.Add(id);
        }
        return (merges, products);
    }

    // "left right", or ["left", "right"].
    private static (string Left, string Right) ReadPair(JsonPlace merge)
    {
        if (merge.Element.ValueKind == JsonValueKind.Array)
        {
            if (merge.Element.GetArrayLength() != 2)
                throw merge.Fail("a merge is not a pair");
            var parts = merge.Items().ToArray();
            return (parts[0].Text(), parts[1].Text());
        }
        var text = merge.Text();
        var space = text.IndexOf(' ', StringComparison.Ordinal);
        if (space < 0 || text.IndexOf(' ', space + 1) >= 0)
            throw merge.Fail($"{JsonPlace.Show(text)} is not two tokens with one space between");
        return (text[..space], text[(space + 1)..]);
    }
}

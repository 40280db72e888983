// The "added_tokens" section of a tokenizer.json, and "added_tokens_decoder" of a tokenizer_config.json.
using System.Globalization;
using System.Text;
using Inference.Runtime.Tokenization.AddedTokens;

namespace Inference.Runtime.Tokenization.Loading;

internal static class AddedTokensJson
{
    /// <summary>The list of a tokenizer.json: objects with an id.</summary>
    public static List<AddedToken> ReadList(JsonPlace? section)
    {
        var tokens = new List<AddedToken>();
        foreach (var item in section?.Items() ?? [])
            tokens.Add(Read(item, item.Required("id").Index(int.MaxValue)));
        return tokens;
    }

    /// <summary>The object of a tokenizer_config.json: ids as names.</summary>
    public static List<AddedToken> ReadObject(JsonPlace section)
    {
        var tokens = new List<AddedToken>();
        foreach (var (name, item) in section.Members())
        {
            if (!int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out var id))
                throw section.Fail($"{JsonPlace.Show(name)} is not an id");
            tokens.Add(Read(item, id));
        }
        return tokens;
    }

    /// <summary>Checks the added tokens against each other and the model's entries.</summary>
    /// <param name="where">For messages.</param>
    /// <param name="tokens">The added tokens.</param>
    /// <param name="idOf">The id of an entry of the model by its spelling, or -1.</param>
    /// <param name="isTaken">Whether an entry of the model has this id.</param>
    /// <param name="isText">Whether merging plain text can yield this id.</param>
    public static Dictionary<int, AddedToken> Check(
        JsonPlace where, List<AddedToken> tokens, Func<string, int> idOf, Func<int, bool> isTaken, Func<int, bool> isText)
    {
        var byId = new Dictionary<int, AddedToken>();
        var contents = new HashSet<string>(StringComparer.Ordinal);
        foreach (var token in tokens)
        {
            var shown = JsonPlace.Show(token.Content);
            if (!byId.TryAdd(token.Id, token) || !contents.Add(token.Content))
                throw where.Fail($"the added token {shown} or its id {token.Id} is listed twice");
            var entry = idOf(token.Content);
            if (entry >= 0 ? entry != token.Id : isTaken(token.Id))
                throw where.Fail($"the added token {shown} has the id {token.Id}, but the model's vocabulary says otherwise");
            if (isText(token.Id))
                throw where.Fail($"plain text can become the added token {shown}, so a user could forge it", "Take it out of the merges, or out of the added tokens.");
        }
        return byId;
    }

    private static AddedToken Read(JsonPlace item, int id)
    {
        var content = item.Text("content");
        var length = Encoding.UTF8.GetByteCount(content);
        if (length is 0 or > AddedToken.ContentBytesMax)
            throw item.Fail($"the content has {length} bytes, expected 1 to {AddedToken.ContentBytesMax}");
        return new AddedToken(id, content, item.Flag("special"), item.Flag("normalized"), item.Flag("single_word"), item.Flag("lstrip"), item.Flag("rstrip"));
    }
}

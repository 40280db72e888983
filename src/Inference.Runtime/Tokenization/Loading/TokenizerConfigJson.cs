// tokenizer_config.json and the parts of config.json that concern a rank file.
using System.Text;
using System.Text.Json;
using Inference.Runtime.Tokenization.AddedTokens;

namespace Inference.Runtime.Tokenization.Loading;

/// <summary>What a tokenizer_config.json says.</summary>
/// <param name="Names">Tokens with a role.</param>
/// <param name="TokenizerClass">The Python class it was written for, or null.</param>
/// <param name="AddedTokens">Its added_tokens_decoder; empty when it has none.</param>
internal sealed record TokenizerConfigJson(TokenNames Names, string? TokenizerClass, List<AddedToken> AddedTokens)
{
    public static TokenizerConfigJson Empty { get; } = new(new TokenNames(), null, []);

    public static TokenizerConfigJson Read(string file, ReadOnlyMemory<byte> json)
    {
        using var document = JsonPlace.Parse(file, json);
        var root = new JsonPlace(file, "$", document.RootElement);
        var names = new TokenNames(Name(root, "bos_token"), Name(root, "eos_token"), Name(root, "pad_token"), Name(root, "unk_token"));
        return new TokenizerConfigJson(names, root.Optional("tokenizer_class")?.Text(),
            root.Optional("added_tokens_decoder") is { } added ? AddedTokensJson.ReadObject(added) : []);
    }

    /// <summary>Pattern and control tokens that a config.json gives for a rank file; null when it gives none.</summary>
    public static (string Pattern, List<AddedToken> Special)? ReadRankFileSettings(string file, ReadOnlyMemory<byte> json)
    {
        using var document = JsonPlace.Parse(file, json);
        var root = new JsonPlace(file, "$", document.RootElement);
        if (root.Optional("pattern") is not { } pattern || root.Optional("special_tokens") is not { } special)
            return null;
        List<AddedToken> tokens = [];
        foreach (var (content, id) in special.Members())
            tokens.Add(ControlToken(special, content, id.Index(int.MaxValue)));
        return (pattern.Text(), tokens);
    }

    public static AddedToken ControlToken(JsonPlace where, string content, int id)
    {
        if (id < 0)
            throw where.Fail($"the token {JsonPlace.Show(content)} has the id {id}");
        return Encoding.UTF8.GetByteCount(content) is > 0 and <= AddedToken.ContentBytesMax
            ? new AddedToken(id, content, Special: true)
            : throw where.Fail($"the token {JsonPlace.Show(content)} has no bytes or more than {AddedToken.ContentBytesMax}");
    }

    // A string, or an object with the flags of an added token, whose content is the name.
    private static string? Name(JsonPlace root, string role)
    {
        if (root.Optional(role) is not { } node)
            return null;
        return node.Element.ValueKind == JsonValueKind.Object ? node.Text("content") : node.Text();
    }
}

// Builds a tokenizer from a tokenizer.json: reads the sections, checks them against each other, puts the parts together.
//
// It trusts nothing: no table is sized by a number of the file, no regular expression of the file runs, and whatever it does
// not know it refuses. Truncation and padding sections are not ours to apply and are passed over.
// Invariant: text under AddedTokenPolicy.None can never become an added token; a file where it could is refused. (The unknown
// token of a model without byte fallback is the exception: it says that text could not be encoded.)
using System.Text;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Bpe;
using Inference.Runtime.Tokenization.Normalization;
using Inference.Runtime.Tokenization.Splitting;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Loading;

internal static class TokenizerJson
{
    public static ModelTokenizer Read(string file, ReadOnlyMemory<byte> json, TokenNames names)
    {
        using var document = JsonPlace.Parse(file, json);
        var root = new JsonPlace(file, "$", document.RootElement);
        var modelNode = root.Required("model");
        var model = BpeModelJson.Read(modelNode);
        var steps = TextSteps.Read(root);
        var listed = AddedTokensJson.ReadList(root.Optional("added_tokens"));
        var size = SizeOf(root, model, listed);

        var spelling = new string?[size];
        foreach (var (text, id) in model.Ids)
            spelling[id] = text;
        var pieces = ByteStore.From([.. spelling.Select(text => text is null ? null : PieceOf(text, steps.IsByteLevel))]);
        var table = new PieceTable(pieces);
        var symbols = steps.IsByteLevel ? ReadBytes(modelNode, table) : ReadCharacters(modelNode, model);
        var added = AddedTokensJson.Check(root, listed,
            text => model.Ids.GetValueOrDefault(text, -1), id => spelling[id] is not null,
            id => model.MergeProducts.Contains(id) || symbols.Ids.Contains(id));

        var encoder = new BytePairEncoder(table, model.Merges, symbols.Alphabet, model.IgnoreMerges, added.Keys.ToHashSet(), pieces);
        var pipeline = new EncodingPipeline(
            AddedTokenSet.Create(added.Values.Where(token => !token.Normalized)),
            steps.Normalizers,
            AddedTokenSet.Create(added.Values.Where(token => token.Normalized), token => NormalizedContent(root, token, steps)),
            steps.Preparation,
            steps.Splitter ?? SplitterWithoutEffect(model),
            encoder);
        var decoding = BuildDecoding(root, spelling, added, steps, model.ByteFallback);
        var (template, trimming) = PostProcessorJson.Read(root.Optional("post_processor"), size);
        return new ModelTokenizer(pipeline, new Vocabulary(table, model.Ids, added, decoding), template, trimming, names);
    }

    private static int SizeOf(JsonPlace root, BpeModelJson model, List<AddedToken> added)
    {
        var largest = added.Select(token => token.Id).Concat(model.Ids.Values).DefaultIfEmpty(-1).Max();
        var limit = BpeModelJson.IdLimit(model.Ids.Count + added.Count);
        return largest < limit ? largest + 1 : throw root.Fail($"the id {largest} is far beyond the number of tokens ({model.Ids.Count + added.Count})");
    }

    // The bytes of text that an entry matches; null for spellings outside of the alphabet, which no text reaches.
    private static byte[]? PieceOf(string spelling, bool isByteLevel)
    {
        if (!isByteLevel)
            return Encoding.UTF8.GetBytes(spelling);
        return ByteLevelAlphabet.TryDecode(spelling, out var bytes) ? bytes : null;
    }

    private static (SymbolAlphabet Alphabet, IReadOnlySet<int> Ids) ReadBytes(JsonPlace model, PieceTable table)
    {
        var ids = new int[256];
        for (var value = 0; value < 256; value++)
        {
            ids[value] = table.Find([(byte)value]);
            var occursInUtf8 = value is not (0xC0 or 0xC1 or >= 0xF5);
            if (ids[value] < 0 && occursInUtf8)
                throw model.Fail($"the vocabulary lacks the byte {value:X2}, so some text has no ids");
        }
        return (new ByteAlphabet(ids), ids.Where(id => id >= 0).ToHashSet());
    }

    private static (SymbolAlphabet Alphabet, IReadOnlySet<int> Ids) ReadCharacters(JsonPlace modelNode, BpeModelJson model)
    {
        var characters = new Dictionary<int, int>();
        foreach (var (text, id) in model.Ids)
        {
            if (Rune.TryGetRuneAt(text, 0, out var rune) && rune.Utf16SequenceLength == text.Length)
                characters.Add(rune.Value, id);
        }
        if (model.ByteFallback)
        {
            var bytes = ReadByteTokens(modelNode, model);
            return (new CharacterAlphabet(characters, bytes, -1, false), characters.Values.Concat(bytes).ToHashSet());
        }
        if (model.UnknownToken is not { } unknown || !model.Ids.TryGetValue(unknown, out var unknownId))
            throw modelNode.Fail("has neither byte fallback nor an unknown token, so some text has no ids");
        return (new CharacterAlphabet(characters, null, unknownId, model.FuseUnknown), characters.Values.ToHashSet());
    }

    private static int[] ReadByteTokens(JsonPlace modelNode, BpeModelJson model)
    {
        var ids = new int[256];
        for (var value = 0; value < 256; value++)
        {
            if (!model.Ids.TryGetValue($"<0x{value:X2}>", out ids[value]))
                throw modelNode.Fail($"byte_fallback is set, but the vocabulary lacks <0x{value:X2}>");
        }
        return ids;
    }

    // Added tokens that are matched normalised are matched by what the normaliser makes of them.
    private static byte[] NormalizedContent(JsonPlace root, AddedToken token, TextSteps steps)
    {
        var bytes = Encoding.UTF8.GetBytes(token.Content);
        foreach (var normalizer in steps.Normalizers)
        {
            using var target = new TextBuffer();
            if (bytes.Length > 0 && normalizer.TryApply(new TracedText(bytes, default), true, target))
                bytes = target.Written.Text.ToArray();
            if (bytes.Length is 0 or > AddedToken.ContentBytesMax)
                throw root.Fail($"the added token {JsonPlace.Show(token.Content)} has {bytes.Length} bytes when normalised, expected 1 to {AddedToken.ContentBytesMax}");
        }
        return bytes;
    }

    // Where no merge makes a token that holds a marker behind another character, cutting before markers changes no id, and
    // keeps pieces short. All SentencePiece models are trained so.
    private static PieceSplitter SplitterWithoutEffect(BpeModelJson model)
    {
        var crosses = model.Ids.Any(entry => model.MergeProducts.Contains(entry.Value) && entry.Key.TrimStart(TextSteps.Marker[0]).Contains(TextSteps.Marker, StringComparison.Ordinal));
        return !crosses && model.Ids.ContainsKey(TextSteps.Marker) ? new MarkerSplitter(everyMarker: false) : new WholeTextSplitter();
    }

    private static DecodingTable BuildDecoding(
        JsonPlace root, string?[] spelling, Dictionary<int, AddedToken> added, TextSteps steps, bool byteFallback)
    {
        var size = spelling.Length;
        var (bytes, exists, special) = (new byte[]?[size], new bool[size], new bool[size]);
        var byteTokens = steps.IsByteLevel ? null : new bool[size];
        for (var id = 0; id < size; id++)
        {
            var text = spelling[id];
            if (added.TryGetValue(id, out var token))
            {
                text = token.Normalized ? Encoding.UTF8.GetString(NormalizedContent(root, token, steps)) : token.Content;
                special[id] = token.Special;
            }
            if (text is null)
                continue;
            exists[id] = true;
            if (byteTokens is null)
                bytes[id] = ByteLevelAlphabet.TryDecode(text, out var decoded) ? decoded : Encoding.UTF8.GetBytes(text);
            else
                (bytes[id], byteTokens[id]) = ReadCharacterToken(text, byteFallback);
        }
        return new DecodingTable(ByteStore.From(bytes), exists, special, byteTokens, steps.DropsFirstSpace);
    }

    private static (byte[] Bytes, bool IsByte) ReadCharacterToken(string text, bool byteFallback)
    {
        if (byteFallback && text.Length == 6 && text.StartsWith("<0x", StringComparison.Ordinal) && text[5] == '>'
            && char.IsAsciiHexDigit(text[3]) && char.IsAsciiHexDigit(text[4]))
            return (Convert.FromHexString(text.AsSpan(3, 2)), true);
        return (Encoding.UTF8.GetBytes(text.Replace(TextSteps.Marker, " ", StringComparison.Ordinal)), false);
    }
}

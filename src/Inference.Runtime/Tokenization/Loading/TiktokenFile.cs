// Builds a tokenizer from a tiktoken rank file (lines of base64 and rank), a split pattern and control tokens.
//
// The file has no merges: two neighbours merge when their bytes together are an entry, lowest rank first. All such pairs are
// worked out once, so that encoding is the same as for files with merges. A piece that is an entry is taken whole.
using System.Buffers;
using System.Buffers.Text;
using System.Text;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization.Loading;

internal static class TiktokenFile
{
    // Working out the pairs of an entry of n bytes takes n * n / 8 steps; the longest entry of a real file has 128 bytes.
    private const int EntryBytesMax = 512;

    public static ModelTokenizer Read(string file, ReadOnlySpan<byte> content, string pattern, List<AddedToken> special, TokenNames names)
    {
        var splitter = SplitPatterns.Find([pattern]) ?? throw new TokenizerException(file,
            $"the split pattern is not known: {JsonPlace.Show(pattern)}.", $"Supported: {SplitPatterns.Supported}.");
        var entries = ReadEntries(file, content);
        var limit = BpeModelJson.IdLimit(entries.Count + special.Count);
        var largest = entries.Select(entry => entry.Rank).Concat(special.Select(token => token.Id)).DefaultIfEmpty(-1).Max();
        if (largest >= limit)
            throw new TokenizerException(file, $"the id {largest} is far beyond the number of tokens ({entries.Count + special.Count}).", "Use the file as published.");

        var bytes = new byte[]?[largest + 1];
        foreach (var (entry, rank) in entries)
        {
            if (bytes[rank] is not null)
                throw new TokenizerException(file, $"two entries have the rank {rank}.", "Use the file as published.");
            bytes[rank] = entry;
        }
        var pieces = ByteStore.From(bytes);
        var table = new PieceTable(pieces);
        var alphabet = ReadBytes(file, table);
        var where = new JsonPlace(file, "special tokens", default);
        var added = AddedTokensJson.Check(where, special, _ => -1, id => bytes[id] is not null, _ => false);
        var encoder = new BytePairEncoder(table, FindMerges(file, pieces, table), alphabet, wholeBeforeMerges: true, added.Keys.ToHashSet(), pieces);
        var pipeline = new EncodingPipeline(AddedTokenSet.Create(added.Values), [], null, null, splitter, encoder);
        return new ModelTokenizer(pipeline, new Vocabulary(table, null, added, BuildDecoding(bytes, added)), PromptTemplate.None, default, names);
    }

    /// <summary>Whether this looks like a rank file rather than a SentencePiece model.</summary>
    public static bool Recognizes(ReadOnlySpan<byte> content)
    {
        var line = content[..Math.Max(0, content.IndexOf((byte)'\n'))];
        return TryReadLine(line.TrimEnd((byte)'\r'), out _, out _);
    }

    private static List<(byte[] Entry, int Rank)> ReadEntries(string file, ReadOnlySpan<byte> content)
    {
        var entries = new List<(byte[], int)>();
        for (var number = 1; !content.IsEmpty; number++)
        {
            var length = content.IndexOf((byte)'\n') is >= 0 and var end ? end : content.Length;
            var line = content[..length].TrimEnd((byte)'\r');
            content = content[Math.Min(content.Length, length + 1)..];
            if (line.IsEmpty)
                continue;
            if (!TryReadLine(line, out var entry, out var rank))
                throw new TokenizerException(file, $"line {number} is not base64, a space and a rank.", "Use the file as published.");
            if (entry.Length is 0 or > EntryBytesMax)
                throw new TokenizerException(file, $"line {number}: the entry has {entry.Length} bytes, expected 1 to {EntryBytesMax}.", "Use the file as published.");
            entries.Add((entry, rank));
        }
        return entries;
    }

    private static bool TryReadLine(ReadOnlySpan<byte> line, out byte[] entry, out int rank)
    {
        (entry, rank) = ([], -1);
        var space = line.IndexOf((byte)' ');
        if (space <= 0 || !Utf8Parser.TryParse(line[(space + 1)..], out rank, out var used) || used != line.Length - space - 1 || rank < 0)
            return false;
        entry = new byte[Base64.GetMaxDecodedFromUtf8Length(space)];
        if (Base64.DecodeFromUtf8(line[..space], entry, out var read, out var written) != OperationStatus.Done || read != space)
            return false;
        entry = entry[..written];
        return true;
    }

    private static ByteAlphabet ReadBytes(string file, PieceTable table)
    {
        var ids = new int[256];
        for (var value = 0; value < 256; value++)
        {
            ids[value] = table.Find([(byte)value]);
            if (ids[value] < 0)
                throw new TokenizerException(file, $"lacks the byte {value:X2}, so some text has no ids.", "Use the file as published.");
        }
        return new ByteAlphabet(ids);
    }

    private static MergeTable FindMerges(string file, ByteStore pieces, PieceTable table)
    {
        var merges = new MergeTable(pieces.Count * 3);
        for (var id = 0; id < pieces.Count; id++)
        {
            var piece = pieces[id];
            if (piece.Length > 0 && table.Find(piece) != id)
                throw new TokenizerException(file, $"the entry of rank {id} is listed twice.", "Use the file as published.");
            for (var cut = 1; cut < piece.Length; cut++)
            {
                if (table.Find(piece[..cut]) is >= 0 and var left && table.Find(piece[cut..]) is >= 0 and var right)
                    merges.TryAdd(left, right, id, id);
            }
        }
        return merges;
    }

    private static DecodingTable BuildDecoding(byte[]?[] entries, Dictionary<int, AddedToken> added)
    {
        var (special, bytes) = (new bool[entries.Length], entries.ToArray());
        foreach (var token in added.Values)
        {
            special[token.Id] = token.Special;
            bytes[token.Id] = Encoding.UTF8.GetBytes(token.Content);
        }
        return new DecodingTable(ByteStore.From(bytes), [.. bytes.Select(token => token is not null)], special, null, DropsFirstSpace: false);
    }
}

// Reads model.safetensors.index.json: which shard holds which tensor.
//
// Only "weight_map" counts; other keys ("metadata" with a total size that published files often get wrong) are skipped.
// Shard names must be plain file names of the same folder. Touches no disk, so tests can feed it anything.
// Invariant: no returned file name contains a path.
using System.Text.Json;
using System.Text.Unicode;

namespace Inference.Runtime.Weights;

internal static class ShardIndex
{
    private const string Extension = ".safetensors";
    private const string WayOut = "Take the index that was published with these shards.";
    private static readonly JsonReaderOptions Json = new() { MaxDepth = 64, CommentHandling = JsonCommentHandling.Disallow };

    /// <summary>Tensor name to shard file name.</summary>
    /// <exception cref="CheckpointException">The JSON is not an index, repeats a key, or names a file outside of its folder.</exception>
    public static Dictionary<string, string> Parse(string file, ReadOnlySpan<byte> json, CheckpointOptions options)
    {
        if (!Utf8.IsValid(json))
            throw Malformed(file, null, "it is not UTF-8 text");
        try
        {
            var reader = new Utf8JsonReader(json, Json);
            if (!reader.Read() || reader.TokenType != JsonTokenType.StartObject)
                throw Malformed(file, null, "it is not a JSON object");
            Dictionary<string, string>? map = null;
            while (reader.Read() && reader.TokenType != JsonTokenType.EndObject)
            {
                var isMap = reader.ValueTextEquals("weight_map"u8);
                reader.Read();
                if (!isMap)
                {
                    reader.Skip();
                    continue;
                }
                if (map is not null)
                    throw Malformed(file, null, "it has two weight_map keys");
                map = ReadMap(file, ref reader, options);
            }
            while (reader.Read()) // only white space may follow; anything else throws here
            {
            }
            return map is { Count: > 0 } ? map : throw Malformed(file, null, "it has no weight_map, or an empty one");
        }
        catch (JsonException e)
        {
            throw Malformed(file, null, $"it is not valid JSON: {Printable.Text(e.Message)}", e);
        }
    }

    private static Dictionary<string, string> ReadMap(string file, ref Utf8JsonReader reader, CheckpointOptions options)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Malformed(file, null, "its weight_map is not a JSON object");
        var map = new Dictionary<string, string>(StringComparer.Ordinal);
        var shards = new HashSet<string>(StringComparer.Ordinal); // also shares one string per shard
        while (reader.Read() && reader.TokenType != JsonTokenType.EndObject)
        {
            var tensor = ReadText(file, null, ref reader);
            reader.Read();
            if (reader.TokenType != JsonTokenType.String)
                throw Malformed(file, tensor, "its shard is not a string");
            var shard = ReadText(file, tensor, ref reader);
            RequirePlainName(file, tensor, shard);
            if (shards.TryGetValue(shard, out var known))
                shard = known;
            else
                shards.Add(shard);
            if (!map.TryAdd(tensor, shard))
                throw new CheckpointException(CheckpointFault.TensorDuplicate, file, tensor, "the index names it twice", WayOut);
            if (map.Count > options.TensorCountMax || shards.Count > options.FileCountMax)
            {
                throw new CheckpointException(CheckpointFault.LimitExceeded, file, tensor,
                    $"more than {options.TensorCountMax} tensors or {options.FileCountMax} shards", WayOut);
            }
        }
        return map;
    }

    private static void RequirePlainName(string file, string tensor, string shard)
    {
        // The backslash and the colon are path syntax on Windows; refused everywhere, so that a folder means the same everywhere.
        var plain = shard.Length > Extension.Length && shard.Length <= 255 && shard.EndsWith(Extension, StringComparison.Ordinal)
            && shard.AsSpan().IndexOfAny("/\\:") < 0 && !shard.Any(char.IsControl);
        if (!plain)
        {
            throw Malformed(file, tensor,
                $"its shard {Printable.Quote(shard)} is not a plain file name ending in {Extension} (no folders, no drive)");
        }
    }

    private static string ReadText(string file, string? tensor, ref Utf8JsonReader reader)
    {
        try
        {
            return reader.GetString()!;
        }
        catch (InvalidOperationException e) // an escaped half of a surrogate pair
        {
            throw Malformed(file, tensor, "a name is not valid Unicode", e);
        }
    }

    private static CheckpointException Malformed(string file, string? tensor, string reason, Exception? inner = null) =>
        new(CheckpointFault.IndexMalformed, file, tensor, reason, WayOut, inner);
}

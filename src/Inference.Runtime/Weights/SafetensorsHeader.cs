// Reads the header of one safetensors file: an 8-byte little-endian length, that many bytes of JSON, then the data.
//
// The JSON maps each tensor name to {dtype, shape, data_offsets}; "__metadata__" is a map of strings. This file turns
// those bytes into checked entries and never touches the disk, so that tests can feed it anything at memory speed.
// Every number is range-checked with overflow in mind before it is used, and nothing is allocated whose size comes
// from the file: memory is bounded by the length of the header itself.
// Invariant: the returned entries tile the data area exactly, in ascending order, without overlap or hole.
using System.Collections.Immutable;
using System.Buffers.Binary;
using System.Text.Json;
using System.Text.Unicode;
using Inference.Backends;

namespace Inference.Runtime.Weights;

/// <summary>One tensor of a file; <see cref="Offset"/> counts from the start of the data area.</summary>
internal readonly record struct TensorEntry(string Name, DType DType, ImmutableArray<long> Shape, long Offset, long ByteLength);

internal static class SafetensorsHeader
{
    /// <summary>Bytes before the JSON.</summary>
    public const int PrefixBytes = 8;

    private const int RankMax = 8;
    private const int NameCharsMax = 1024;
    private const string MetadataKey = "__metadata__";
    private const string Redownload = "The file is damaged or not a safetensors file: download it again.";
    private const string Rewrite = "The file was written by a faulty program: convert the model again or take a published copy.";

    private static readonly JsonReaderOptions Json = new() { MaxDepth = 4, CommentHandling = JsonCommentHandling.Disallow };

    private static readonly (string Name, DType DType)[] DTypeNames =
    [
        ("F32", DType.F32), ("BF16", DType.BF16), ("F16", DType.F16), ("F8_E4M3", DType.F8E4M3), ("F8_E8M0", DType.F8E8M0), ("F4", DType.F4E2M1),
        ("I8", DType.I8), ("U8", DType.U8), ("I32", DType.I32), ("I64", DType.I64),
    ];

    private static readonly string[] KnownButUnsupported =
        ["BOOL", "F4_E2M1_X2", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "U32", "U64", "F64", "C64"];

    /// <summary>Length of the JSON, checked against the limit and the file.</summary>
    /// <param name="file">For messages.</param>
    /// <param name="start">The first bytes of the file: 8, or fewer if it has no more.</param>
    /// <param name="fileLength">Length of the whole file.</param>
    /// <param name="options">Limits.</param>
    public static int ReadLength(string file, ReadOnlySpan<byte> start, long fileLength, CheckpointOptions options)
    {
        if (start.Length < PrefixBytes)
        {
            throw new CheckpointException(CheckpointFault.FileTruncated, file, null,
                $"the file has {fileLength} bytes, fewer than the 8 of the header length", Redownload);
        }
        if (start.StartsWith("version "u8))
        {
            throw new CheckpointException(CheckpointFault.HeaderMalformed, file, null,
                "this looks like a Git LFS pointer, not like the file it stands for", "Fetch the real file, e.g. with: git lfs pull.");
        }
        var length = BinaryPrimitives.ReadUInt64LittleEndian(start);
        if (length > (ulong)options.HeaderBytesMax)
        {
            throw new CheckpointException(CheckpointFault.LimitExceeded, file, null,
                $"the header claims {length} bytes, the limit is {options.HeaderBytesMax}", Redownload);
        }
        if ((long)length > fileLength - PrefixBytes)
        {
            throw new CheckpointException(CheckpointFault.FileTruncated, file, null,
                $"the header claims {length} bytes, the file has {fileLength - PrefixBytes} after the length", Redownload);
        }
        return (int)length;
    }

    /// <summary>The tensors that the JSON describes, ascending by offset.</summary>
    /// <param name="file">For messages.</param>
    /// <param name="json">The header without its length prefix.</param>
    /// <param name="dataLength">Bytes of the file after the header.</param>
    /// <param name="options">Limits.</param>
    /// <exception cref="CheckpointException">For anything that is not exactly as the format says.</exception>
    public static List<TensorEntry> Parse(string file, ReadOnlySpan<byte> json, long dataLength, CheckpointOptions options)
    {
        if (!Utf8.IsValid(json))
            throw Malformed(file, null, "the header is not UTF-8 text");
        try
        {
            var entries = ReadEntries(file, json, options);
            entries.Sort(static (a, b) => (a.Offset, a.ByteLength).CompareTo((b.Offset, b.ByteLength)));
            RequireTiling(file, entries, dataLength);
            return entries;
        }
        catch (JsonException e)
        {
            throw Malformed(file, null, $"the header is not valid JSON: {Printable.Text(e.Message)}", e);
        }
    }

    private static List<TensorEntry> ReadEntries(string file, ReadOnlySpan<byte> json, CheckpointOptions options)
    {
        var entries = new List<TensorEntry>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        var reader = new Utf8JsonReader(json, Json);
        if (!reader.Read() || reader.TokenType != JsonTokenType.StartObject)
            throw Malformed(file, null, "the header is not a JSON object");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndObject)
        {
            var name = ReadText(file, null, ref reader, "a tensor name");
            if (name.Length is 0 or > NameCharsMax)
                throw Malformed(file, name, $"a tensor name has {name.Length} characters; 1 to {NameCharsMax} are possible");
            if (!names.Add(name))
                throw new CheckpointException(CheckpointFault.TensorDuplicate, file, name, "the header names it twice", Rewrite);
            reader.Read();
            if (name == MetadataKey)
            {
                SkipMetadata(file, ref reader);
                continue;
            }
            if (entries.Count == options.TensorCountMax)
                throw new CheckpointException(CheckpointFault.LimitExceeded, file, name, $"more than {options.TensorCountMax} tensors", Redownload);
            entries.Add(ReadEntry(file, name, ref reader));
        }
        while (reader.Read()) // only white space may follow; anything else throws here
        {
        }
        return entries;
    }

    private static TensorEntry ReadEntry(string file, string name, ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Malformed(file, name, "its description is not a JSON object");
        DType? dtype = null;
        ImmutableArray<long>? shape = null;
        (long Begin, long End)? range = null;
        while (reader.Read() && reader.TokenType != JsonTokenType.EndObject)
        {
            var key = ReadText(file, name, ref reader, "a key");
            reader.Read();
            switch (key)
            {
                case "dtype" when dtype is null:
                    dtype = ReadDType(file, name, ref reader);
                    break;
                case "shape" when shape is null:
                    shape = ReadShape(file, name, ref reader);
                    break;
                case "data_offsets" when range is null:
                    range = ReadRange(file, name, ref reader);
                    break;
                case "dtype" or "shape" or "data_offsets":
                    throw Malformed(file, name, $"its description has the key {key} twice");
                default:
                    throw Malformed(file, name, $"its description has the unknown key {Printable.Quote(key)}");
            }
        }
        if (dtype is null || shape is null || range is null)
        {
            var missing = dtype is null ? "dtype" : shape is null ? "shape" : "data_offsets";
            throw Malformed(file, name, $"its description lacks {missing}");
        }
        return Checked(file, name, dtype.Value, shape.Value, range.Value);
    }

    private static TensorEntry Checked(string file, string name, DType dtype, ImmutableArray<long> shape, (long Begin, long End) range)
    {
        if (range.End < range.Begin)
        {
            throw new CheckpointException(CheckpointFault.TensorRange, file, name,
                $"its data_offsets [{range.Begin}, {range.End}] are reversed", Rewrite);
        }
        long bytes;
        try
        {
            bytes = dtype.ByteLength(shape.Aggregate(1L, (product, dimension) => checked(product * dimension)));
        }
        catch (Exception e) when (e is OverflowException or ArgumentOutOfRangeException)
        {
            throw new CheckpointException(CheckpointFault.TensorSize, file, name,
                $"{dtype} with shape {ShapeText(shape)} has no whole number of bytes below 2^63", Rewrite, e);
        }
        if (bytes != range.End - range.Begin)
        {
            throw new CheckpointException(CheckpointFault.TensorSize, file, name,
                $"{dtype} with shape {ShapeText(shape)} needs {bytes} bytes, its data_offsets [{range.Begin}, {range.End}] hold {range.End - range.Begin}", Rewrite);
        }
        return new TensorEntry(name, dtype, shape, range.Begin, bytes);
    }

    private static void RequireTiling(string file, List<TensorEntry> entries, long dataLength)
    {
        long end = 0;
        for (var i = 0; i < entries.Count; i++)
        {
            var entry = entries[i];
            if (entry.Offset < end)
            {
                throw new CheckpointException(CheckpointFault.TensorOverlap, file, entry.Name,
                    $"it starts at {entry.Offset}, inside of tensor {Printable.Quote(entries[i - 1].Name)}, which ends at {end}", Rewrite);
            }
            if (entry.Offset > end)
                throw new CheckpointException(CheckpointFault.DataHole, file, entry.Name, $"the bytes {end} to {entry.Offset} before it belong to no tensor", Rewrite);
            end = entry.Offset + entry.ByteLength; // both are non-negative and their sum was read from the file as a long
        }
        if (end > dataLength)
        {
            throw new CheckpointException(CheckpointFault.FileTruncated, file, entries[^1].Name,
                $"the tensors need {end} bytes, the file holds {dataLength} after its header: {end - dataLength} are missing",
                "The copy is incomplete: download the file again.");
        }
        if (end < dataLength)
        {
            throw new CheckpointException(CheckpointFault.TrailingBytes, file, null,
                $"{dataLength - end} bytes follow the last tensor", Rewrite);
        }
    }

    private static DType ReadDType(string file, string name, ref Utf8JsonReader reader)
    {
        var text = ReadText(file, name, ref reader, "its dtype");
        foreach (var (supported, dtype) in DTypeNames)
        {
            if (text == supported)
                return dtype;
        }
        throw new CheckpointException(CheckpointFault.DTypeUnsupported, file, name,
            KnownButUnsupported.Contains(text)
                ? $"its dtype {text} is not supported"
                : $"its dtype {Printable.Quote(text)} is unknown",
            $"Supported are {string.Join(", ", DTypeNames.Select(d => d.Name))}: convert the model to one of them.");
    }

    private static ImmutableArray<long> ReadShape(string file, string name, ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartArray)
            throw Malformed(file, name, "its shape is not an array");
        Span<long> shape = stackalloc long[RankMax];
        var rank = 0;
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            if (rank == RankMax)
                throw Malformed(file, name, $"its shape has more than {RankMax} dimensions");
            shape[rank++] = ReadSize(file, name, ref reader, "a dimension of its shape");
        }
        return [.. shape[..rank]];
    }

    private static (long Begin, long End) ReadRange(string file, string name, ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartArray)
            throw Malformed(file, name, "its data_offsets are not an array");
        Span<long> range = stackalloc long[2];
        var count = 0;
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            if (count == 2)
                throw Malformed(file, name, "its data_offsets are more than two numbers");
            range[count++] = ReadSize(file, name, ref reader, "one of its data_offsets");
        }
        return count == 2 ? (range[0], range[1]) : throw Malformed(file, name, "its data_offsets are fewer than two numbers");
    }

    private static long ReadSize(string file, string name, ref Utf8JsonReader reader, string what)
    {
        if (reader.TokenType != JsonTokenType.Number || !reader.TryGetInt64(out var value) || value < 0)
            throw new CheckpointException(CheckpointFault.TensorRange, file, name, $"{what} is not a whole number from 0 to 2^63 - 1", Rewrite);
        return value;
    }

    private static void SkipMetadata(string file, ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Malformed(file, null, $"{MetadataKey} is not a JSON object");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndObject)
        {
            reader.Read();
            if (reader.TokenType != JsonTokenType.String)
                throw Malformed(file, null, $"{MetadataKey} holds something other than strings");
        }
    }

    private static string ReadText(string file, string? name, ref Utf8JsonReader reader, string what)
    {
        if (reader.TokenType is not (JsonTokenType.String or JsonTokenType.PropertyName))
            throw Malformed(file, name, $"{what} is not a string");
        try
        {
            return reader.GetString()!;
        }
        catch (InvalidOperationException e) // an escaped half of a surrogate pair
        {
            throw Malformed(file, name, $"{what} is not valid Unicode", e);
        }
    }

    private static CheckpointException Malformed(string file, string? name, string reason, Exception? inner = null) =>
        new(CheckpointFault.HeaderMalformed, file, name, reason, Redownload, inner);

    /// <summary>What the format calls a dtype.</summary>
    public static string DTypeName(DType dtype) => DTypeNames.First(d => d.DType == dtype).Name;

    /// <summary>A shape as it appears in messages: [4, 128].</summary>
    public static string ShapeText(ImmutableArray<long> shape) => $"[{string.Join(", ", shape)}]";
}

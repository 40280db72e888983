// Writes tiny checkpoints for tests: one safetensors file, an image in memory, or shards with an index.
//
// Tensors are kept in the order in which they were added and their data is streamed into the file one after the other.
// It writes only valid files; tests that want a damaged one damage the image.
// Invariant: the data area is gapless and the header is padded so that it starts at a multiple of 8.
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text.Json;
using Inference.Backends;

namespace Inference.Testing;

/// <summary>Collects tensors and writes them in the safetensors format.</summary>
public sealed class SafetensorsWriter
{
    private const int TileSize = 128;
    private readonly List<Entry> _entries = [];
    private readonly HashSet<string> _names = new(StringComparer.Ordinal);

    private sealed record Entry(string Name, DType DType, long[] Shape, long ByteLength, Action<Stream> Write);

    /// <summary>Names added so far.</summary>
    public IReadOnlyCollection<string> Names => _names;

    /// <summary>Adds a tensor whose bytes are produced when the file is written.</summary>
    /// <param name="write">Writes exactly the bytes of the tensor.</param>
    public SafetensorsWriter Add(string name, DType dtype, long[] shape, Action<Stream> write)
    {
        if (!_names.Add(name))
            throw new ArgumentException($"tensor {name} was added before", nameof(name));
        var elements = shape.Aggregate(1L, (product, dimension) => checked(product * dimension));
        _entries.Add(new Entry(name, dtype, shape, dtype.ByteLength(elements), write));
        return this;
    }

    /// <summary>Adds a tensor of the given bytes.</summary>
    public SafetensorsWriter Add(string name, DType dtype, long[] shape, byte[] bytes) => Add(name, dtype, shape, stream => stream.Write(bytes));

    /// <summary>Adds float values, rounded to <paramref name="dtype"/> (F32, BF16, F16 or F8E4M3) with the reference conversions.</summary>
    public SafetensorsWriter Add(string name, DType dtype, long[] shape, ReadOnlySpan<float> values)
    {
        var bytes = new byte[dtype.ByteLength(values.Length)];
        for (var i = 0; i < values.Length; i++)
        {
            switch (dtype)
            {
                case DType.F32: BinaryPrimitives.WriteSingleLittleEndian(bytes.AsSpan(4 * i), values[i]); break;
                case DType.BF16: BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(2 * i), Numerics.SingleToBFloat16(values[i])); break;
                case DType.F16: BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(2 * i), Numerics.SingleToHalf(values[i])); break;
                case DType.F8E4M3: bytes[i] = Numerics.SingleToE4M3(values[i]); break;
                default: throw new ArgumentException($"floats cannot be stored as {dtype}", nameof(dtype));
            }
        }
        return Add(name, dtype, shape, bytes);
    }

    /// <summary>Adds F32 values.</summary>
    public SafetensorsWriter AddF32(string name, long[] shape, ReadOnlySpan<float> values) => Add(name, DType.F32, shape, values);

    /// <summary>Adds values rounded to bfloat16.</summary>
    public SafetensorsWriter AddBF16(string name, long[] shape, ReadOnlySpan<float> values) => Add(name, DType.BF16, shape, values);

    /// <summary>Adds 64-bit integers.</summary>
    public SafetensorsWriter AddI64(string name, long[] shape, ReadOnlySpan<long> values) => Add(name, DType.I64, shape, MemoryMarshal.AsBytes(values).ToArray());

    /// <summary>
    /// Adds the matrix <c>prefix.weight</c> [rows, columns] as FP8 and <c>prefix.scale</c> with one power of two per 128x128
    /// tile (the smallest that fits the tile's largest magnitude), as E8M0 or F32.
    /// </summary>
    public SafetensorsWriter AddFp8Tiles(string prefix, int rows, int columns, ReadOnlySpan<float> values, DType scaleDType = DType.F8E8M0)
    {
        RequireCount(prefix, rows, columns, values.Length);
        int tileRows = (rows + TileSize - 1) / TileSize, tileColumns = (columns + TileSize - 1) / TileSize;
        var scaleCodes = new byte[tileRows * tileColumns];
        var codes = new byte[values.Length];
        for (var tile = 0; tile < scaleCodes.Length; tile++)
        {
            int top = tile / tileColumns * TileSize, left = tile % tileColumns * TileSize;
            int bottom = Math.Min(rows, top + TileSize), right = Math.Min(columns, left + TileSize);
            byte code = 0;
            for (var r = top; r < bottom; r++)
                code = Math.Max(code, Numerics.Fp8BlockScale(values[(r * columns + left)..(r * columns + right)]));
            scaleCodes[tile] = code;
            var scale = Numerics.E8M0ToSingle(code);
            for (var r = top; r < bottom; r++)
            {
                for (var c = left; c < right; c++)
                    codes[r * columns + c] = Numerics.SingleToE4M3(values[r * columns + c] / scale);
            }
        }
        Add(prefix + ".weight", DType.F8E4M3, [rows, columns], codes);
        return scaleDType == DType.F8E8M0
            ? Add(prefix + ".scale", DType.F8E8M0, [tileRows, tileColumns], scaleCodes)
            : Add(prefix + ".scale", scaleDType, [tileRows, tileColumns], Array.ConvertAll(scaleCodes, Numerics.E8M0ToSingle));
    }

    /// <summary>Adds the matrix <c>prefix.weight</c> [rows, columns] as packed FP4 in I8 and <c>prefix.scale</c>, one E8M0 per 32 columns.</summary>
    public SafetensorsWriter AddFp4(string prefix, int rows, int columns, ReadOnlySpan<float> values)
    {
        RequireCount(prefix, rows, columns, values.Length);
        if (columns % Numerics.Fp4BlockSize != 0)
            throw new ArgumentException($"{prefix}: {columns} columns are no multiple of {Numerics.Fp4BlockSize}", nameof(columns));
        var packed = new byte[values.Length / 2];
        var scales = new byte[values.Length / Numerics.Fp4BlockSize];
        Numerics.EncodeFp4Block32(values, packed, scales);
        Add(prefix + ".weight", DType.I8, [rows, columns / 2], packed);
        return Add(prefix + ".scale", DType.F8E8M0, [rows, columns / Numerics.Fp4BlockSize], scales);
    }

    /// <summary>Writes one file to a stream.</summary>
    public void Write(Stream stream) => Write(stream, _entries);

    /// <summary>The file in memory.</summary>
    public byte[] ToArray()
    {
        using var stream = new MemoryStream();
        Write(stream);
        return stream.ToArray();
    }

    /// <summary>Writes one file, by default <c>model.safetensors</c>, into a folder that is created if need be.</summary>
    /// <returns>Its path.</returns>
    public string Save(string folder, string fileName = "model.safetensors")
    {
        Directory.CreateDirectory(folder);
        var path = Path.Combine(folder, fileName);
        using var stream = File.Create(path);
        Write(stream);
        return path;
    }

    /// <summary>Writes <paramref name="count"/> shards, tensors dealt out in turn, and their index.</summary>
    public void SaveShards(string folder, int count)
    {
        Directory.CreateDirectory(folder);
        var map = new SortedDictionary<string, string>(StringComparer.Ordinal);
        for (var shard = 0; shard < count; shard++)
        {
            var name = $"model-{shard + 1:D5}-of-{count:D5}.safetensors";
            var entries = _entries.Where((_, i) => i % count == shard).ToList();
            using (var stream = File.Create(Path.Combine(folder, name)))
                Write(stream, entries);
            foreach (var entry in entries)
                map.Add(entry.Name, name);
        }
        var index = new { metadata = new { total_size = _entries.Sum(e => e.ByteLength) }, weight_map = map };
        File.WriteAllBytes(Path.Combine(folder, "model.safetensors.index.json"), JsonSerializer.SerializeToUtf8Bytes(index));
    }

    private static void Write(Stream stream, List<Entry> entries)
    {
        var header = Header(entries);
        Span<byte> length = stackalloc byte[8];
        BinaryPrimitives.WriteInt64LittleEndian(length, header.Length);
        stream.Write(length);
        stream.Write(header);
        foreach (var entry in entries)
        {
            using var counting = new CountingStream(stream);
            entry.Write(counting);
            if (counting.Written != entry.ByteLength)
                throw new InvalidOperationException($"tensor {entry.Name} wrote {counting.Written} bytes, not {entry.ByteLength}");
        }
    }

    private static byte[] Header(List<Entry> entries)
    {
        using var json = new MemoryStream();
        using (var writer = new Utf8JsonWriter(json))
        {
            long offset = 0;
            writer.WriteStartObject();
            foreach (var entry in entries)
            {
                writer.WriteStartObject(entry.Name);
                writer.WriteString("dtype", DTypeName(entry.DType));
                writer.WriteStartArray("shape");
                foreach (var dimension in entry.Shape)
                    writer.WriteNumberValue(dimension);
                writer.WriteEndArray();
                writer.WriteStartArray("data_offsets");
                writer.WriteNumberValue(offset);
                writer.WriteNumberValue(offset += entry.ByteLength);
                writer.WriteEndArray();
                writer.WriteEndObject();
            }
            writer.WriteEndObject();
        }
        while (json.Length % 8 != 0)
            json.WriteByte((byte)' ');
        return json.ToArray();
    }

    private static string DTypeName(DType dtype) => dtype switch
    {
        DType.F8E4M3 => "F8_E4M3",
        DType.F8E8M0 => "F8_E8M0",
        DType.F4E2M1 => "F4",
        _ => dtype.ToString(),
    };

    private static void RequireCount(string prefix, int rows, int columns, int count)
    {
        if (checked(rows * columns) != count)
            throw new ArgumentException($"{prefix}: {count} values for [{rows}, {columns}]", nameof(count));
    }

    /// <summary>Counts what a tensor writes, so that a wrong producer is named instead of shifting all tensors after it.</summary>
    private sealed class CountingStream(Stream inner) : Stream
    {
        public long Written { get; private set; }
        public override bool CanRead => false;
        public override bool CanSeek => false;
        public override bool CanWrite => true;
        public override long Length => throw new NotSupportedException();
        public override long Position { get => Written; set => throw new NotSupportedException(); }
        public override void Flush() => inner.Flush();
        public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();
        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
        public override void SetLength(long value) => throw new NotSupportedException();
        public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

        public override void Write(ReadOnlySpan<byte> buffer)
        {
            inner.Write(buffer);
            Written += buffer.Length;
        }
    }
}

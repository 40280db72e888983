// Writes a checkpoint as one safetensors file: the header from names, dtypes and shapes, then the data, which the caller fills in piece by piece.
//
// Memory is flat: one buffer of pieces, filled on all processors, written in order, filled again; a file may be far larger than memory. Where a piece
// starts and ends follows from the tensors alone, so the bytes of a file do not depend on the machine. It takes the file's whole size from the disk
// first: a disk that is too small is found before the work. It never decides what a tensor holds, and never renames or deletes.
// One writer may write several files. Invariant: the data area is gapless in the order of the tensors and starts at a multiple of 8.
using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Text.Json;
using Inference.Backends;

namespace Inference.Runtime.Weights;

/// <summary>A tensor that is to be written.</summary>
/// <param name="Name">Name in the checkpoint.</param>
/// <param name="DType">How an element is stored.</param>
/// <param name="Shape">Dimensions, outermost first.</param>
public sealed record TensorSpec(string Name, DType DType, ImmutableArray<long> Shape)
{
    /// <summary>Bytes of the tensor.</summary>
    public long ByteLength { get; } = DType.ByteLength(Shape.Aggregate(1L, static (product, dimension) => checked(product * dimension)));
}

/// <summary>Fills a piece of a tensor; called on several threads at a time, each piece once.</summary>
/// <param name="index">Which tensor, counted in the writer's order.</param>
/// <param name="offset">First byte of the piece, counted from the start of the tensor; a multiple of <see cref="CheckpointWriter.PieceBytes"/>.</param>
/// <param name="bytes">Room for the piece.</param>
public delegate void TensorFill(int index, long offset, Span<byte> bytes);

/// <summary>Writes safetensors files of any size.</summary>
public sealed class CheckpointWriter
{
    /// <summary>Most bytes of a piece.</summary>
    public const int PieceBytes = 1 << 20;

    private const int BufferBytes = 32 << 20;

    /// <summary>The disk is waited for after so many bytes, so that progress is true and the end of a long write, or of a cancelled one, is near.</summary>
    private const long FlushEveryBytes = 256 << 20;

    private readonly ImmutableArray<TensorSpec> _tensors;
    private readonly byte[] _header;

    /// <summary>Lays out a file.</summary>
    /// <exception cref="ArgumentException">A name occurs twice.</exception>
    /// <exception cref="CheckpointException">The header would be larger than what <see cref="Checkpoint"/> reads.</exception>
    /// <exception cref="OverflowException">The file would have 2^63 bytes or more.</exception>
    public CheckpointWriter(IEnumerable<TensorSpec> tensors)
    {
        _tensors = [.. tensors];
        var names = new HashSet<string>(StringComparer.Ordinal);
        if (_tensors.FirstOrDefault(t => !names.Add(t.Name)) is { } twice)
            throw new ArgumentException($"tensor {twice.Name} is there twice", nameof(tensors));
        _header = Header(_tensors);
        FileBytes = checked(_header.Length + _tensors.Sum(t => t.ByteLength));
    }

    /// <summary>The tensors in their order.</summary>
    public IReadOnlyList<TensorSpec> Tensors => _tensors;

    /// <summary>Bytes of the file.</summary>
    public long FileBytes { get; }

    /// <summary>Writes the file, which must not be there, and waits until the disk has it.</summary>
    /// <param name="path">The file.</param>
    /// <param name="fill">Gives the data.</param>
    /// <param name="progress">Told the bytes written so far, on the calling thread.</param>
    /// <param name="cancel">Looked at between buffers; what was written stays.</param>
    /// <exception cref="IOException">The file exists, or the disk is too small or fails.</exception>
    public void Write(string path, TensorFill fill, IProgress<long>? progress, CancellationToken cancel)
    {
        using var file = new FileStream(path, new FileStreamOptions
        {
            Mode = FileMode.CreateNew,
            Access = FileAccess.Write,
            BufferSize = 0,
            PreallocationSize = FileBytes,
        });
        file.Write(_header);
        long written = _header.Length, flushed = 0;
        var buffer = new byte[Math.Min(BufferBytes, Math.Max(FileBytes, 1))];
        foreach (var pieces in Buffers())
        {
            cancel.ThrowIfCancellationRequested();
            Parallel.ForEach(pieces, p => fill(p.Tensor, p.Offset, buffer.AsSpan(p.Start, p.Length)));
            int length = pieces[^1].Start + pieces[^1].Length;
            file.Write(buffer.AsSpan(0, length));
            written += length;
            if (written - flushed >= FlushEveryBytes)
            {
                file.Flush(flushToDisk: true);
                flushed = written;
            }
            progress?.Report(written);
        }
        cancel.ThrowIfCancellationRequested();
        file.Flush(flushToDisk: true);
    }

    private readonly record struct Piece(int Tensor, long Offset, int Start, int Length);

    /// <summary>The pieces of all tensors in order, as many at a time as fit the buffer; Start counts in the buffer.</summary>
    private IEnumerable<List<Piece>> Buffers()
    {
        List<Piece> pieces = [];
        int start = 0;
        for (int tensor = 0; tensor < _tensors.Length; tensor++)
        {
            for (long offset = 0; offset < _tensors[tensor].ByteLength; offset += PieceBytes)
            {
                int length = (int)Math.Min(PieceBytes, _tensors[tensor].ByteLength - offset);
                if (start + length > BufferBytes)
                {
                    yield return pieces;
                    (pieces, start) = ([], 0);
                }
                pieces.Add(new Piece(tensor, offset, start, length));
                start += length;
            }
        }
        if (pieces.Count > 0)
            yield return pieces;
    }

    private static byte[] Header(ImmutableArray<TensorSpec> tensors)
    {
        using var header = new MemoryStream();
        header.Write(new byte[SafetensorsHeader.PrefixBytes]);
        using (var json = new Utf8JsonWriter(header))
        {
            long offset = 0;
            json.WriteStartObject();
            foreach (var tensor in tensors)
            {
                json.WriteStartObject(tensor.Name);
                json.WriteString("dtype", SafetensorsHeader.DTypeName(tensor.DType));
                WriteNumbers(json, "shape", tensor.Shape.AsSpan());
                WriteNumbers(json, "data_offsets", [offset, offset = checked(offset + tensor.ByteLength)]);
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        while (header.Length % SafetensorsHeader.PrefixBytes != 0)
            header.WriteByte((byte)' ');
        long length = header.Length - SafetensorsHeader.PrefixBytes;
        if (length > CheckpointOptions.Default.HeaderBytesMax)
        {
            throw new CheckpointException(CheckpointFault.LimitExceeded, Checkpoint.SingleFileName, null,
                $"{tensors.Length} tensors need a header of {length} bytes, the limit of one file is {CheckpointOptions.Default.HeaderBytesMax}",
                "Write a model with fewer layers or experts.");
        }
        var bytes = header.ToArray();
        BinaryPrimitives.WriteInt64LittleEndian(bytes, length);
        return bytes;
    }

    private static void WriteNumbers(Utf8JsonWriter json, string key, ReadOnlySpan<long> numbers)
    {
        json.WriteStartArray(key);
        foreach (long number in numbers)
            json.WriteNumberValue(number);
        json.WriteEndArray();
    }
}

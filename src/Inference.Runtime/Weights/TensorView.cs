using System.Collections.Immutable;
using Inference.Backends;

namespace Inference.Runtime.Weights;

/// <summary>
/// One tensor of an open <see cref="Checkpoint"/>: what it is, and its bytes where they lie (row-major, little endian).
/// The view owns nothing. Spans and pointers taken from it are valid until the checkpoint is disposed; asking later throws
/// <see cref="ObjectDisposedException"/>. The data may start at any byte: use unaligned loads.
/// </summary>
public sealed unsafe class TensorView
{
    private readonly WeightRegion _region;
    private readonly long _offset;

    internal TensorView(WeightRegion region, string name, DType dtype, ImmutableArray<long> shape, long offset, long byteLength)
    {
        _region = region;
        _offset = offset;
        (Name, DType, Shape, ByteLength) = (name, dtype, shape, byteLength);
        ElementCount = shape.Aggregate(1L, static (product, dimension) => product * dimension);
    }

    /// <summary>The name in the checkpoint.</summary>
    public string Name { get; }

    /// <summary>How one element is stored.</summary>
    public DType DType { get; }

    /// <summary>Dimensions, outermost first; empty for a scalar.</summary>
    public ImmutableArray<long> Shape { get; }

    /// <summary>Bytes of the tensor.</summary>
    public long ByteLength { get; }

    /// <summary>The file that holds it.</summary>
    public string File => _region.Name;

    /// <summary>Product of the dimensions.</summary>
    public long ElementCount { get; }

    /// <summary>Address of the first byte; <see cref="ByteLength"/> bytes are readable there.</summary>
    public byte* Pointer => _region.Pointer + _offset;

    /// <summary>All bytes. For a tensor of 2 GiB or more take <see cref="Pointer"/> or <see cref="Slice"/>.</summary>
    /// <exception cref="InvalidOperationException">The tensor does not fit a span.</exception>
    public ReadOnlySpan<byte> Bytes => ByteLength <= int.MaxValue
        ? new ReadOnlySpan<byte>(Pointer, (int)ByteLength)
        : throw new InvalidOperationException($"Tensor {Name} has {ByteLength} bytes, more than a span can hold: read it in slices.");

    /// <summary>Some of the bytes.</summary>
    /// <param name="offset">First byte, counted from the start of the tensor.</param>
    /// <param name="length">How many.</param>
    /// <exception cref="ArgumentOutOfRangeException">The range leaves the tensor.</exception>
    public ReadOnlySpan<byte> Slice(long offset, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, ByteLength - length);
        return new ReadOnlySpan<byte>(Pointer + offset, length);
    }

    /// <summary>All elements as <typeparamref name="T"/>, whose size must be that of one element.</summary>
    /// <exception cref="InvalidOperationException">Another element size, or a tensor that does not fit a span.</exception>
    public ReadOnlySpan<T> AsSpan<T>()
        where T : unmanaged
    {
        if (sizeof(T) * 8 != DType.BitsPerElement())
            throw new InvalidOperationException($"Tensor {Name} is {DType}; {typeof(T).Name} has {sizeof(T)} bytes.");
        return ElementCount <= int.MaxValue
            ? new ReadOnlySpan<T>(Pointer, (int)ElementCount)
            : throw new InvalidOperationException($"Tensor {Name} has {ElementCount} elements, more than a span can hold: read it in slices.");
    }

    /// <summary>
    /// The same bytes as FP4 values: checkpoints store two E2M1 codes in each I8 or U8, low nibble first, so the last
    /// dimension doubles (spec deepseek-v4 4.1).
    /// </summary>
    /// <exception cref="InvalidOperationException">The tensor is no matrix of bytes.</exception>
    public TensorView AsPackedFp4()
    {
        if (DType is not (DType.I8 or DType.U8) || Shape.Length == 0)
            throw new InvalidOperationException($"Tensor {Name} is {DType} {SafetensorsHeader.ShapeText(Shape)}, not packed FP4.");
        return new TensorView(_region, Name, DType.F4E2M1, Shape.SetItem(Shape.Length - 1, checked(Shape[^1] * 2)), _offset, ByteLength);
    }

    /// <summary>Name, dtype and shape, for messages.</summary>
    public override string ToString() => $"{Printable.Text(Name)} {DType} {SafetensorsHeader.ShapeText(Shape)}";
}

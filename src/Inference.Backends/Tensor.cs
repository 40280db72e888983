using System.Runtime.CompilerServices;

namespace Inference.Backends;

/// <summary>
/// A descriptor of numbers in a buffer: buffer, byte offset, element type, shape of up to four dimensions, and the distance
/// between items of the first dimension (in elements). The inner dimensions are contiguous. Plain data: copying it copies
/// no numbers and it owns nothing.
/// </summary>
public readonly struct Tensor
{
    public readonly DeviceBuffer Buffer;
    /// <summary>Offset of the first element from the start of the buffer, in bytes.</summary>
    public readonly long ByteOffset;
    /// <summary>Distance between two items of the first dimension, in elements.</summary>
    public readonly long RowStride;
    public readonly int D0, D1, D2, D3;
    public readonly int Rank;
    public readonly DType DType;

    private Tensor(DeviceBuffer buffer, long byteOffset, DType dtype, int rank, int d0, int d1, int d2, int d3, long rowStride)
    {
        Buffer = buffer;
        ByteOffset = byteOffset;
        DType = dtype;
        Rank = rank;
        D0 = d0;
        D1 = d1;
        D2 = d2;
        D3 = d3;
        RowStride = rowStride;
    }

    public static Tensor Create(DeviceBuffer buffer, DType dtype, int d0, long byteOffset = 0) =>
        Checked(new(buffer, byteOffset, dtype, 1, d0, 1, 1, 1, 1));

    public static Tensor Create(DeviceBuffer buffer, DType dtype, int d0, int d1, long byteOffset = 0) =>
        Checked(new(buffer, byteOffset, dtype, 2, d0, d1, 1, 1, d1));

    public static Tensor Create(DeviceBuffer buffer, DType dtype, int d0, int d1, int d2, long byteOffset = 0) =>
        Checked(new(buffer, byteOffset, dtype, 3, d0, d1, d2, 1, (long)d1 * d2));

    public static Tensor Create(DeviceBuffer buffer, DType dtype, int d0, int d1, int d2, int d3, long byteOffset = 0) =>
        Checked(new(buffer, byteOffset, dtype, 4, d0, d1, d2, d3, (long)d1 * d2 * d3));

    /// <summary>False for <c>default</c>: an optional operand that is not there.</summary>
    public bool IsPresent => Buffer is not null;

    /// <summary>Elements of one item of the first dimension.</summary>
    public long RowElements => (long)D1 * D2 * D3;

    public long ElementCount => D0 * RowElements;

    /// <summary>Bytes from the first to behind the last element, gaps between rows included.</summary>
    public long SpanBytes => D0 == 0 ? 0 : DType.ByteLength((D0 - 1) * RowStride + RowElements);

    /// <summary>Items <paramref name="start"/> .. start + count - 1 of the first dimension.</summary>
    public Tensor Slice(int start, int count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start + (long)count, D0);
        return new(Buffer, ByteOffset + DType.ByteLength(start * RowStride), DType, Rank, count, D1, D2, D3, RowStride);
    }

    /// <summary>The first <paramref name="count"/> items of the first dimension.</summary>
    public Tensor First(int count) => Slice(0, count);

    /// <summary>Columns <paramref name="start"/> .. start + count - 1 of a matrix, as a strided view.</summary>
    public Tensor Columns(int start, int count)
    {
        if (Rank != 2) throw new ArgumentException($"Columns needs a matrix, got rank {Rank}.");
        ArgumentOutOfRangeException.ThrowIfNegative(start);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(start + (long)count, D1);
        return new(Buffer, ByteOffset + DType.ByteLength(start), DType, 2, D0, count, 1, 1, RowStride);
    }

    /// <summary>The same contiguous elements as a matrix [d0, d1].</summary>
    public Tensor As(int d0, int d1) => Reshaped(2, d0, d1, 1, 1);

    /// <summary>The same contiguous elements as [d0, d1, d2].</summary>
    public Tensor As(int d0, int d1, int d2) => Reshaped(3, d0, d1, d2, 1);

    private Tensor Reshaped(int rank, int d0, int d1, int d2, int d3)
    {
        long inner = (long)d1 * d2 * d3;
        if (d0 * inner != ElementCount) throw new ArgumentException($"{this} cannot be seen as [{d0}, {d1}, {d2}, {d3}].");
        if (D0 > 1 && RowStride != RowElements) throw new ArgumentException($"{this} is not contiguous.");
        return new(Buffer, ByteOffset, DType, rank, d0, d1, d2, d3, inner);
    }

    private static Tensor Checked(Tensor t)
    {
        if ((t.D0 | t.D1 | t.D2 | t.D3) < 0 || t.ByteOffset < 0)
            throw new ArgumentException($"Negative extent in {t}.");
        if (t.ByteOffset + t.SpanBytes > t.Buffer.SizeBytes)
            throw new ArgumentException($"{t} at byte {t.ByteOffset} does not fit a buffer of {t.Buffer.SizeBytes} bytes.");
        return t;
    }

    public override string ToString() => Rank switch
    {
        0 => "absent",
        1 => $"{DType}[{D0}]",
        2 => $"{DType}[{D0}, {D1}]",
        3 => $"{DType}[{D0}, {D1}, {D2}]",
        _ => $"{DType}[{D0}, {D1}, {D2}, {D3}]",
    };
}

/// <summary>Reading tensors that lie in <see cref="HostBuffer"/>s; for backends that run on the processor.</summary>
public static unsafe class HostTensor
{
    /// <summary>Address of the first element.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Pointer(this in Tensor t) => ((HostBuffer)t.Buffer).Data + t.ByteOffset;

    /// <summary>Address of item <paramref name="row"/> of the first dimension of an F32 tensor.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float* F32(this in Tensor t, long row = 0) => (float*)t.Pointer() + row * t.RowStride;

    /// <summary>Address of item <paramref name="row"/> of the first dimension of an I32 tensor.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int* I32(this in Tensor t, long row = 0) => (int*)t.Pointer() + row * t.RowStride;
}

namespace Inference.Backends;

/// <summary>
/// How one element of a tensor is stored. A dtype says nothing about scales: a quantised matrix is a tensor of one
/// of the small dtypes together with a scale tensor, and the pairing is named by its weight scheme.
/// </summary>
/// <remarks>The numeric values are stable and may be stored; new members are appended.</remarks>
public enum DType
{
    /// <summary>IEEE binary32.</summary>
    F32 = 0,

    /// <summary>bfloat16: the upper half of a binary32.</summary>
    BF16 = 1,

    /// <summary>IEEE binary16.</summary>
    F16 = 2,

    /// <summary>OCP E4M3FN: bias 7, largest value 448, no infinities, NaN = 0x7F and 0xFF.</summary>
    F8E4M3 = 3,

    /// <summary>OCP E8M0: a power of two, 2^(byte - 127); 255 is NaN. Used for scales only.</summary>
    F8E8M0 = 4,

    /// <summary>OCP E2M1: values 0, .5, 1, 1.5, 2, 3, 4, 6 and a sign; two per byte, the low nibble has the even index.</summary>
    F4E2M1 = 5,

    /// <summary>Signed byte. Checkpoints also use it as the container of packed FP4 pairs.</summary>
    I8 = 6,

    /// <summary>Unsigned byte.</summary>
    U8 = 7,

    /// <summary>Signed 32-bit integer, little endian.</summary>
    I32 = 8,

    /// <summary>Signed 64-bit integer, little endian.</summary>
    I64 = 9,
}

/// <summary>Sizes of <see cref="DType"/> elements.</summary>
public static class DTypes
{
    /// <summary>Bits of one element: 4 for <see cref="DType.F4E2M1"/>, else 8, 16, 32 or 64.</summary>
    /// <exception cref="ArgumentOutOfRangeException">The value is no member of the enum.</exception>
    public static int BitsPerElement(this DType dtype) => dtype switch
    {
        DType.F4E2M1 => 4,
        DType.F8E4M3 or DType.F8E8M0 or DType.I8 or DType.U8 => 8,
        DType.BF16 or DType.F16 => 16,
        DType.F32 or DType.I32 => 32,
        DType.I64 => 64,
        _ => throw new ArgumentOutOfRangeException(nameof(dtype), dtype, "not a dtype"),
    };

    /// <summary>Bytes of <paramref name="elements"/> elements stored without gaps.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A negative count, or an odd count of 4-bit elements.</exception>
    /// <exception cref="OverflowException">The size does not fit a signed 64-bit number.</exception>
    public static long ByteLength(this DType dtype, long elements)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(elements);
        var bits = dtype.BitsPerElement();
        if (bits >= 8)
            return checked(elements * (bits / 8));
        if (elements % 2 != 0)
            throw new ArgumentOutOfRangeException(nameof(elements), elements, "4-bit elements come in pairs");
        return elements / 2;
    }

    /// <summary>True for the floating point dtypes, the scale dtype <see cref="DType.F8E8M0"/> included.</summary>
    public static bool IsFloat(this DType dtype) => dtype < DType.I8;
}

// Rounding of cached rows to the grids that models were trained to see: blocks of E4M3 or E2M1 values with a power-of-two scale, and the Hadamard
// transform before the latter. The vector form of Numerics.QuantizeFp8Block, QuantizeFp4Block32 and Hadamard, with the same bits for every input
// (GridRoundingTests); the definitions are there.
//
// Dividing by a power of two is multiplying by its inverse, exactly. Rounding to few digits is done on the bits of an F32, to a fixed step below
// the smallest normal number of the grid by adding and subtracting a large constant; both break ties to even.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal static unsafe class GridRounding
{
    /// <summary>Replaces a row by what its stored form would give back.</summary>
    public static void Round(float* row, int width, int rotaryChannels, RowRounding rounding)
    {
        var plain = width - rotaryChannels;
        switch (rounding)
        {
            case RowRounding.BF16:
                BF16(row, width);
                break;
            case RowRounding.Fp8Block64 or RowRounding.Fp8Row:
                for (var start = 0; start < plain; start += RowFormat.Fp8Block)
                    Fp8Block(row + start, RowFormat.Fp8Block);
                if (rounding == RowRounding.Fp8Row) BF16(row + plain, rotaryChannels);
                break;
            case RowRounding.HadamardFp4Block32:
                Hadamard(row, width);
                for (var start = 0; start < width; start += RowFormat.Fp4Block)
                    Fp4Block32(row + start);
                break;
            case RowRounding.HadamardFp8:
                Hadamard(row, width);
                Fp8Block(row, width);
                break;
        }
    }

    /// <summary>Nearest BF16 values.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void BF16(float* x, int count)
    {
        var i = 0;
        for (; i + 16 <= count; i += 16)
        {
            var bits = Vector512.Load(x + i).AsUInt32();
            var nearest = bits + Vector512.Create(0x7FFFu) + ((bits >> 16) & Vector512<uint>.One);
            var nan = Vector512.GreaterThan(bits & Vector512.Create(0x7FFFFFFFu), Vector512.Create(0x7F800000u));
            nearest = Vector512.ConditionalSelect(nan, bits | Vector512.Create(0x400000u), nearest);
            (nearest & Vector512.Create(0xFFFF0000u)).AsSingle().Store(x + i);
        }
        for (; i < count; i++)
            x[i] = Numerics.RoundToBFloat16(x[i]);
    }

    /// <summary>One block with one scale; its length is a multiple of 16.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Fp8Block(float* x, int count)
    {
        var (scale, inverse) = Scales(Fp8ScaleCode(x, count));
        for (var i = 0; i < count; i += 16)
            (ToE4M3(Vector512.Load(x + i) * inverse) * scale).Store(x + i);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Fp4Block32(float* x)
    {
        var (scale, inverse) = Scales(Fp4ScaleCode(x));
        (ToE2M1(Vector512.Load(x) * inverse) * scale).Store(x);
        (ToE2M1(Vector512.Load(x + 16) * inverse) * scale).Store(x + 16);
    }

    /// <summary>E8M0 code of the scale that a block of E4M3 values gets; 255 when a value is not finite. The length is a multiple of 16.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Fp8ScaleCode(float* x, int count)
    {
        var most = Magnitude(Vector512.Load(x));
        for (var i = 16; i < count; i += 16)
            most = Vector512.Max(most, Magnitude(Vector512.Load(x + i)));
        return ScaleCode(Largest(most), 1e-4f, 1f / 448f);
    }

    /// <summary>The same for 32 values of E2M1.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Fp4ScaleCode(float* x) =>
        ScaleCode(Largest(Vector512.Max(Magnitude(Vector512.Load(x)), Magnitude(Vector512.Load(x + 16)))), 6f * 1.17549435e-38f, 1f / 6f);

    /// <summary>In place: butterflies from stride 1 upward, then one multiplication; the width is a power of two and at least 32.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Hadamard(float* x, int width)
    {
        var sign = Vector512.Create(0x80000000u);
        // A lane whose bit `stride` is set holds b of a pair (a, b) and becomes a - b; the others hold a and become a + b.
        var lane = Vector512.Create(0u, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Vector512<uint> flip1 = lane << 31, flip2 = (lane << 30) & sign, flip4 = (lane << 29) & sign, flip8 = (lane << 28) & sign;
        for (var i = 0; i < width; i += 16)
        {
            var v = Vector512.Load(x + i);
            v = Vector512.Shuffle(v, Vector512.Create(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)) + (v.AsUInt32() ^ flip1).AsSingle();
            v = Vector512.Shuffle(v, Vector512.Create(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)) + (v.AsUInt32() ^ flip2).AsSingle();
            v = Vector512.Shuffle(v, Vector512.Create(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)) + (v.AsUInt32() ^ flip4).AsSingle();
            v = Vector512.Shuffle(v, Vector512.Create(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)) + (v.AsUInt32() ^ flip8).AsSingle();
            v.Store(x + i);
        }
        for (var stride = 16; stride < width; stride *= 2)
        {
            for (var start = 0; start < width; start += 2 * stride)
            {
                for (var i = start; i < start + stride; i += 16)
                {
                    Vector512<float> a = Vector512.Load(x + i), b = Vector512.Load(x + i + stride);
                    (a + b).Store(x + i);
                    (a - b).Store(x + i + stride);
                }
            }
        }
        var scale = Vector512.Create((float)(1.0 / Math.Sqrt(width)));
        for (var i = 0; i < width; i += 16)
            (Vector512.Load(x + i) * scale).Store(x + i);
    }

    /// <summary>The bits of |x|: as integers they order like the magnitudes, with infinities and NaN above all.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Magnitude(Vector512<float> v) => v.AsUInt32() & Vector512.Create(0x7FFFFFFFu);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint Largest(Vector512<uint> v)
    {
        var half = Vector256.Max(v.GetLower(), v.GetUpper());
        var quarter = Vector128.Max(half.GetLower(), half.GetUpper());
        return Math.Max(Math.Max(quarter[0], quarter[1]), Math.Max(quarter[2], quarter[3]));
    }

    /// <summary>Code of 2^ceil(log2(largest * step)) by the bits of the F32 product; 255 when a value is not finite.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint ScaleCode(uint largest, float floor, float step)
    {
        if (largest >= 0x7F800000) return 255;
        var bits = BitConverter.SingleToUInt32Bits(MathF.Max(floor, BitConverter.UInt32BitsToSingle(largest)) * step);
        return (bits >> 23) + ((bits & 0x7FFFFF) != 0 ? 1u : 0u);
    }

    /// <summary>The scale of a code that <see cref="ScaleCode"/> gave, and its inverse.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static (Vector512<float> Scale, Vector512<float> Inverse) Scales(uint code) => code == 255
        ? (Vector512.Create(float.NaN), Vector512.Create(float.NaN))
        : (Vector512.Create(code << 23).AsSingle(), Vector512.Create((254 - code) << 23).AsSingle());

    /// <summary>Nearest E4M3 value: three digits after the first, steps of 2^-9 below 2^-6, at most 448.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> ToE4M3(Vector512<float> v)
    {
        var bits = Magnitude(v);
        var normal = (bits + Vector512.Create(0x7FFFFu) + ((bits >> 20) & Vector512<uint>.One)) & Vector512.Create(0xFFF00000u);
        var magic = Vector512.Create(24576f); // 1.5 * 2^14: its last digit is 2^-9
        var small = ((bits.AsSingle() + magic) - magic).AsUInt32();
        var rounded = Vector512.ConditionalSelect(Vector512.LessThan(bits, Vector512.Create(0x3C800000u)), small, normal);
        return Finish(v, bits, rounded, 448f);
    }

    /// <summary>Nearest E2M1 value: one digit after the first, steps of 1/2 below 1, at most 6.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> ToE2M1(Vector512<float> v)
    {
        var bits = Magnitude(v);
        var normal = (bits + Vector512.Create(0x1FFFFFu) + ((bits >> 22) & Vector512<uint>.One)) & Vector512.Create(0xFFC00000u);
        var magic = Vector512.Create(6291456f); // 1.5 * 2^22: its last digit is 1/2
        var small = ((bits.AsSingle() + magic) - magic).AsUInt32();
        var rounded = Vector512.ConditionalSelect(Vector512.LessThan(bits, Vector512.Create(0x3F800000u)), small, normal);
        return Finish(v, bits, rounded, 6f);
    }

    /// <summary>Saturates and puts the sign back; a block that is not finite stays NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Finish(Vector512<float> v, Vector512<uint> bits, Vector512<uint> rounded, float max)
    {
        rounded = Vector512.Min(rounded, Vector512.Create(max).AsUInt32());
        rounded = Vector512.ConditionalSelect(Vector512.GreaterThan(bits, Vector512.Create(0x7F800000u)), bits, rounded);
        return (rounded | (v.AsUInt32() & Vector512.Create(0x80000000u))).AsSingle();
    }
}

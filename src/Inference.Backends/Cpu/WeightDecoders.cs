// From stored weights to F32 vectors of sixteen lanes, and the order of the elements in them.
//
// F32, BF16, F16: natural order; lane i of vector j is column 16 j + i.
// FP8: 64 columns at a time. Codes become BF16 by two byte tables (high and low byte), the bytes are joined by unpacking inside each quarter of
//   16 columns, and BF16 pairs become F32 by a shift and a mask. With q = i / 4, r = i % 4, lane i of the four vectors is column
//   16 q + 2 r, 16 q + 2 r + 1, 16 q + 8 + 2 r, 16 q + 9 + 2 r.
// FP4: 128 columns at a time. A dword holds eight codes; its nibble j, looked up in a table of sixteen floats, is lane i of vector j:
//   column 8 i + j. All eight vectors then have the same scale in a lane: that of the group i / 4.
// The activations are brought into the same order once per call (Pack), which costs one pass over them.
//
// Decoding is exact, so which instructions do it changes no bit; scales are not applied here. Every variant is compared with Numerics.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

/// <summary>A format whose vectors decode one by one, in natural order.</summary>
internal unsafe interface INaturalFormat
{
    static abstract int BytesPerElement { get; }

    /// <summary>Sixteen elements.</summary>
    static abstract Vector512<float> Load(byte* elements);
}

internal readonly unsafe struct F32Format : INaturalFormat
{
    public static int BytesPerElement => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Load(byte* elements) => Vector512.Load((float*)elements);
}

internal readonly unsafe struct BF16Format : INaturalFormat
{
    public static int BytesPerElement => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Load(byte* elements) => (WeightDecoders.Widen(Vector256.Load((ushort*)elements)) << 16).AsSingle();
}

internal readonly unsafe struct F16Format : INaturalFormat
{
    public static int BytesPerElement => 2;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Load(byte* elements)
    {
        var code = WeightDecoders.Widen(Vector256.Load((ushort*)elements));
        var magnitude = (code & Vector512.Create(0x7FFFu)) << 13; // exponent and mantissa in their F32 places
        // Subnormals: 2^-14 (1 + m) - 2^-14 is exact and touches no subnormal F32. Infinities and NaN: the exponent becomes 255.
        var smallest = Vector512.Create(113u << 23);
        var subnormal = ((magnitude + smallest).AsSingle() - smallest.AsSingle()).AsUInt32();
        var normal = magnitude + Vector512.Create(112u << 23);
        var special = magnitude + Vector512.Create(224u << 23);
        var value = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(1u << 23)), subnormal, normal);
        value = Vector512.ConditionalSelect(Vector512.GreaterThanOrEqual(magnitude, Vector512.Create(31u << 23)), special, value);
        return (value | (code & Vector512.Create(0x8000u)) << 16).AsSingle();
    }
}

internal static unsafe class WeightDecoders
{
    /// <summary>Bytes of the BF16 value of an E4M3 magnitude: entry m and 128 + m are its high and low byte.</summary>
    private static readonly byte[] E4M3Bytes = BuildE4M3Bytes();

    private static byte[] BuildE4M3Bytes()
    {
        var table = GC.AllocateArray<byte>(256, pinned: true);
        for (var m = 0; m < 128; m++)
        {
            var code = Numerics.SingleToBFloat16(Numerics.E4M3ToSingle((byte)m)); // exact: E4M3 has fewer digits, NaN stays NaN
            table[m] = (byte)(code >> 8);
            table[128 + m] = (byte)code;
        }
        return table;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<uint> Widen(Vector256<ushort> v)
    {
        if (Avx512F.IsSupported) return Avx512F.ConvertToVector512UInt32(v);
        var (low, high) = Vector256.Widen(v);
        return Vector512.Create(low, high);
    }

    /// <summary>64 E4M3 codes as four vectors in FP8 order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Fp8(byte* codes, in Fp8Tables tables, out Vector512<float> v0, out Vector512<float> v1, out Vector512<float> v2, out Vector512<float> v3)
    {
        if (Avx512Vbmi.IsSupported)
        {
            var c = Vector512.Load(codes);
            // The table index is the low seven bits of the code; the sign is bit 7 of both the code and the high byte.
            var high = Avx512Vbmi.PermuteVar64x8x2(tables.High0, c, tables.High1) | (c & Vector512.Create((byte)0x80));
            var low = Avx512Vbmi.PermuteVar64x8x2(tables.Low0, c, tables.Low1);
            var a = Avx512BW.UnpackLow(low, high).AsUInt32();
            var b = Avx512BW.UnpackHigh(low, high).AsUInt32();
            v0 = (a << 16).AsSingle();
            v1 = (a & Vector512.Create(0xFFFF0000u)).AsSingle();
            v2 = (b << 16).AsSingle();
            v3 = (b & Vector512.Create(0xFFFF0000u)).AsSingle();
            return;
        }
        Fp8Half(Vector256.Load(codes), out var a0, out var a1, out var a2, out var a3);
        Fp8Half(Vector256.Load(codes + 32), out var b0, out var b1, out var b2, out var b3);
        v0 = Vector512.Create(a0, b0);
        v1 = Vector512.Create(a1, b1);
        v2 = Vector512.Create(a2, b2);
        v3 = Vector512.Create(a3, b3);
    }

    /// <summary>Lanes 0..7 of what the first 32 codes become. BF16 = (magnitude &lt;&lt; 4) + 120 &lt;&lt; 7, but for the eight codes with exponent 0
    /// and the one NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Fp8Half(Vector256<byte> c, out Vector256<float> v0, out Vector256<float> v1, out Vector256<float> v2, out Vector256<float> v3)
    {
        var magnitude = c & Vector256.Create((byte)0x7F);
        var high = ((magnitude.AsUInt16() >> 4).AsByte() & Vector256.Create((byte)0x0F)) + Vector256.Create((byte)0x3C);
        var low = (magnitude.AsUInt16() << 4).AsByte() & Vector256.Create((byte)0xF0);
        // 0, 2^-9, 2^-8, 1.5 2^-8, 2^-7, 1.25 2^-7, 1.5 2^-7, 1.75 2^-7
        var tinyHigh = Lookup16(Vector128.Create((byte)0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, 0, 0, 0, 0, 0, 0, 0, 0), magnitude);
        var tinyLow = Lookup16(Vector128.Create((byte)0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0), magnitude);
        var tiny = Vector256.LessThan(magnitude.AsSByte(), Vector256.Create((sbyte)8)).AsByte();
        var nan = Vector256.Equals(magnitude, Vector256.Create((byte)0x7F));
        high = Vector256.ConditionalSelect(tiny, tinyHigh, high) | (nan & Vector256.Create((byte)0x7F)) | (c & Vector256.Create((byte)0x80));
        low = Vector256.ConditionalSelect(tiny, tinyLow, low) | (nan & Vector256.Create((byte)0xC0));
        Unpack(low, high, out var a, out var b);
        v0 = (a << 16).AsSingle();
        v1 = (a & Vector256.Create(0xFFFF0000u)).AsSingle();
        v2 = (b << 16).AsSingle();
        v3 = (b & Vector256.Create(0xFFFF0000u)).AsSingle();
    }

    /// <summary>Table entries by the low four bits of each index, which is below 128.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<byte> Lookup16(Vector128<byte> table, Vector256<byte> index)
    {
        index &= Vector256.Create((byte)0x0F);
        if (Avx2.IsSupported) return Avx2.Shuffle(Vector256.Create(table, table), index);
        return Vector256.Create(Vector128.Shuffle(table, index.GetLower()), Vector128.Shuffle(table, index.GetUpper()));
    }

    /// <summary>Low and high bytes joined to 16-bit numbers, within each half of 16 bytes: of its first eight, and of its last eight.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Unpack(Vector256<byte> low, Vector256<byte> high, out Vector256<uint> first, out Vector256<uint> second)
    {
        if (Avx2.IsSupported)
        {
            first = Avx2.UnpackLow(low, high).AsUInt32();
            second = Avx2.UnpackHigh(low, high).AsUInt32();
            return;
        }
        var (l0, l1) = Vector128.Widen(low.GetLower());
        var (l2, l3) = Vector128.Widen(low.GetUpper());
        var (h0, h1) = Vector128.Widen(high.GetLower());
        var (h2, h3) = Vector128.Widen(high.GetUpper());
        first = Vector256.Create(l0 | h0 << 8, l2 | h2 << 8).AsUInt32();
        second = Vector256.Create(l1 | h1 << 8, l3 | h3 << 8).AsUInt32();
    }

    /// <summary>The float of the low four bits of each lane.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Fp4(Vector512<float> table, Vector512<uint> codes)
    {
        if (Avx512F.IsSupported) return Avx512F.PermuteVar16x32(table, codes.AsInt32());
        return Vector512.Create(Fp4Half(table.GetLower(), codes.GetLower()), Fp4Half(table.GetLower(), codes.GetUpper()));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Fp4Half(Vector256<float> magnitudes, Vector256<uint> codes)
    {
        var sign = codes << 28 & Vector256.Create(0x80000000u);
        if (Avx2.IsSupported) return (Avx2.PermuteVar8x32(magnitudes, codes.AsInt32()).AsUInt32() | sign).AsSingle(); // takes the low three bits
        return (Vector256.Shuffle(magnitudes, codes.AsInt32() & Vector256.Create(7)).AsUInt32() | sign).AsSingle();
    }

    public static Vector512<float> Fp4Table => Vector512.Create(0f, 0.5f, 1f, 1.5f, 2f, 3f, 4f, 6f, -0f, -0.5f, -1f, -1.5f, -2f, -3f, -4f, -6f);

    /// <summary>Lane i: the scale of group i / 4, for four E8M0 codes that are neither 0 nor 255.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Fp4Scales(byte* codes)
    {
        if (Avx512F.IsSupported)
        {
            var four = Vector512.Create(*(uint*)codes);
            var top = Avx512F.ShiftLeftLogicalVariable(four, Vector512.Create(24u, 24, 24, 24, 16, 16, 16, 16, 8, 8, 8, 8, 0, 0, 0, 0));
            return ((top & Vector512.Create(0xFF000000u)) >> 1).AsSingle();
        }
        return Vector512.Create(
            Vector256.Create(Vector128.Create((uint)codes[0] << 23), Vector128.Create((uint)codes[1] << 23)),
            Vector256.Create(Vector128.Create((uint)codes[2] << 23), Vector128.Create((uint)codes[3] << 23))).AsSingle();
    }

    /// <summary>As <see cref="Fp4Scales"/>, for any codes; reads only the first <paramref name="count"/>, the others count as 1.</summary>
    public static Vector512<float> AnyFp4Scales(byte* codes, int count)
    {
        var scales = stackalloc float[4];
        for (var i = 0; i < 4; i++)
            scales[i] = i < count ? Numerics.E8M0ToSingle(codes[i]) : 1;
        return Quarters(scales);
    }

    /// <summary>As <see cref="AnySpecialScale"/>, for four codes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnySpecialScale4(byte* codes)
    {
        // Codes plus one: 0 and 255 become 1 and 0, the only bytes below 2.
        var plusOne = Vector128.CreateScalar(*(uint*)codes).AsByte() + Vector128.CreateScalar(0x01010101u).AsByte();
        return (Vector128.LessThanOrEqual(plusOne, Vector128.CreateScalar(0x01010101u).AsByte()).AsUInt32().ToScalar()) != 0;
    }

    /// <summary>Whether an E8M0 code is among these that is not just an exponent: 0 (2^-127) or 255 (NaN).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool AnySpecialScale(byte* codes, int count)
    {
        var i = 0;
        for (; i + 32 <= count; i += 32)
        {
            if (Vector256.LessThanOrEqualAny(Vector256.Load(codes + i) + Vector256<byte>.One, Vector256<byte>.One)) return true;
        }
        for (; i < count; i++)
        {
            if (codes[i] is 0 or 255) return true;
        }
        return false;
    }

    /// <summary>Lane i: element i / 4.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Quarters(float* four)
    {
        if (Avx512F.IsSupported)
        {
            var index = Vector512.Create(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            return Avx512F.PermuteVar16x32(Vector128.Load(four).ToVector256Unsafe().ToVector512Unsafe(), index);
        }
        return Vector512.Create(
            Vector256.Create(Vector128.Create(four[0]), Vector128.Create(four[1])),
            Vector256.Create(Vector128.Create(four[2]), Vector128.Create(four[3])));
    }

    /// <summary>The byte tables of <see cref="Fp8"/>, loaded once per kernel call.</summary>
    public readonly struct Fp8Tables
    {
        public readonly Vector512<byte> High0, High1, Low0, Low1;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public Fp8Tables()
        {
            ref var table = ref E4M3Bytes[0];
            High0 = Vector512.LoadUnsafe(ref table, 0);
            High1 = Vector512.LoadUnsafe(ref table, 64);
            Low0 = Vector512.LoadUnsafe(ref table, 128);
            Low1 = Vector512.LoadUnsafe(ref table, 192);
        }
    }

    /// <summary>Brings a vector of activations into the order of a weight's format, filled up with zeros to whole vectors.</summary>
    /// <param name="stride">Floats from one vector of sixteen to the next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Pack(in WeightView weight, float* source, float* destination, int stride)
    {
        int count = weight.Columns, done = 0;
        switch (weight.Format)
        {
            case WeightFormat.Fp8 or WeightFormat.Fp8Narrow:
                for (; done + 64 <= count; done += 64, destination += 4 * stride)
                    Fp8Columns(source + done, destination, stride);
                if (done < count) Gather(source + done, Math.Min(count - done, 64), destination, stride, Fp8Order);
                break;
            case WeightFormat.Fp4:
                for (; done + 128 <= count && Avx.IsSupported; done += 128, destination += 8 * stride)
                {
                    Fp4Columns(source + done, destination, stride);
                    Fp4Columns(source + done + 64, destination + 8, stride);
                }
                for (; done < count; done += 128, destination += 8 * stride)
                    Gather(source + done, Math.Min(count - done, 128), destination, stride, Fp4Order);
                break;
            default:
                for (; done + 16 <= count; done += 16, destination += stride)
                    Vector512.Load(source + done).Store(destination);
                if (done < count) Lanes.LoadPartial(source + done, count - done).Store(destination);
                break;
        }
    }

    /// <summary>64 columns: the even and the odd ones of every eight.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Fp8Columns(float* source, float* destination, int stride)
    {
        var order = Vector256.Create(0, 2, 4, 6, 1, 3, 5, 7);
        for (var q = 0; q < 4; q++, source += 16, destination += 4)
        {
            Vector256<float> a = Vector256.Shuffle(Vector256.Load(source), order), b = Vector256.Shuffle(Vector256.Load(source + 8), order);
            a.GetLower().Store(destination);
            a.GetUpper().Store(destination + stride);
            b.GetLower().Store(destination + 2 * stride);
            b.GetUpper().Store(destination + 3 * stride);
        }
    }

    /// <summary>Eight lanes of eight vectors from 64 columns: a square of 8 x 8, turned.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Fp4Columns(float* source, float* destination, int stride)
    {
        for (var half = 0; half < 2; half++, source += 4, destination += 4 * stride)
        {
            // Columns 0..3 (then 4..7) of rows r and r + 4.
            Vector256<float> r0 = Rows(source, 0), r1 = Rows(source, 8), r2 = Rows(source, 16), r3 = Rows(source, 24);
            Vector256<float> a = Avx.UnpackLow(r0, r1), b = Avx.UnpackLow(r2, r3), c = Avx.UnpackHigh(r0, r1), d = Avx.UnpackHigh(r2, r3);
            Avx.Shuffle(a, b, 0b01_00_01_00).Store(destination);
            Avx.Shuffle(a, b, 0b11_10_11_10).Store(destination + stride);
            Avx.Shuffle(c, d, 0b01_00_01_00).Store(destination + 2 * stride);
            Avx.Shuffle(c, d, 0b11_10_11_10).Store(destination + 3 * stride);
        }
        static Vector256<float> Rows(float* source, int offset) => Vector256.Create(Vector128.Load(source + offset), Vector128.Load(source + offset + 32));
    }

    private static readonly byte[] Fp8Order = BuildOrder(64, i => 16 * (i % 16 / 4) + i / 32 * 8 + 2 * (i % 4) + i / 16 % 2);
    private static readonly byte[] Fp4Order = BuildOrder(128, i => 8 * (i % 16) + i / 16);

    private static byte[] BuildOrder(int count, Func<int, int> column)
    {
        var order = new byte[count];
        for (var i = 0; i < count; i++)
            order[i] = (byte)column(i);
        return order;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Gather(float* source, int available, float* destination, int stride, byte[] order)
    {
        for (var start = 0; start < order.Length; start += 16, destination += stride)
        {
            var columns = order.AsSpan(start, 16);
            for (var i = 0; i < columns.Length; i++)
                destination[i] = columns[i] < available ? source[columns[i]] : 0;
        }
    }
}

// Index scores of FP4 rows in integers (IndexKernel.cs).
//
// Twice an E2M1 value is an integer of at most 12. With k + 12 as an unsigned and q as a signed byte, one instruction multiplies 64 pairs and adds
// neighbours; eight of them make the 32 channels that share a scale, at most 32 * 12 * 24 in size, so that 16 bits hold every sum. The sum starts at
// -12 times the sum of q, which takes the 12 away again. Sum, times the row's scale, times the query's: each step is exact, and the addition to the
// chains before rounds once, as in the F32 kernel.
//
// Lanes are rows. In a tile, four channels of a row are the four bytes of a lane; which four is free, since integer sums have no order: the even
// and the odd channels of a dword of codes. A packed query lies over the F32 query it was made of. Owns nothing.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

/// <summary>A tile of <see cref="RowTile.Rows"/> rows in its user's memory: codes [groups][8][32 rows][4], then scales [groups][32 rows].</summary>
/// <param name="memory">13 x width floats.</param>
/// <param name="width">Channels, a multiple of 32.</param>
internal readonly unsafe struct IndexTileFp4(float* memory, int width)
{
    private const int Rows = RowTile.Rows, QuadsPerGroup = 8, QuadBytes = 4 * Rows, Half = QuadBytes / 2;

    private readonly byte* _codes = (byte*)memory;
    private readonly float* _scales = memory + 8L * width;
    private readonly float* _dwords = memory + 9L * width;
    private readonly int _width = width;

    private int Groups => _width / RowFormat.Fp4Block;

    /// <summary>Twice the value of each code: of a query, and of a row plus 12.</summary>
    private static Vector128<byte> Doubled => Vector128.Create(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12).AsByte();

    private static Vector128<byte> DoubledPlus12 => Doubled + Vector128.Create((byte)12);

    /// <summary>
    /// Replaces a rounded query by its packed form: bytes of the even channels [width / 2], of the odd ones, then per group a quarter of the scale
    /// (F32), and twice -6 times the sum of the bytes (16 bits each).
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void PackQuery(float* query, int width, in RowCodec codec)
    {
        var stored = stackalloc byte[width / 2 + width / RowFormat.Fp4Block];
        codec.Encode(query, stored);
        var bytes = (byte*)query;
        for (var i = 0; i < width / 2; i += 16)
        {
            var codes = Vector128.Load(stored + i);
            Lookup(Doubled, codes).Store(bytes + i);
            Lookup(Doubled, codes.AsUInt16() >> 4).Store(bytes + width / 2 + i);
        }
        int groups = width / RowFormat.Fp4Block;
        float* scales = (float*)(bytes + width);
        var starts = (int*)(scales + groups);
        for (var g = 0; g < groups; g++)
        {
            scales[g] = RowCodec.Scale(stored[width / 2 + g]) * 0.25f;
            var sum = 0;
            for (var i = 0; i < 16; i++)
                sum += (sbyte)bytes[16 * g + i] + (sbyte)bytes[width / 2 + 16 * g + i];
            starts[g] = (ushort)(-6 * sum) * 0x10001;
        }
    }

    /// <summary>Brings rows into the tile.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Fill(byte** rows)
    {
        RowTile.Transpose((float**)rows, _width / 8, _dwords); // eight codes a dword
        var table = DoubledPlus12;
        byte* from = (byte*)_dwords, to = _codes;
        for (var dword = 0; dword < _width / 8; dword++, from += QuadBytes, to += 2 * QuadBytes)
        {
            for (var half = 0; half < QuadBytes; half += Half)
            {
                var codes = Vector512.Load(from + half);
                Lookup(table, codes).Store(to + half);
                Lookup(table, (codes.AsUInt16() >> 4).AsByte()).Store(to + QuadBytes + half);
            }
        }
        for (var r = 0; r < Rows; r++)
        {
            for (var g = 0; g < Groups; g++)
                _scales[g * Rows + r] = RowCodec.Scale(rows[r][_width / 2 + g]);
        }
    }

    /// <summary>Scores of the tile's rows for one token.</summary>
    /// <param name="queries">Packed queries of all heads, 4 x width bytes apart.</param>
    /// <param name="weights">Of the heads.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Score(byte* queries, int heads, float* weights, float scale, float* scores)
    {
        Vector512<float> low = Vector512<float>.Zero, high = low;
        var h = 0;
        var stride = 4L * _width;
        for (; h + 4 <= heads; h += 4, queries += 4 * stride)
        {
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
            var k = _codes;
            for (var g = 0; g < Groups; g++)
            {
                var q = queries + 16 * g;
                var start = (int*)(queries + _width) + Groups + g;
                var e0 = Vector512.Create(*start).AsInt16();
                var f0 = Vector512.Create(*(int*)((byte*)start + stride)).AsInt16();
                var g0 = Vector512.Create(*(int*)((byte*)start + 2 * stride)).AsInt16();
                var h0 = Vector512.Create(*(int*)((byte*)start + 3 * stride)).AsInt16();
                Vector512<short> e1 = e0, f1 = f0, g1 = g0, h1 = h0;
                for (var quad = 0; quad < QuadsPerGroup; quad++, k += QuadBytes)
                {
                    var at = q + quad / 2 * 4 + quad % 2 * (_width / 2);
                    Vector512<byte> k0 = Vector512.Load(k), k1 = Vector512.Load(k + Half);
                    var four = Vector512.Create(*(int*)at).AsSByte();
                    e0 += Multiply(k0, four);
                    e1 += Multiply(k1, four);
                    four = Vector512.Create(*(int*)(at + stride)).AsSByte();
                    f0 += Multiply(k0, four);
                    f1 += Multiply(k1, four);
                    four = Vector512.Create(*(int*)(at + 2 * stride)).AsSByte();
                    g0 += Multiply(k0, four);
                    g1 += Multiply(k1, four);
                    four = Vector512.Create(*(int*)(at + 3 * stride)).AsSByte();
                    h0 += Multiply(k0, four);
                    h1 += Multiply(k1, four);
                }
                Vector512<float> s0 = Vector512.Load(_scales + g * Rows), s1 = Vector512.Load(_scales + g * Rows + 16);
                var factor = queries + _width + 4 * g;
                var s = Vector512.Create(*(float*)factor);
                a0 = Vector512.FusedMultiplyAdd(AddPairs(e0) * s0, s, a0);
                a1 = Vector512.FusedMultiplyAdd(AddPairs(e1) * s1, s, a1);
                s = Vector512.Create(*(float*)(factor + stride));
                b0 = Vector512.FusedMultiplyAdd(AddPairs(f0) * s0, s, b0);
                b1 = Vector512.FusedMultiplyAdd(AddPairs(f1) * s1, s, b1);
                s = Vector512.Create(*(float*)(factor + 2 * stride));
                c0 = Vector512.FusedMultiplyAdd(AddPairs(g0) * s0, s, c0);
                c1 = Vector512.FusedMultiplyAdd(AddPairs(g1) * s1, s, c1);
                s = Vector512.Create(*(float*)(factor + 3 * stride));
                d0 = Vector512.FusedMultiplyAdd(AddPairs(h0) * s0, s, d0);
                d1 = Vector512.FusedMultiplyAdd(AddPairs(h1) * s1, s, d1);
            }
            RowTile.AddHead(weights[h] * scale, a0, a1, ref low, ref high);
            RowTile.AddHead(weights[h + 1] * scale, b0, b1, ref low, ref high);
            RowTile.AddHead(weights[h + 2] * scale, c0, c1, ref low, ref high);
            RowTile.AddHead(weights[h + 3] * scale, d0, d1, ref low, ref high);
        }
        for (; h < heads; h++, queries += stride)
        {
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0;
            var k = _codes;
            for (var g = 0; g < Groups; g++)
            {
                var e0 = Vector512.Create(((int*)(queries + _width))[Groups + g]).AsInt16();
                var e1 = e0;
                for (var quad = 0; quad < QuadsPerGroup; quad++, k += QuadBytes)
                {
                    var four = Vector512.Create(*(int*)(queries + 16 * g + quad / 2 * 4 + quad % 2 * (_width / 2))).AsSByte();
                    e0 += Multiply(Vector512.Load(k), four);
                    e1 += Multiply(Vector512.Load(k + Half), four);
                }
                var s = Vector512.Create(*(float*)(queries + _width + 4 * g));
                a0 = Vector512.FusedMultiplyAdd(AddPairs(e0) * Vector512.Load(_scales + g * Rows), s, a0);
                a1 = Vector512.FusedMultiplyAdd(AddPairs(e1) * Vector512.Load(_scales + g * Rows + 16), s, a1);
            }
            RowTile.AddHead(weights[h] * scale, a0, a1, ref low, ref high);
        }
        low.Store(scores);
        high.Store(scores + 16);
    }

    /// <summary>Products of bytes, neighbours added; nothing here is large enough to saturate.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<short> Multiply(Vector512<byte> k, Vector512<sbyte> q)
    {
        if (Avx512BW.IsSupported) return Avx512BW.MultiplyAddAdjacent(k, q);
        if (Avx2.IsSupported)
            return Vector512.Create(Avx2.MultiplyAddAdjacent(k.GetLower(), q.GetLower()), Avx2.MultiplyAddAdjacent(k.GetUpper(), q.GetUpper()));
        // The low and the high byte of each 16 bits.
        Vector512<short> kEven = (k.AsUInt16() & Vector512.Create((ushort)0xFF)).AsInt16(), kOdd = (k.AsUInt16() >> 8).AsInt16();
        Vector512<short> qEven = q.AsInt16() << 8 >> 8, qOdd = q.AsInt16() >> 8;
        return kEven * qEven + kOdd * qOdd;
    }

    /// <summary>Neighbours added, as F32.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> AddPairs(Vector512<short> v)
    {
        if (Avx512BW.IsSupported) return Vector512.ConvertToSingle(Avx512BW.MultiplyAddAdjacent(v, Vector512<short>.One));
        return Vector512.ConvertToSingle((v.AsInt32() << 16 >> 16) + (v.AsInt32() >> 16));
    }

    /// <summary>The table's byte for the low four bits of each byte.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<byte> Lookup(Vector128<byte> table, Vector512<byte> codes)
    {
        codes &= Vector512.Create((byte)15);
        if (Avx512BW.IsSupported) return Avx512BW.Shuffle(Vector512.Create(Vector256.Create(table, table), Vector256.Create(table, table)), codes);
        return Vector512.Create(LookupHalf(table, codes.GetLower()), LookupHalf(table, codes.GetUpper()));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<byte> LookupHalf(Vector128<byte> table, Vector256<byte> codes)
    {
        if (Avx2.IsSupported) return Avx2.Shuffle(Vector256.Create(table, table), codes);
        return Vector256.Create(Vector128.Shuffle(table, codes.GetLower()), Vector128.Shuffle(table, codes.GetUpper()));
    }

    private static Vector128<byte> Lookup(Vector128<byte> table, Vector128<byte> codes) => Vector128.Shuffle(table, codes & Vector128.Create((byte)15));

    private static Vector128<byte> Lookup(Vector128<byte> table, Vector128<ushort> codes) => Lookup(table, codes.AsByte());
}

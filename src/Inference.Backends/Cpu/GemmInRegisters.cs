// Weight matrix times several vectors, without a panel: weights are decoded in registers, two rows at a time for four tokens, or four rows for two.
// Decoding again for every four tokens costs less than storing a panel and loading it, where a processor has units to spare beside its FMAs
// (measured on Zen 4: benchmarks/LOG.md).
//
// Order of the sum: that of MatVec. A piece of K (PieceVectors) of a group of tokens stays in the first-level cache while the rows of a block pass by;
// between pieces the sums wait in memory, sixteen lanes each. Only where a vector is one register, and for weights whose columns are whole vectors
// (whole chains, if quantised) and whose FP4 scales are plain exponents (Covers); Gemm's panels do the others, with the same bits.
//
// The six kernels differ in the format and in the shape of the block; each runs over all rows of a block for one piece and one group of tokens, and calls
// nothing on its way. A row behind the end repeats the last one, a token that is not there the first; what they give is dropped.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class GemmInRegisters
{
    private const int PieceVectors = 64; // 1024 columns: four tokens take 16 KB

    private const int SumsPerGroup = 4 * (Gemm.Block + 3);

    /// <summary>Floats of scratch for a block of rows.</summary>
    public static long ScratchFloats(int tokens) => (tokens + 3L) / 4 * SumsPerGroup * 16;

    /// <summary>Whether this kernel does these rows.</summary>
    public static bool Covers(in WeightView w, int start, int end)
    {
        if (!Vector512.IsHardwareAccelerated) return false;
        return w.Format switch
        {
            WeightFormat.F32 or WeightFormat.BF16 or WeightFormat.F16 => w.Columns % 16 == 0,
            WeightFormat.Fp8 => w.Columns % 128 == 0,
            WeightFormat.Fp8Narrow => w.Columns % 64 == 0,
            WeightFormat.Fp4 => w.Columns % 128 == 0 && w.TileRows == 1
                && !WeightDecoders.AnySpecialScale(w.RowScaleCodes(start), (end - start) * w.ScaleStride),
            _ => false,
        };
    }

    /// <summary>At most <see cref="Gemm.Block"/> rows of every y[t].</summary>
    public static void Rows(in WeightView w, int start, int end, in PackedBatch x, float** y, float* scratch)
    {
        var vectors = w.Vectors;
        for (var v = 0; v < vectors; v += PieceVectors)
        {
            var piece = Math.Min(PieceVectors, vectors - v);
            for (var group = 0; group * PackedBatch.GroupTokens < x.Tokens; group++)
            {
                var width = x.WidthOf(group);
                // The first group to meet a piece of the weights fetches what follows it: the next piece, or the next block of rows.
                var ahead = group > 0 ? 0 : v + piece < vectors ? w.BytesOf(piece) : Gemm.Block * w.RowBytes - w.BytesOf(v);
                Multiply(w, start, end, v, piece, x.Group(group) + (long)v * 16 * width, width, scratch + (long)group * SumsPerGroup * 16, (nint)ahead);
            }
        }
        for (var group = 0; group * PackedBatch.GroupTokens < x.Tokens; group++)
            Finish(scratch + (long)group * SumsPerGroup * 16, start, end, x.WidthOf(group), y + group * PackedBatch.GroupTokens);
    }

    /// <summary>Joins the lanes of a group's sums, [row][two or four tokens][16], and stores the results.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Finish(float* sums, int start, int end, int width, float** y)
    {
        if (width > 2)
        {
            float* y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[width - 1];
            for (var n = start; n < end; n++, sums += 64)
            {
                var four = Lanes.Sum4(Vector512.Load(sums), Vector512.Load(sums + 16), Vector512.Load(sums + 32), Vector512.Load(sums + 48));
                y0[n] = four[0];
                y1[n] = four[1];
                y2[n] = four[2];
                if (width == 4) y3[n] = four[3];
            }
            return;
        }
        for (var n = start; n < end; n++, sums += 32)
        {
            y[0][n] = Lanes.Sum(Vector512.Load(sums));
            if (width == 2) y[1][n] = Lanes.Sum(Vector512.Load(sums + 16));
        }
    }

    /// <summary>A block of rows times one piece of a group of tokens; the first piece starts the sums.</summary>
    private static void Multiply(in WeightView w, int start, int end, int vector, int piece, float* x, int width, float* sums, nint ahead)
    {
        var place = new Place(w.Vector(start, vector), w.RowBytes, end - start, piece, vector == 0, ahead);
        var stride = width * 16;
        if (width > 2)
        {
            var last = width == 4 ? 48 : 0;
            switch (w.Format)
            {
                case WeightFormat.F32: NaturalTwoByFour<F32Format>(place, x, stride, last, sums); break;
                case WeightFormat.BF16: NaturalTwoByFour<BF16Format>(place, x, stride, last, sums); break;
                case WeightFormat.F16: NaturalTwoByFour<F16Format>(place, x, stride, last, sums); break;
                case WeightFormat.Fp8: Fp8TwoByFour<WideScales>(place, w, start, vector / 8, x, stride, last, sums); break;
                case WeightFormat.Fp8Narrow: Fp8TwoByFour<NarrowScales>(place, w, start, vector, x, stride, last, sums); break;
                default: Fp4TwoByFour(place, w.RowScaleCodes(start) + vector / 2, w.ScaleStride, x, stride, last, sums); break;
            }
            return;
        }
        var second = width == 2 ? 16 : 0;
        switch (w.Format)
        {
            case WeightFormat.F32: NaturalFourByTwo<F32Format>(place, x, stride, second, sums); break;
            case WeightFormat.BF16: NaturalFourByTwo<BF16Format>(place, x, stride, second, sums); break;
            case WeightFormat.F16: NaturalFourByTwo<F16Format>(place, x, stride, second, sums); break;
            case WeightFormat.Fp8: Fp8FourByTwo<WideScales>(place, w, start, vector / 8, x, stride, second, sums); break;
            case WeightFormat.Fp8Narrow: Fp8FourByTwo<NarrowScales>(place, w, start, vector, x, stride, second, sums); break;
            default: Fp4FourByTwo(place, w.RowScaleCodes(start) + vector / 2, w.ScaleStride, x, stride, second, sums); break;
        }
    }

    /// <summary>A piece of K of a block of rows.</summary>
    /// <param name="data">First row.</param>
    /// <param name="vectors">Vectors of the piece.</param>
    /// <param name="first">Whether it is the first piece: there are no sums yet.</param>
    /// <param name="ahead">Where to fetch, in bytes from what is multiplied; 0 for nowhere.</param>
    private readonly struct Place(byte* data, long rowBytes, int rows, int vectors, bool first, nint ahead)
    {
        public readonly byte* Data = data;
        public readonly long RowBytes = rowBytes;
        public readonly int Rows = rows, Vectors = vectors;
        public readonly bool First = first;
        public readonly nint Ahead = ahead;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public byte* Row(int r) => Data + Math.Min(r, Rows - 1) * RowBytes;
    }

    /// <summary>The scales of FP8 chains: how many halves of 64 columns a chain has, and how many floats its scale.</summary>
    private interface IScales
    {
        static abstract int Halves { get; }
        static abstract int Floats { get; }
        static abstract Vector512<float> Load(float* scales);
    }

    private readonly struct WideScales : IScales
    {
        public static int Halves => 2;
        public static int Floats => 1;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Load(float* scales) => Vector512.Create(*scales);
    }

    private readonly struct NarrowScales : IScales
    {
        public static int Halves => 1;
        public static int Floats => 4;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public static Vector512<float> Load(float* scales) => WeightDecoders.Quarters(scales);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fma(Vector512<float> a, Vector512<float> b, Vector512<float> c) => Vector512.FusedMultiplyAdd(a, b, c);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* address)
    {
        if (Sse.IsSupported) Sse.Prefetch1(address);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Start(float* sums, bool first) => first ? Vector512<float>.Zero : Vector512.Load(sums);

    /// <summary>A vector of two rows meets four tokens.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step(
        Vector512<float> w0, Vector512<float> w1, float* x, int last,
        ref Vector512<float> a0, ref Vector512<float> a1, ref Vector512<float> a2, ref Vector512<float> a3,
        ref Vector512<float> b0, ref Vector512<float> b1, ref Vector512<float> b2, ref Vector512<float> b3)
    {
        var t = Vector512.Load(x);
        a0 = Fma(w0, t, a0);
        b0 = Fma(w1, t, b0);
        t = Vector512.Load(x + 16);
        a1 = Fma(w0, t, a1);
        b1 = Fma(w1, t, b1);
        t = Vector512.Load(x + 32);
        a2 = Fma(w0, t, a2);
        b2 = Fma(w1, t, b2);
        t = Vector512.Load(x + last);
        a3 = Fma(w0, t, a3);
        b3 = Fma(w1, t, b3);
    }

    /// <summary>A vector of four rows meets two tokens.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Step4(
        Vector512<float> w0, Vector512<float> w1, Vector512<float> w2, Vector512<float> w3, float* x, int second,
        ref Vector512<float> a0, ref Vector512<float> a1, ref Vector512<float> b0, ref Vector512<float> b1,
        ref Vector512<float> c0, ref Vector512<float> c1, ref Vector512<float> d0, ref Vector512<float> d1)
    {
        Vector512<float> t = Vector512.Load(x), u = Vector512.Load(x + second);
        a0 = Fma(w0, t, a0);
        a1 = Fma(w0, u, a1);
        b0 = Fma(w1, t, b0);
        b1 = Fma(w1, u, b1);
        c0 = Fma(w2, t, c0);
        c1 = Fma(w2, u, c1);
        d0 = Fma(w3, t, d0);
        d1 = Fma(w3, u, d1);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void NaturalTwoByFour<TFormat>(in Place place, float* x, int stride, int last, float* sums) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 2, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1);
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 8)
            {
                var count = Math.Min(v, 8);
                for (var line = 0; ahead != 0 && line < 16 * size * count; line += 64)
                {
                    Prefetch(w0 + ahead + line);
                    Prefetch(w1 + ahead + line);
                }
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
                for (var j = count; j > 0; j--, a += stride)
                {
                    Step(TFormat.Load(w0), TFormat.Load(w1), a, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                    w0 += 16 * size;
                    w1 += 16 * size;
                }
                s0 += a0;
                s1 += a1;
                s2 += a2;
                s3 += a3;
                s4 += b0;
                s5 += b1;
                s6 += b2;
                s7 += b3;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8TwoByFour<TScales>(in Place place, in WeightView weight, int start, int firstScale, float* x, int stride, int last, float* sums) where TScales : struct, IScales
    {
        var tables = new WeightDecoders.Fp8Tables();
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 2, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1);
            float* f0 = weight.RowScales(start + r) + firstScale, f1 = weight.RowScales(start + Math.Min(r + 1, place.Rows - 1)) + firstScale;
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 4 * TScales.Halves)
            {
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
                for (var half = 0; half < TScales.Halves; half++, a += 4 * stride)
                {
                    if (ahead != 0)
                    {
                        Prefetch(w0 + ahead);
                        Prefetch(w1 + ahead);
                    }
                    WeightDecoders.Fp8(w0, tables, out var u0, out var u1, out var u2, out var u3);
                    WeightDecoders.Fp8(w1, tables, out var v0, out var v1, out var v2, out var v3);
                    Step(u0, v0, a, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                    Step(u1, v1, a + stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                    Step(u2, v2, a + 2 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                    Step(u3, v3, a + 3 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                    w0 += 64;
                    w1 += 64;
                }
                Vector512<float> scale0 = TScales.Load(f0), scale1 = TScales.Load(f1);
                s0 = Fma(a0, scale0, s0);
                s1 = Fma(a1, scale0, s1);
                s2 = Fma(a2, scale0, s2);
                s3 = Fma(a3, scale0, s3);
                s4 = Fma(b0, scale1, s4);
                s5 = Fma(b1, scale1, s5);
                s6 = Fma(b2, scale1, s6);
                s7 = Fma(b3, scale1, s7);
                f0 += TScales.Floats;
                f1 += TScales.Floats;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4TwoByFour(in Place place, byte* codes, int codeStride, float* x, int stride, int last, float* sums)
    {
        var table = WeightDecoders.Fp4Table;
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 2, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1);
            byte* g0 = codes + r * (long)codeStride, g1 = codes + Math.Min(r + 1, place.Rows - 1) * (long)codeStride;
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 8, a += 8 * stride)
            {
                if (ahead != 0)
                {
                    Prefetch(w0 + ahead);
                    Prefetch(w1 + ahead);
                }
                Vector512<uint> e0 = Vector512.Load((uint*)w0), e1 = Vector512.Load((uint*)w1);
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
                Step(WeightDecoders.Fp4(table, e0), WeightDecoders.Fp4(table, e1), a, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 4), WeightDecoders.Fp4(table, e1 >>> 4), a + stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 8), WeightDecoders.Fp4(table, e1 >>> 8), a + 2 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 12), WeightDecoders.Fp4(table, e1 >>> 12), a + 3 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 16), WeightDecoders.Fp4(table, e1 >>> 16), a + 4 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 20), WeightDecoders.Fp4(table, e1 >>> 20), a + 5 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 24), WeightDecoders.Fp4(table, e1 >>> 24), a + 6 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(WeightDecoders.Fp4(table, e0 >>> 28), WeightDecoders.Fp4(table, e1 >>> 28), a + 7 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Vector512<float> scale0 = WeightDecoders.Fp4Scales(g0), scale1 = WeightDecoders.Fp4Scales(g1);
                s0 = Fma(a0, scale0, s0);
                s1 = Fma(a1, scale0, s1);
                s2 = Fma(a2, scale0, s2);
                s3 = Fma(a3, scale0, s3);
                s4 = Fma(b0, scale1, s4);
                s5 = Fma(b1, scale1, s5);
                s6 = Fma(b2, scale1, s6);
                s7 = Fma(b3, scale1, s7);
                w0 += 64;
                w1 += 64;
                g0 += 4;
                g1 += 4;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void NaturalFourByTwo<TFormat>(in Place place, float* x, int stride, int second, float* sums) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 4, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1), w2 = place.Row(r + 2), w3 = place.Row(r + 3);
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 8)
            {
                var count = Math.Min(v, 8);
                for (var line = 0; ahead != 0 && line < 16 * size * count; line += 64)
                {
                    Prefetch(w0 + ahead + line);
                    Prefetch(w1 + ahead + line);
                    Prefetch(w2 + ahead + line);
                    Prefetch(w3 + ahead + line);
                }
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
                for (var j = count; j > 0; j--, a += stride)
                {
                    Step4(TFormat.Load(w0), TFormat.Load(w1), TFormat.Load(w2), TFormat.Load(w3), a, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                    w0 += 16 * size;
                    w1 += 16 * size;
                    w2 += 16 * size;
                    w3 += 16 * size;
                }
                s0 += a0;
                s1 += a1;
                s2 += b0;
                s3 += b1;
                s4 += c0;
                s5 += c1;
                s6 += d0;
                s7 += d1;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8FourByTwo<TScales>(in Place place, in WeightView weight, int start, int firstScale, float* x, int stride, int second, float* sums) where TScales : struct, IScales
    {
        var tables = new WeightDecoders.Fp8Tables();
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 4, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1), w2 = place.Row(r + 2), w3 = place.Row(r + 3);
            float* f0 = weight.RowScales(start + r) + firstScale, f1 = weight.RowScales(start + Math.Min(r + 1, place.Rows - 1)) + firstScale, f2 = weight.RowScales(start + Math.Min(r + 2, place.Rows - 1)) + firstScale, f3 = weight.RowScales(start + Math.Min(r + 3, place.Rows - 1)) + firstScale;
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 4 * TScales.Halves)
            {
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
                for (var half = 0; half < TScales.Halves; half++, a += 4 * stride)
                {
                    if (ahead != 0)
                    {
                        Prefetch(w0 + ahead);
                        Prefetch(w1 + ahead);
                        Prefetch(w2 + ahead);
                        Prefetch(w3 + ahead);
                    }
                    WeightDecoders.Fp8(w0, tables, out var u0, out var u1, out var u2, out var u3);
                    WeightDecoders.Fp8(w1, tables, out var v0, out var v1, out var v2, out var v3);
                    WeightDecoders.Fp8(w2, tables, out var y0, out var y1, out var y2, out var y3);
                    WeightDecoders.Fp8(w3, tables, out var z0, out var z1, out var z2, out var z3);
                    Step4(u0, v0, y0, z0, a, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                    Step4(u1, v1, y1, z1, a + stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                    Step4(u2, v2, y2, z2, a + 2 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                    Step4(u3, v3, y3, z3, a + 3 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                    w0 += 64;
                    w1 += 64;
                    w2 += 64;
                    w3 += 64;
                }
                Vector512<float> scale0 = TScales.Load(f0), scale1 = TScales.Load(f1), scale2 = TScales.Load(f2), scale3 = TScales.Load(f3);
                s0 = Fma(a0, scale0, s0);
                s1 = Fma(a1, scale0, s1);
                s2 = Fma(b0, scale1, s2);
                s3 = Fma(b1, scale1, s3);
                s4 = Fma(c0, scale2, s4);
                s5 = Fma(c1, scale2, s5);
                s6 = Fma(d0, scale3, s6);
                s7 = Fma(d1, scale3, s7);
                f0 += TScales.Floats;
                f1 += TScales.Floats;
                f2 += TScales.Floats;
                f3 += TScales.Floats;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4FourByTwo(in Place place, byte* codes, int codeStride, float* x, int stride, int second, float* sums)
    {
        var table = WeightDecoders.Fp4Table;
        var ahead = place.Ahead;
        for (var r = 0; r < place.Rows; r += 4, sums += 8 * 16)
        {
            byte* w0 = place.Row(r), w1 = place.Row(r + 1), w2 = place.Row(r + 2), w3 = place.Row(r + 3);
            byte* g0 = codes + r * (long)codeStride, g1 = codes + Math.Min(r + 1, place.Rows - 1) * (long)codeStride, g2 = codes + Math.Min(r + 2, place.Rows - 1) * (long)codeStride, g3 = codes + Math.Min(r + 3, place.Rows - 1) * (long)codeStride;
            Vector512<float> s0 = Start(sums, place.First), s1 = Start(sums + 16, place.First), s2 = Start(sums + 32, place.First), s3 = Start(sums + 48, place.First);
            Vector512<float> s4 = Start(sums + 64, place.First), s5 = Start(sums + 80, place.First), s6 = Start(sums + 96, place.First), s7 = Start(sums + 112, place.First);
            var a = x;
            for (var v = place.Vectors; v > 0; v -= 8, a += 8 * stride)
            {
                if (ahead != 0)
                {
                    Prefetch(w0 + ahead);
                    Prefetch(w1 + ahead);
                    Prefetch(w2 + ahead);
                    Prefetch(w3 + ahead);
                }
                Vector512<uint> e0 = Vector512.Load((uint*)w0), e1 = Vector512.Load((uint*)w1), e2 = Vector512.Load((uint*)w2), e3 = Vector512.Load((uint*)w3);
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
                Step4(WeightDecoders.Fp4(table, e0), WeightDecoders.Fp4(table, e1), WeightDecoders.Fp4(table, e2), WeightDecoders.Fp4(table, e3), a, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 4), WeightDecoders.Fp4(table, e1 >>> 4), WeightDecoders.Fp4(table, e2 >>> 4), WeightDecoders.Fp4(table, e3 >>> 4), a + stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 8), WeightDecoders.Fp4(table, e1 >>> 8), WeightDecoders.Fp4(table, e2 >>> 8), WeightDecoders.Fp4(table, e3 >>> 8), a + 2 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 12), WeightDecoders.Fp4(table, e1 >>> 12), WeightDecoders.Fp4(table, e2 >>> 12), WeightDecoders.Fp4(table, e3 >>> 12), a + 3 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 16), WeightDecoders.Fp4(table, e1 >>> 16), WeightDecoders.Fp4(table, e2 >>> 16), WeightDecoders.Fp4(table, e3 >>> 16), a + 4 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 20), WeightDecoders.Fp4(table, e1 >>> 20), WeightDecoders.Fp4(table, e2 >>> 20), WeightDecoders.Fp4(table, e3 >>> 20), a + 5 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 24), WeightDecoders.Fp4(table, e1 >>> 24), WeightDecoders.Fp4(table, e2 >>> 24), WeightDecoders.Fp4(table, e3 >>> 24), a + 6 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(WeightDecoders.Fp4(table, e0 >>> 28), WeightDecoders.Fp4(table, e1 >>> 28), WeightDecoders.Fp4(table, e2 >>> 28), WeightDecoders.Fp4(table, e3 >>> 28), a + 7 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Vector512<float> scale0 = WeightDecoders.Fp4Scales(g0), scale1 = WeightDecoders.Fp4Scales(g1), scale2 = WeightDecoders.Fp4Scales(g2), scale3 = WeightDecoders.Fp4Scales(g3);
                s0 = Fma(a0, scale0, s0);
                s1 = Fma(a1, scale0, s1);
                s2 = Fma(b0, scale1, s2);
                s3 = Fma(b1, scale1, s3);
                s4 = Fma(c0, scale2, s4);
                s5 = Fma(c1, scale2, s5);
                s6 = Fma(d0, scale3, s6);
                s7 = Fma(d1, scale3, s7);
                w0 += 64;
                w1 += 64;
                w2 += 64;
                w3 += 64;
                g0 += 4;
                g1 += 4;
                g2 += 4;
                g3 += 4;
            }
            s0.Store(sums);
            s1.Store(sums + 16);
            s2.Store(sums + 32);
            s3.Store(sums + 48);
            s4.Store(sums + 64);
            s5.Store(sums + 80);
            s6.Store(sums + 96);
            s7.Store(sums + 112);
        }
    }
}

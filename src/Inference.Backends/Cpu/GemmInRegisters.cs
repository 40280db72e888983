// Weight matrix times several vectors, without a panel: weights are decoded in registers, two rows at a time for four tokens, or four rows for two.
// Decoding again for every four tokens costs less than storing a panel and loading it, where a processor has units to spare beside its FMAs
// (measured on Zen 4: benchmarks/LOG.md).
//
// Order of the sum: that of MatVec. A piece of K (PieceChains) of a group of tokens stays in the first-level cache while the rows of a block pass by;
// between pieces the sums wait in memory, sixteen lanes each. Only where a vector is one register, and for weights whose columns are whole chains
// and whose FP4 scales are plain exponents (Covers); Gemm's panels do the others, with the same bits.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class GemmInRegisters
{
    private const int PieceChains = 8; // 1024 columns: four tokens take 16 KB

    /// <summary>Floats of scratch for a block of rows.</summary>
    public static long ScratchFloats(int tokens) => (tokens + 3L) / 4 * 4 * (Gemm.Block + 3) * 16;

    /// <summary>Whether this kernel does these rows.</summary>
    public static bool Covers(in WeightView w, int start, int end)
    {
        if (!Vector512.IsHardwareAccelerated || w.Columns % 128 != 0) return false;
        return w.Format switch
        {
            WeightFormat.F32 or WeightFormat.BF16 or WeightFormat.F16 or WeightFormat.Fp8 => true,
            WeightFormat.Fp4 => w.TileRows == 1 && !WeightDecoders.AnySpecialScale(w.RowScaleCodes(start), (end - start) * w.ScaleStride),
            _ => false,
        };
    }

    /// <summary>At most <see cref="Gemm.Block"/> rows of every y[t].</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Rows(in WeightView w, int start, int end, in PackedBatch x, float** y, float* scratch)
    {
        var chains = w.Columns / 128;
        for (var chain = 0; chain < chains; chain += PieceChains)
        {
            var piece = Math.Min(PieceChains, chains - chain);
            for (var group = 0; group * PackedBatch.GroupTokens < x.Tokens; group++)
            {
                var width = x.WidthOf(group);
                var activations = x.Group(group) + (long)chain * 128 * width;
                var sums = scratch + (long)group * 4 * (Gemm.Block + 3) * 16;
                if (chain == 0) new Span<float>(sums, 4 * (Gemm.Block + 3) * 16).Clear();
                // The first group to meet a piece of the weights fetches what follows it: the next piece, or the next block of rows.
                var ahead = group > 0 ? 0 : chain + piece < chains ? w.BytesOf(piece * 8) : Gemm.Block * w.RowBytes - w.BytesOf(chain * 8);
                var step = width <= 2 ? 4 : 2;
                for (var n = start; n < end; n += step)
                    Multiply(w, n, end, chain, piece, activations, width, sums + (n - start) * (8 / step) * 16, (nint)ahead);
            }
        }
        for (var t = 0; t < x.Tokens; t++)
        {
            int group = t / PackedBatch.GroupTokens, place = t % PackedBatch.GroupTokens, lines = x.WidthOf(group) <= 2 ? 2 : 4;
            var sums = scratch + ((long)group * 4 * (Gemm.Block + 3) + place) * 16;
            for (var n = start; n < end; n++, sums += lines * 16)
                y[t][n] = Lanes.Sum(Vector512.Load(sums));
        }
    }

    /// <summary>Some rows from <paramref name="n"/> on (those behind the end repeat the last) times a group of tokens (a missing one repeats the first).</summary>
    private static void Multiply(in WeightView w, int n, int end, int chain, int piece, float* x, int width, float* sums, nint ahead)
    {
        int n1 = Math.Min(n + 1, end - 1), stride = width * 16;
        byte* w0 = w.Vector(n, chain * 8), w1 = w.Vector(n1, chain * 8);
        if (width > 2)
        {
            var last = width == 4 ? 48 : 0;
            switch (w.Format)
            {
                case WeightFormat.F32: NaturalTwoByFour<F32Format>(w0, w1, x, stride, last, piece, sums, ahead); break;
                case WeightFormat.BF16: NaturalTwoByFour<BF16Format>(w0, w1, x, stride, last, piece, sums, ahead); break;
                case WeightFormat.F16: NaturalTwoByFour<F16Format>(w0, w1, x, stride, last, piece, sums, ahead); break;
                case WeightFormat.Fp8: Fp8TwoByFour(w0, w1, w.RowScales(n) + chain, w.RowScales(n1) + chain, x, stride, last, piece, sums, ahead); break;
                default: Fp4TwoByFour(w0, w1, w.RowScaleCodes(n) + chain * 4, w.RowScaleCodes(n1) + chain * 4, x, stride, last, piece, sums, ahead); break;
            }
            return;
        }
        int n2 = Math.Min(n + 2, end - 1), n3 = Math.Min(n + 3, end - 1), second = width == 2 ? 16 : 0;
        byte* w2 = w.Vector(n2, chain * 8), w3 = w.Vector(n3, chain * 8);
        switch (w.Format)
        {
            case WeightFormat.F32: NaturalFourByTwo<F32Format>(w0, w1, w2, w3, x, stride, second, piece, sums, ahead); break;
            case WeightFormat.BF16: NaturalFourByTwo<BF16Format>(w0, w1, w2, w3, x, stride, second, piece, sums, ahead); break;
            case WeightFormat.F16: NaturalFourByTwo<F16Format>(w0, w1, w2, w3, x, stride, second, piece, sums, ahead); break;
            case WeightFormat.Fp8:
                Fp8FourByTwo(w0, w1, w2, w3, w.RowScales(n) + chain, w.RowScales(n1) + chain, w.RowScales(n2) + chain, w.RowScales(n3) + chain, x, stride, second, piece, sums, ahead);
                break;
            default:
                Fp4FourByTwo(w0, w1, w2, w3, w.RowScaleCodes(n) + chain * 4, w.RowScaleCodes(n1) + chain * 4, w.RowScaleCodes(n2) + chain * 4, w.RowScaleCodes(n3) + chain * 4, x, stride, second, piece, sums, ahead);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fma(Vector512<float> a, Vector512<float> b, Vector512<float> c) => Vector512.FusedMultiplyAdd(a, b, c);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* address)
    {
        if (Sse.IsSupported) Sse.Prefetch1(address);
    }

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
    private static void NaturalTwoByFour<TFormat>(byte* w0, byte* w1, float* x, int stride, int last, int chains, float* sums, nint ahead) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
        {
            for (var line = 0; ahead != 0 && line < 128 * size; line += 64)
            {
                Prefetch(w0 + ahead + line);
                Prefetch(w1 + ahead + line);
            }
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (var j = 0; j < 8; j++, x += stride)
            {
                Step(TFormat.Load(w0), TFormat.Load(w1), x, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
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
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8TwoByFour(byte* w0, byte* w1, float* f0, float* f1, float* x, int stride, int last, int chains, float* sums, nint ahead)
    {
        var tables = new WeightDecoders.Fp8Tables();
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
        {
            if (ahead != 0)
            {
                Prefetch(w0 + ahead);
                Prefetch(w0 + ahead + 64);
                Prefetch(w1 + ahead);
                Prefetch(w1 + ahead + 64);
            }
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (var half = 0; half < 2; half++, x += 4 * stride)
            {
                WeightDecoders.Fp8(w0, tables, out var u0, out var u1, out var u2, out var u3);
                WeightDecoders.Fp8(w1, tables, out var v0, out var v1, out var v2, out var v3);
                Step(u0, v0, x, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(u1, v1, x + stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(u2, v2, x + 2 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                Step(u3, v3, x + 3 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
                w0 += 64;
                w1 += 64;
            }
            Vector512<float> scale0 = Vector512.Create(f0[chain]), scale1 = Vector512.Create(f1[chain]);
            s0 = Fma(a0, scale0, s0);
            s1 = Fma(a1, scale0, s1);
            s2 = Fma(a2, scale0, s2);
            s3 = Fma(a3, scale0, s3);
            s4 = Fma(b0, scale1, s4);
            s5 = Fma(b1, scale1, s5);
            s6 = Fma(b2, scale1, s6);
            s7 = Fma(b3, scale1, s7);
        }
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4TwoByFour(byte* w0, byte* w1, byte* c0, byte* c1, float* x, int stride, int last, int chains, float* sums, nint ahead)
    {
        var table = WeightDecoders.Fp4Table;
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
        {
            if (ahead != 0)
            {
                Prefetch(w0 + ahead);
                Prefetch(w1 + ahead);
            }
            Vector512<uint> e0 = Vector512.Load((uint*)w0), e1 = Vector512.Load((uint*)w1);
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            Step(WeightDecoders.Fp4(table, e0), WeightDecoders.Fp4(table, e1), x, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 4), WeightDecoders.Fp4(table, e1 >>> 4), x + stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 8), WeightDecoders.Fp4(table, e1 >>> 8), x + 2 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 12), WeightDecoders.Fp4(table, e1 >>> 12), x + 3 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 16), WeightDecoders.Fp4(table, e1 >>> 16), x + 4 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 20), WeightDecoders.Fp4(table, e1 >>> 20), x + 5 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 24), WeightDecoders.Fp4(table, e1 >>> 24), x + 6 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Step(WeightDecoders.Fp4(table, e0 >>> 28), WeightDecoders.Fp4(table, e1 >>> 28), x + 7 * stride, last, ref a0, ref a1, ref a2, ref a3, ref b0, ref b1, ref b2, ref b3);
            Vector512<float> scale0 = WeightDecoders.Fp4Scales(c0), scale1 = WeightDecoders.Fp4Scales(c1);
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
            c0 += 4;
            c1 += 4;
            x += 8 * stride;
        }
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void NaturalFourByTwo<TFormat>(byte* w0, byte* w1, byte* w2, byte* w3, float* x, int stride, int second, int chains, float* sums, nint ahead) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
        {
            for (var line = 0; ahead != 0 && line < 128 * size; line += 64)
            {
                Prefetch(w0 + ahead + line);
                Prefetch(w1 + ahead + line);
                Prefetch(w2 + ahead + line);
                Prefetch(w3 + ahead + line);
            }
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
            for (var j = 0; j < 8; j++, x += stride)
            {
                Step4(TFormat.Load(w0), TFormat.Load(w1), TFormat.Load(w2), TFormat.Load(w3), x, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
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
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8FourByTwo(byte* w0, byte* w1, byte* w2, byte* w3, float* f0, float* f1, float* f2, float* f3, float* x, int stride, int second, int chains, float* sums, nint ahead)
    {
        var tables = new WeightDecoders.Fp8Tables();
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
        {
            if (ahead != 0)
            {
                Prefetch(w0 + ahead);
                Prefetch(w0 + ahead + 64);
                Prefetch(w1 + ahead);
                Prefetch(w1 + ahead + 64);
                Prefetch(w2 + ahead);
                Prefetch(w2 + ahead + 64);
                Prefetch(w3 + ahead);
                Prefetch(w3 + ahead + 64);
            }
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
            for (var half = 0; half < 2; half++, x += 4 * stride)
            {
                WeightDecoders.Fp8(w0, tables, out var u0, out var u1, out var u2, out var u3);
                WeightDecoders.Fp8(w1, tables, out var v0, out var v1, out var v2, out var v3);
                WeightDecoders.Fp8(w2, tables, out var y0, out var y1, out var y2, out var y3);
                WeightDecoders.Fp8(w3, tables, out var z0, out var z1, out var z2, out var z3);
                Step4(u0, v0, y0, z0, x, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(u1, v1, y1, z1, x + stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(u2, v2, y2, z2, x + 2 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                Step4(u3, v3, y3, z3, x + 3 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
                w0 += 64;
                w1 += 64;
                w2 += 64;
                w3 += 64;
            }
            Vector512<float> scale0 = Vector512.Create(f0[chain]), scale1 = Vector512.Create(f1[chain]), scale2 = Vector512.Create(f2[chain]), scale3 = Vector512.Create(f3[chain]);
            s0 = Fma(a0, scale0, s0);
            s1 = Fma(a1, scale0, s1);
            s2 = Fma(b0, scale1, s2);
            s3 = Fma(b1, scale1, s3);
            s4 = Fma(c0, scale2, s4);
            s5 = Fma(c1, scale2, s5);
            s6 = Fma(d0, scale3, s6);
            s7 = Fma(d1, scale3, s7);
        }
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4FourByTwo(byte* w0, byte* w1, byte* w2, byte* w3, byte* g0, byte* g1, byte* g2, byte* g3, float* x, int stride, int second, int chains, float* sums, nint ahead)
    {
        var table = WeightDecoders.Fp4Table;
        Vector512<float> s0 = Vector512.Load(sums + 0), s1 = Vector512.Load(sums + 16), s2 = Vector512.Load(sums + 32), s3 = Vector512.Load(sums + 48);
        Vector512<float> s4 = Vector512.Load(sums + 64), s5 = Vector512.Load(sums + 80), s6 = Vector512.Load(sums + 96), s7 = Vector512.Load(sums + 112);
        for (var chain = 0; chain < chains; chain++)
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
            Step4(WeightDecoders.Fp4(table, e0), WeightDecoders.Fp4(table, e1), WeightDecoders.Fp4(table, e2), WeightDecoders.Fp4(table, e3), x, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 4), WeightDecoders.Fp4(table, e1 >>> 4), WeightDecoders.Fp4(table, e2 >>> 4), WeightDecoders.Fp4(table, e3 >>> 4), x + stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 8), WeightDecoders.Fp4(table, e1 >>> 8), WeightDecoders.Fp4(table, e2 >>> 8), WeightDecoders.Fp4(table, e3 >>> 8), x + 2 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 12), WeightDecoders.Fp4(table, e1 >>> 12), WeightDecoders.Fp4(table, e2 >>> 12), WeightDecoders.Fp4(table, e3 >>> 12), x + 3 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 16), WeightDecoders.Fp4(table, e1 >>> 16), WeightDecoders.Fp4(table, e2 >>> 16), WeightDecoders.Fp4(table, e3 >>> 16), x + 4 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 20), WeightDecoders.Fp4(table, e1 >>> 20), WeightDecoders.Fp4(table, e2 >>> 20), WeightDecoders.Fp4(table, e3 >>> 20), x + 5 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 24), WeightDecoders.Fp4(table, e1 >>> 24), WeightDecoders.Fp4(table, e2 >>> 24), WeightDecoders.Fp4(table, e3 >>> 24), x + 6 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
            Step4(WeightDecoders.Fp4(table, e0 >>> 28), WeightDecoders.Fp4(table, e1 >>> 28), WeightDecoders.Fp4(table, e2 >>> 28), WeightDecoders.Fp4(table, e3 >>> 28), x + 7 * stride, second, ref a0, ref a1, ref b0, ref b1, ref c0, ref c1, ref d0, ref d1);
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
            x += 8 * stride;
        }
        s0.Store(sums + 0);
        s1.Store(sums + 16);
        s2.Store(sums + 32);
        s3.Store(sums + 48);
        s4.Store(sums + 64);
        s5.Store(sums + 80);
        s6.Store(sums + 96);
        s7.Store(sums + 112);
    }
}

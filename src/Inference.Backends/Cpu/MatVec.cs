// Weight matrix times one vector: y[n] = sum over k of W[n, k] x[k], the kernel of decoding. Bound by memory: a weight is read once, decoded in
// registers and used once.
//
// Order of the sum (that of Gemm too, so that a token's bits do not depend on the company it is computed in):
//   columns in the format's order (WeightDecoders), sixteen lanes; chain: p = fma(w_j, x_j, p) over 8 vectors (4 for narrow FP8 tiles) from p = 0;
//   row: acc = fma(p, scale, acc) over the chains from acc = 0 (scale is 1 for unscaled formats); then Lanes.Sum(acc).
// Variants: natural formats, FP8, FP4. Software prefetch far ahead is what fills the memory pipe; rows of a worker lie one behind the other,
// so reading ahead past a row's end is the next row.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class MatVec
{
    private const int PrefetchBytes = 8192;

    /// <summary>Rows <paramref name="start"/> .. <paramref name="end"/> - 1 of y. <paramref name="x"/> is packed for the weight.</summary>
    public static void Rows(in WeightView w, int start, int end, float* x, float* y)
    {
        switch (w.Format)
        {
            case WeightFormat.F32: Natural<F32Format>(w, start, end, x, y); break;
            case WeightFormat.BF16: Natural<BF16Format>(w, start, end, x, y); break;
            case WeightFormat.F16: Natural<F16Format>(w, start, end, x, y); break;
            case WeightFormat.Fp8: Fp8(w, start, end, x, y); break;
            case WeightFormat.Fp8Narrow: Fp8Narrow(w, start, end, x, y); break;
            case WeightFormat.Fp4: Fp4(w, start, end, x, y); break;
            default: throw new InvalidOperationException($"{w.Format} has no kernel");
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fma(Vector512<float> a, Vector512<float> b, Vector512<float> c) => Vector512.FusedMultiplyAdd(a, b, c);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* address)
    {
        if (Sse.IsSupported) Sse.Prefetch0(address + PrefetchBytes);
    }

    private static void Natural<TFormat>(in WeightView w, int start, int end, float* x, float* y) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        int vectors = w.Columns / 16, rest = w.Columns % 16, chains = vectors / 8;
        for (var n = start; n < end; n++)
        {
            var row = w.Row(n);
            var acc = Vector512<float>.Zero;
            var a = x;
            for (var chain = 0; chain < chains; chain++, row += 128 * size, a += 128)
            {
                Prefetch(row);
                Prefetch(row + 64);
                Prefetch(row + 128);
                Prefetch(row + 192);
                if (size == 4)
                {
                    Prefetch(row + 256);
                    Prefetch(row + 320);
                    Prefetch(row + 384);
                    Prefetch(row + 448);
                }
                var p = Fma(TFormat.Load(row), Vector512.Load(a), Vector512<float>.Zero);
                p = Fma(TFormat.Load(row + 16 * size), Vector512.Load(a + 16), p);
                p = Fma(TFormat.Load(row + 32 * size), Vector512.Load(a + 32), p);
                p = Fma(TFormat.Load(row + 48 * size), Vector512.Load(a + 48), p);
                p = Fma(TFormat.Load(row + 64 * size), Vector512.Load(a + 64), p);
                p = Fma(TFormat.Load(row + 80 * size), Vector512.Load(a + 80), p);
                p = Fma(TFormat.Load(row + 96 * size), Vector512.Load(a + 96), p);
                p = Fma(TFormat.Load(row + 112 * size), Vector512.Load(a + 112), p);
                acc += p;
            }
            if (vectors % 8 != 0 || rest != 0)
            {
                var p = Vector512<float>.Zero;
                for (var j = chains * 8; j < vectors; j++, row += 16 * size, a += 16)
                    p = Fma(TFormat.Load(row), Vector512.Load(a), p);
                if (rest != 0) p = Fma(LoadTail<TFormat>(row, rest), Vector512.Load(a), p);
                acc += p;
            }
            y[n] = Lanes.Sum(acc);
        }
    }

    /// <summary>The last elements of a row, the other lanes zero.</summary>
    public static Vector512<float> LoadTail<TFormat>(byte* elements, int count) where TFormat : struct, INaturalFormat
    {
        var copy = stackalloc byte[64];
        Vector512<byte>.Zero.Store(copy);
        Unsafe.CopyBlockUnaligned(copy, elements, (uint)(count * TFormat.BytesPerElement));
        return TFormat.Load(copy);
    }

    private static void Fp8(in WeightView w, int start, int end, float* x, float* y)
    {
        var tables = new WeightDecoders.Fp8Tables();
        int chains = w.Columns / 128, rest = w.Columns % 128;
        var tail = stackalloc byte[128];
        for (var n = start; n < end; n++)
        {
            var row = w.Row(n);
            var scales = w.RowScales(n);
            var acc = Vector512<float>.Zero;
            var a = x;
            for (var chain = 0; chain < chains; chain++, row += 128, a += 128)
            {
                Prefetch(row);
                Prefetch(row + 64);
                var p = Fp8Half(Fp8Half(Vector512<float>.Zero, row, tables, a), row + 64, tables, a + 64);
                acc = Fma(p, Vector512.Create(scales[chain]), acc);
            }
            if (rest != 0)
            {
                CopyTail(row, rest, tail, 128);
                var p = Fp8Half(Vector512<float>.Zero, tail, tables, a);
                if (rest > 64) p = Fp8Half(p, tail + 64, tables, a + 64);
                acc = Fma(p, Vector512.Create(scales[chains]), acc);
            }
            y[n] = Lanes.Sum(acc);
        }
    }

    private static void Fp8Narrow(in WeightView w, int start, int end, float* x, float* y)
    {
        var tables = new WeightDecoders.Fp8Tables();
        int chains = w.Columns / 64, rest = w.Columns % 64;
        var tail = stackalloc byte[64];
        for (var n = start; n < end; n++)
        {
            var row = w.Row(n);
            var scales = w.RowScales(n);
            var acc = Vector512<float>.Zero;
            var a = x;
            for (var chain = 0; chain < chains; chain++, row += 64, a += 64, scales += 4)
            {
                Prefetch(row);
                acc = Fma(Fp8Half(Vector512<float>.Zero, row, tables, a), WeightDecoders.Quarters(scales), acc);
            }
            if (rest != 0)
            {
                CopyTail(row, rest, tail, 64);
                acc = Fma(Fp8Half(Vector512<float>.Zero, tail, tables, a), WeightDecoders.Quarters(scales), acc);
            }
            y[n] = Lanes.Sum(acc);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fp8Half(Vector512<float> p, byte* codes, in WeightDecoders.Fp8Tables tables, float* a)
    {
        WeightDecoders.Fp8(codes, tables, out var v0, out var v1, out var v2, out var v3);
        p = Fma(v0, Vector512.Load(a), p);
        p = Fma(v1, Vector512.Load(a + 16), p);
        p = Fma(v2, Vector512.Load(a + 32), p);
        return Fma(v3, Vector512.Load(a + 48), p);
    }

    private static void CopyTail(byte* source, int bytes, byte* tail, int size)
    {
        new Span<byte>(tail, size).Clear();
        Unsafe.CopyBlockUnaligned(tail, source, (uint)bytes);
    }

    private static void Fp4(in WeightView w, int start, int end, float* x, float* y)
    {
        var table = WeightDecoders.Fp4Table;
        int chains = w.Columns / 128, rest = w.Columns % 128;
        var tail = stackalloc byte[64];
        for (var n = start; n < end; n++)
        {
            var row = w.Row(n);
            var codes = w.RowScaleCodes(n);
            var special = WeightDecoders.AnySpecialScale(codes, w.ScaleStride);
            var acc = Vector512<float>.Zero;
            var a = x;
            for (var chain = 0; chain < chains; chain++, row += 64, a += 128, codes += 4)
            {
                Prefetch(row);
                var scales = special ? WeightDecoders.AnyFp4Scales(codes, 4) : WeightDecoders.Fp4Scales(codes);
                acc = Fma(Fp4Chain(table, Vector512.Load((uint*)row), a), scales, acc);
            }
            if (rest != 0)
            {
                CopyTail(row, rest / 2, tail, 64);
                acc = Fma(Fp4Chain(table, Vector512.Load((uint*)tail), a), WeightDecoders.AnyFp4Scales(codes, (rest + 31) / 32), acc);
            }
            y[n] = Lanes.Sum(acc);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fp4Chain(Vector512<float> table, Vector512<uint> d, float* a)
    {
        var p = Fma(WeightDecoders.Fp4(table, d), Vector512.Load(a), Vector512<float>.Zero);
        p = Fma(WeightDecoders.Fp4(table, d >>> 4), Vector512.Load(a + 16), p);
        p = Fma(WeightDecoders.Fp4(table, d >>> 8), Vector512.Load(a + 32), p);
        p = Fma(WeightDecoders.Fp4(table, d >>> 12), Vector512.Load(a + 48), p);
        p = Fma(WeightDecoders.Fp4(table, d >>> 16), Vector512.Load(a + 64), p);
        p = Fma(WeightDecoders.Fp4(table, d >>> 20), Vector512.Load(a + 80), p);
        p = Fma(WeightDecoders.Fp4(table, d >>> 24), Vector512.Load(a + 96), p);
        return Fma(WeightDecoders.Fp4(table, d >>> 28), Vector512.Load(a + 112), p);
    }
}

// Weight matrix times one vector: y[n] = sum over k of W[n, k] x[k], the kernel of decoding. Bound by memory: a weight is read once, decoded in
// registers and used once.
//
// Order of the sum (that of Gemm too, so that a token's bits do not depend on the company it is computed in):
//   columns in the format's order (WeightDecoders), sixteen lanes; chain: p = fma(w_j, x_j, p) over 8 vectors (4 for narrow FP8 tiles) from p = 0;
//   row: acc = fma(p, scale, acc) over the chains from acc = 0 (scale is 1 for unscaled formats); then Lanes.Sum(acc).
// Rows are computed in bands of 4 (one row at the end), so that the activations are loaded once for four rows and chains overlap; a band does its
// full chains in a method without calls (a call would cost every vector register), the tail of a row comes after it.
// Prefetch goes to the second-level cache, a constant number of bytes before use: measured, that is worth a third of the speed (benchmarks/LOG.md).
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class MatVec
{
    private const int Band = 4;
    private const int BytesInFlight = 8192;

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
        if (Sse.IsSupported) Sse.Prefetch1(address);
    }

    /// <summary>
    /// How far ahead of a row's chain the prefetch goes: within the row, and for the chains from <see cref="Switch"/> on to the same row of a later
    /// band, so that <see cref="BytesInFlight"/> of the matrix are on their way however short its rows are. Zero for a matrix so small that all of its model
    /// is in the cache.
    /// </summary>
    private readonly struct Ahead
    {
        private const long SmallBytes = 64 << 10;

        public readonly nint InRow, NextBand;
        public readonly int Switch;

        public Ahead(long rowBytes, int chains, int chainBytes, int rows, long bytes)
        {
            if (bytes < SmallBytes) return;
            if (rows == 1)
            {
                InRow = NextBand = BytesInFlight; // rows follow each other
                return;
            }
            var lead = Math.Min(chains, BytesInFlight / rows / chainBytes);
            InRow = (nint)lead * chainBytes;
            NextBand = (nint)(InRow + (rows - 1) * rowBytes);
            Switch = chains - lead;
            var bandBytes = rows * rowBytes;
            if (lead == chains) NextBand += (nint)((Math.Max(BytesInFlight, bandBytes) + bandBytes - 1) / bandBytes * bandBytes - bandBytes);
        }
    }

    private static void Natural<TFormat>(in WeightView w, int start, int end, float* x, float* y) where TFormat : struct, INaturalFormat
    {
        int vectors = w.Columns / 16, rest = w.Columns % 16, chains = vectors / 8, chainBytes = 128 * TFormat.BytesPerElement, n = start;
        if (rest == 0)
        {
            var ahead = new Ahead(w.RowBytes, chains, chainBytes, Band, w.RowBytes * w.Rows);
            n += NaturalBands<TFormat>(w.Row(n), w.RowBytes, (end - start) / Band, x, chains, vectors % 8, ahead, y + n);
        }
        var alone = new Ahead(w.RowBytes, chains, chainBytes, 1, w.RowBytes * w.Rows);
        for (; n < end; n++)
        {
            var sum = NaturalRow<TFormat>(w.Row(n), x, chains, alone);
            if (vectors % 8 != 0 || rest != 0)
                sum += NaturalTail<TFormat>(w.Row(n) + (long)chains * chainBytes, x + chains * 128, vectors % 8, rest);
            y[n] = Lanes.Sum(sum);
        }
    }

    /// <summary>Bands of whole vectors, from their first chain to their results; returns the number of rows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static int NaturalBands<TFormat>(byte* row, long rowBytes, int bands, float* x, int chains, int tail, in Ahead aheads, float* y)
        where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        nint inRow = aheads.InRow, nextBand = aheads.NextBand;
        var change = aheads.Switch;
        for (var band = 0; band < bands; band++, row += Band * rowBytes, y += Band)
        {
            byte* w0 = row, w1 = row + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            Vector512<float> s0 = Vector512<float>.Zero, s1 = s0, s2 = s0, s3 = s0;
            var a = x;
            var ahead = inRow;
            for (var chain = 0; chain <= chains; chain++)
            {
                var count = chain < chains ? 8 : tail;
                if (chain == change) ahead = nextBand;
                Vector512<float> p0 = Vector512<float>.Zero, p1 = p0, p2 = p0, p3 = p0;
                for (var j = count; j > 0; j--, a += 16)
                {
                    // A line at a time: a burst of prefetches would take the places that the loads behind it wait for.
                    if (ahead != 0 && (j & (4 / size - 1)) == 0)
                    {
                        Prefetch(w0 + ahead);
                        Prefetch(w1 + ahead);
                        Prefetch(w2 + ahead);
                        Prefetch(w3 + ahead);
                    }
                    var v = Vector512.Load(a);
                    p0 = Fma(TFormat.Load(w0), v, p0);
                    p1 = Fma(TFormat.Load(w1), v, p1);
                    p2 = Fma(TFormat.Load(w2), v, p2);
                    p3 = Fma(TFormat.Load(w3), v, p3);
                    w0 += 16 * size;
                    w1 += 16 * size;
                    w2 += 16 * size;
                    w3 += 16 * size;
                }
                s0 += p0;
                s1 += p1;
                s2 += p2;
                s3 += p3;
            }
            Lanes.Sum4(s0, s1, s2, s3).Store(y);
        }
        return bands * Band;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static Vector512<float> NaturalRow<TFormat>(byte* row, float* x, int chains, in Ahead aheads) where TFormat : struct, INaturalFormat
    {
        var size = TFormat.BytesPerElement;
        var s = Vector512<float>.Zero;
        for (var chain = 0; chain < chains; chain++)
        {
            for (var line = 0; aheads.InRow != 0 && line < 128 * size; line += 64)
                Prefetch(row + aheads.InRow + line);
            var p = Vector512<float>.Zero;
            for (var j = 0; j < 8; j++, x += 16, row += 16 * size)
                p = Fma(TFormat.Load(row), Vector512.Load(x), p);
            s += p;
        }
        return s;
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static Vector512<float> NaturalTail<TFormat>(byte* row, float* x, int vectors, int rest) where TFormat : struct, INaturalFormat
    {
        var p = Vector512<float>.Zero;
        for (var j = 0; j < vectors; j++, row += 16 * TFormat.BytesPerElement, x += 16)
            p = Fma(TFormat.Load(row), Vector512.Load(x), p);
        return rest == 0 ? p : Fma(LoadTail<TFormat>(row, rest), Vector512.Load(x), p);
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
        int chains = w.Columns / 128, rest = w.Columns % 128;
        var sums = stackalloc Vector512<float>[1];
        var tail = stackalloc byte[128];
        var n = start;
        if (rest == 0 && w.TileRows % Band == 0 && start % Band == 0 && Avx512Vbmi.IsSupported)
        {
            // The rows of a band have the same scales; those of a tile are done at once.
            var bands = new Ahead(w.RowBytes, chains, 128, Band, w.RowBytes * w.Rows);
            for (int tile; n + Band <= end; n += tile)
            {
                tile = Math.Min(end / Band * Band, (n / w.TileRows + 1) * w.TileRows) - n;
                Fp8Bands(w.Row(n), w.RowBytes, tile / Band, w.RowScales(n), x, chains, bands, y + n);
            }
        }
        var ahead = new Ahead(w.RowBytes, chains, 128, 1, w.RowBytes * w.Rows);
        for (; n < end; n++)
        {
            var scales = w.RowScales(n);
            if (Vector512.IsHardwareAccelerated) Fp8Row(w.Row(n), scales, x, chains, ahead, sums);
            else for (var half = 0; half < 2; half++) Fp8HalfRow(w.Row(n) + half * 32, scales, x + half * 8, chains, ahead, (float*)sums + half * 8);
            if (rest != 0)
            {
                CopyTail(w.Row(n) + chains * 128L, rest, tail, 128);
                var tables = new WeightDecoders.Fp8Tables();
                var p = Fp8Half(Vector512<float>.Zero, tail, tables, x + chains * 128);
                if (rest > 64) p = Fp8Half(p, tail + 64, tables, x + chains * 128 + 64);
                *sums = Fma(p, Vector512.Create(scales[chains]), *sums);
            }
            y[n] = Lanes.Sum(*sums);
        }
    }

    /// <summary>Bands of rows with the same scales, whole chains, from their first chain to their results.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8Bands(byte* row, long rowBytes, int bands, float* scales, float* x, int chains, in Ahead aheads, float* y)
    {
        var tables = new WeightDecoders.Fp8Tables();
        nint inRow = aheads.InRow, nextBand = aheads.NextBand;
        var change = aheads.Switch;
        for (; bands > 0; bands--, row += Band * rowBytes, y += Band)
        {
            byte* w0 = row, w1 = row + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
            Vector512<float> s0 = Vector512<float>.Zero, s1 = s0, s2 = s0, s3 = s0;
            var a = x;
            var ahead = inRow;
            for (var chain = 0; chain < chains; chain++)
            {
                if (chain == change) ahead = nextBand;
                Vector512<float> p0 = Vector512<float>.Zero, p1 = p0, p2 = p0, p3 = p0;
                for (var half = 0; half < 2; half++, a += 64)
                {
                    Prefetch(w0 + ahead);
                    Prefetch(w1 + ahead);
                    Prefetch(w2 + ahead);
                    Prefetch(w3 + ahead);
                    Vector512<float> a0 = Vector512.Load(a), a1 = Vector512.Load(a + 16), a2 = Vector512.Load(a + 32), a3 = Vector512.Load(a + 48);
                    p0 = Fp8Step(w0, tables, a0, a1, a2, a3, p0);
                    p1 = Fp8Step(w1, tables, a0, a1, a2, a3, p1);
                    p2 = Fp8Step(w2, tables, a0, a1, a2, a3, p2);
                    p3 = Fp8Step(w3, tables, a0, a1, a2, a3, p3);
                    w0 += 64;
                    w1 += 64;
                    w2 += 64;
                    w3 += 64;
                }
                var scale = Vector512.Create(scales[chain]);
                s0 = Fma(p0, scale, s0);
                s1 = Fma(p1, scale, s1);
                s2 = Fma(p2, scale, s2);
                s3 = Fma(p3, scale, s3);
            }
            Lanes.Sum4(s0, s1, s2, s3).Store(y);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> Fp8Step(
        byte* codes, in WeightDecoders.Fp8Tables tables, Vector512<float> a0, Vector512<float> a1, Vector512<float> a2, Vector512<float> a3, Vector512<float> p)
    {
        WeightDecoders.Fp8(codes, tables, out var v0, out var v1, out var v2, out var v3);
        return Fma(v3, a3, Fma(v2, a2, Fma(v1, a1, Fma(v0, a0, p))));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8Row(byte* row, float* scales, float* x, int chains, in Ahead aheads, Vector512<float>* sum)
    {
        var tables = new WeightDecoders.Fp8Tables();
        var s = Vector512<float>.Zero;
        var ahead = aheads.InRow;
        for (var chain = 0; chain < chains; chain++, row += 128, x += 128)
        {
            Prefetch(row + ahead);
            Prefetch(row + ahead + 64);
            var p = Fp8Half(Fp8Half(Vector512<float>.Zero, row, tables, x), row + 64, tables, x + 64);
            s = Fma(p, Vector512.Create(scales[chain]), s);
        }
        *sum = s;
    }

    /// <summary>Eight lanes of a row, for registers that hold no more; they meet the other eight at the end of the row.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8HalfRow(byte* row, float* scales, float* x, int chains, in Ahead aheads, float* sums)
    {
        var s = Vector256<float>.Zero;
        for (var chain = 0; chain < chains; chain++)
        {
            Prefetch(row + aheads.InRow);
            Prefetch(row + aheads.InRow + 64);
            var p = Vector256<float>.Zero;
            for (var quarter = 0; quarter < 2; quarter++, row += 64, x += 64)
            {
                WeightDecoders.Fp8Half(Vector256.Load(row), out var v0, out var v1, out var v2, out var v3);
                p = Vector256.FusedMultiplyAdd(v0, Vector256.Load(x), p);
                p = Vector256.FusedMultiplyAdd(v1, Vector256.Load(x + 16), p);
                p = Vector256.FusedMultiplyAdd(v2, Vector256.Load(x + 32), p);
                p = Vector256.FusedMultiplyAdd(v3, Vector256.Load(x + 48), p);
            }
            s = Vector256.FusedMultiplyAdd(p, Vector256.Create(scales[chain]), s);
        }
        s.Store(sums);
    }

    private static void Fp8Narrow(in WeightView w, int start, int end, float* x, float* y)
    {
        int chains = w.Columns / 64, rest = w.Columns % 64;
        var sums = stackalloc Vector512<float>[1];
        var tail = stackalloc byte[64];
        var ahead = new Ahead(w.RowBytes, chains, 64, 1, w.RowBytes * w.Rows);
        for (var n = start; n < end; n++)
        {
            var scales = w.RowScales(n);
            Fp8NarrowRow(w.Row(n), scales, x, chains, ahead, sums);
            if (rest != 0)
            {
                CopyTail(w.Row(n) + chains * 64L, rest, tail, 64);
                var p = Fp8Half(Vector512<float>.Zero, tail, new WeightDecoders.Fp8Tables(), x + chains * 64);
                *sums = Fma(p, WeightDecoders.Quarters(scales + chains * 4), *sums);
            }
            y[n] = Lanes.Sum(*sums);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8NarrowRow(byte* row, float* scales, float* x, int chains, in Ahead aheads, Vector512<float>* sum)
    {
        var tables = new WeightDecoders.Fp8Tables();
        var s = Vector512<float>.Zero;
        var ahead = aheads.InRow;
        for (var chain = 0; chain < chains; chain++, row += 64, x += 64, scales += 4)
        {
            Prefetch(row + ahead);
            s = Fma(Fp8Half(Vector512<float>.Zero, row, tables, x), WeightDecoders.Quarters(scales), s);
        }
        *sum = s;
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
        int chains = w.Columns / 128, rest = w.Columns % 128;
        var sums = stackalloc Vector512<float>[Band];
        for (var n = start; n < end;)
        {
            var rows = n + Band <= end && w.TileRows == 1 && Vector512.IsHardwareAccelerated ? Band : 1;
            var codes = w.RowScaleCodes(n);
            if (WeightDecoders.AnySpecialScale(codes, w.ScaleStride * rows))
            {
                rows = 1;
                Fp4AnyRow(w.Row(n), codes, x, chains, sums);
            }
            else
            {
                var ahead = new Ahead(w.RowBytes, chains, 64, rows, w.RowBytes * w.Rows);
                if (rows == Band) Fp4Band(w.Row(n), w.RowBytes, codes, w.ScaleStride, x, chains, ahead, sums);
                else if (Vector512.IsHardwareAccelerated) Fp4Row(w.Row(n), codes, x, chains, ahead, sums);
                else for (var half = 0; half < 2; half++) Fp4HalfRow(w.Row(n) + half * 32, codes + half * 2, x + half * 8, chains, ahead, (float*)sums + half * 8);
            }
            for (var r = 0; r < rows; r++, n++)
            {
                if (rest != 0) sums[r] = Fp4Tail(w.Row(n) + chains * 64L, rest, w.RowScaleCodes(n) + chains * 4, x + chains * 128, sums[r]);
                y[n] = Lanes.Sum(sums[r]);
            }
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4Band(byte* row, long rowBytes, byte* codes, long codeStride, float* x, int chains, in Ahead aheads, Vector512<float>* sums)
    {
        var table = WeightDecoders.Fp4Table;
        byte* w0 = row, w1 = row + rowBytes, w2 = w1 + rowBytes, w3 = w2 + rowBytes;
        byte* c0 = codes, c1 = codes + codeStride, c2 = c1 + codeStride, c3 = c2 + codeStride;
        Vector512<float> s0 = Vector512<float>.Zero, s1 = s0, s2 = s0, s3 = s0;
        var ahead = aheads.InRow;
        for (var chain = 0; chain < chains; chain++, x += 128)
        {
            if (chain == aheads.Switch) ahead = aheads.NextBand;
            Prefetch(w0 + ahead);
            Prefetch(w1 + ahead);
            Prefetch(w2 + ahead);
            Prefetch(w3 + ahead);
            Vector512<uint> d0 = Vector512.Load((uint*)w0), d1 = Vector512.Load((uint*)w1), d2 = Vector512.Load((uint*)w2), d3 = Vector512.Load((uint*)w3);
            Vector512<float> p0 = Vector512<float>.Zero, p1 = p0, p2 = p0, p3 = p0;
            Fp4Step(table, d0, d1, d2, d3, x, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 4, d1 >>> 4, d2 >>> 4, d3 >>> 4, x + 16, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 8, d1 >>> 8, d2 >>> 8, d3 >>> 8, x + 32, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 12, d1 >>> 12, d2 >>> 12, d3 >>> 12, x + 48, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 16, d1 >>> 16, d2 >>> 16, d3 >>> 16, x + 64, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 20, d1 >>> 20, d2 >>> 20, d3 >>> 20, x + 80, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 24, d1 >>> 24, d2 >>> 24, d3 >>> 24, x + 96, ref p0, ref p1, ref p2, ref p3);
            Fp4Step(table, d0 >>> 28, d1 >>> 28, d2 >>> 28, d3 >>> 28, x + 112, ref p0, ref p1, ref p2, ref p3);
            s0 = Fma(p0, WeightDecoders.Fp4Scales(c0), s0);
            s1 = Fma(p1, WeightDecoders.Fp4Scales(c1), s1);
            s2 = Fma(p2, WeightDecoders.Fp4Scales(c2), s2);
            s3 = Fma(p3, WeightDecoders.Fp4Scales(c3), s3);
            w0 += 64;
            w1 += 64;
            w2 += 64;
            w3 += 64;
            c0 += 4;
            c1 += 4;
            c2 += 4;
            c3 += 4;
        }
        sums[0] = s0;
        sums[1] = s1;
        sums[2] = s2;
        sums[3] = s3;
    }

    /// <summary>One vector of four rows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Fp4Step(
        Vector512<float> table, Vector512<uint> d0, Vector512<uint> d1, Vector512<uint> d2, Vector512<uint> d3, float* x,
        ref Vector512<float> p0, ref Vector512<float> p1, ref Vector512<float> p2, ref Vector512<float> p3)
    {
        var a = Vector512.Load(x);
        p0 = Fma(WeightDecoders.Fp4(table, d0), a, p0);
        p1 = Fma(WeightDecoders.Fp4(table, d1), a, p1);
        p2 = Fma(WeightDecoders.Fp4(table, d2), a, p2);
        p3 = Fma(WeightDecoders.Fp4(table, d3), a, p3);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4Row(byte* row, byte* codes, float* x, int chains, in Ahead aheads, Vector512<float>* sum)
    {
        var table = WeightDecoders.Fp4Table;
        var s = Vector512<float>.Zero;
        for (var chain = 0; chain < chains; chain++, row += 64, x += 128, codes += 4)
        {
            Prefetch(row + aheads.InRow);
            s = Fma(Fp4Chain(table, Vector512.Load((uint*)row), x), WeightDecoders.Fp4Scales(codes), s);
        }
        *sum = s;
    }

    /// <summary>Eight lanes of a row, for registers that hold no more; they are two groups of 32 columns of every chain.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4HalfRow(byte* row, byte* codes, float* x, int chains, in Ahead aheads, float* sums)
    {
        var table = WeightDecoders.Fp4Table.GetLower();
        var s = Vector256<float>.Zero;
        for (var chain = 0; chain < chains; chain++, row += 64, x += 128, codes += 4)
        {
            Prefetch(row + aheads.InRow);
            var d = Vector256.Load((uint*)row);
            var p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d), Vector256.Load(x), Vector256<float>.Zero);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 4), Vector256.Load(x + 16), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 8), Vector256.Load(x + 32), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 12), Vector256.Load(x + 48), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 16), Vector256.Load(x + 64), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 20), Vector256.Load(x + 80), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 24), Vector256.Load(x + 96), p);
            p = Vector256.FusedMultiplyAdd(WeightDecoders.Fp4Half(table, d >>> 28), Vector256.Load(x + 112), p);
            var scales = Vector256.Create(Vector128.Create((uint)codes[0] << 23), Vector128.Create((uint)codes[1] << 23)).AsSingle();
            s = Vector256.FusedMultiplyAdd(p, scales, s);
        }
        s.Store(sums);
    }

    /// <summary>A row with scales that are not just exponents.</summary>
    private static void Fp4AnyRow(byte* row, byte* codes, float* x, int chains, Vector512<float>* sum)
    {
        var table = WeightDecoders.Fp4Table;
        var s = Vector512<float>.Zero;
        for (var chain = 0; chain < chains; chain++, row += 64, x += 128, codes += 4)
            s = Fma(Fp4Chain(table, Vector512.Load((uint*)row), x), WeightDecoders.AnyFp4Scales(codes, 4), s);
        *sum = s;
    }

    private static Vector512<float> Fp4Tail(byte* row, int rest, byte* codes, float* x, Vector512<float> sum)
    {
        var tail = stackalloc byte[64];
        CopyTail(row, rest / 2, tail, 64);
        return Fma(Fp4Chain(WeightDecoders.Fp4Table, Vector512.Load((uint*)tail), x), WeightDecoders.AnyFp4Scales(codes, (rest + 31) / 32), sum);
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

using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

/// <summary>
/// Decodes a piece of some rows of a weight into F32 vectors, in the format's order and four rows interleaved, with the lane scales of its chains
/// beside them. Used by <see cref="Gemm"/>; what lies behind a row's last column decodes to zero. Stateless.
/// </summary>
internal static unsafe class PanelDecoder
{
    private const int Stride = 4 * 16; // from a row's vector to its next

    /// <param name="first">First row.</param>
    /// <param name="rows">Rows; the panel is filled up with rows of zeros to a multiple of four.</param>
    /// <param name="vector">First vector of sixteen, a multiple of the chain length.</param>
    /// <param name="count">Vectors.</param>
    /// <param name="panel">[four rows][vector][row][16]: four rows start <paramref name="fourRows"/> floats after the four before.</param>
    /// <param name="scales">[four rows][chain][row][16], <paramref name="fourScales"/> floats apart.</param>
    /// <param name="ahead">What will be decoded later, in bytes from here: fetched into the second-level cache.</param>
    public static void Decode(
        in WeightView w, int first, int rows, int vector, int count, float* panel, int fourRows, float* scales, int fourScales, nint ahead)
    {
        for (var r = 0; r < rows; r++)
        {
            if (Sse.IsSupported)
            {
                var next = w.Vector(first + r, vector) + ahead;
                for (var bytes = w.BytesOf(count); bytes > 0; bytes -= 64, next += 64)
                    Sse.Prefetch1(next);
            }
            float* destination = panel + r / 4 * fourRows + r % 4 * 16, scale = scales + r / 4 * fourScales + r % 4 * 16;
            switch (w.Format)
            {
                case WeightFormat.F32: Natural<F32Format>(w, first + r, vector, count, destination, scale); break;
                case WeightFormat.BF16: Natural<BF16Format>(w, first + r, vector, count, destination, scale); break;
                case WeightFormat.F16: Natural<F16Format>(w, first + r, vector, count, destination, scale); break;
                case WeightFormat.Fp8 or WeightFormat.Fp8Narrow: Fp8(w, first + r, vector, count, destination, scale); break;
                case WeightFormat.Fp4: Fp4(w, first + r, vector, count, destination, scale); break;
            }
        }
        for (var r = rows; r % 4 != 0; r++)
        {
            for (var v = 0; v < count; v++)
                Vector512<float>.Zero.Store(panel + r / 4 * fourRows + r % 4 * 16 + v * Stride);
            for (var c = 0; c < (count + w.Chain - 1) / w.Chain; c++)
                Vector512<float>.Zero.Store(scales + r / 4 * fourScales + r % 4 * 16 + c * Stride);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Natural<TFormat>(in WeightView w, int n, int vector, int count, float* panel, float* scales) where TFormat : struct, INaturalFormat
    {
        var row = w.Row(n) + (long)vector * 16 * TFormat.BytesPerElement;
        var full = Math.Min(count, w.Columns / 16 - vector);
        for (var j = 0; j < full; j++, row += 16 * TFormat.BytesPerElement)
            TFormat.Load(row).Store(panel + j * Stride);
        if (full < count) MatVec.LoadTail<TFormat>(row, w.Columns % 16).Store(panel + full * Stride);
        for (var c = 0; c < (count + 7) / 8; c++)
            Vector512<float>.One.Store(scales + c * Stride);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp8(in WeightView w, int n, int vector, int count, float* panel, float* scales)
    {
        var tables = new WeightDecoders.Fp8Tables();
        int column = vector * 16, end = Math.Min(w.Columns, column + count * 16);
        var row = w.Row(n);
        var tail = stackalloc byte[64];
        for (; column < end; column += 64, panel += 4 * Stride)
        {
            var codes = row + column;
            if (end - column < 64)
            {
                new Span<byte>(tail, 64).Clear();
                Unsafe.CopyBlockUnaligned(tail, codes, (uint)(end - column));
                codes = tail;
            }
            WeightDecoders.Fp8(codes, tables, out var v0, out var v1, out var v2, out var v3);
            v0.Store(panel);
            v1.Store(panel + Stride);
            v2.Store(panel + 2 * Stride);
            v3.Store(panel + 3 * Stride);
        }
        var stored = w.RowScales(n);
        if (w.Format == WeightFormat.Fp8)
        {
            for (var c = 0; c < (count + 7) / 8; c++)
                Vector512.Create(stored[vector / 8 + c]).Store(scales + c * Stride);
            return;
        }
        for (var c = 0; c < count / 4; c++)
            WeightDecoders.Quarters(stored + vector + c * 4).Store(scales + c * Stride);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Fp4(in WeightView w, int n, int vector, int count, float* panel, float* scales)
    {
        var table = WeightDecoders.Fp4Table;
        int column = vector * 16, end = Math.Min(w.Columns, column + count * 16);
        var row = w.Row(n);
        var codes = w.RowScaleCodes(n);
        var tail = stackalloc byte[64];
        for (; column < end; column += 128, panel += 8 * Stride, scales += Stride)
        {
            var packed = row + column / 2;
            if (end - column < 128)
            {
                new Span<byte>(tail, 64).Clear();
                Unsafe.CopyBlockUnaligned(tail, packed, (uint)(end - column) / 2);
                packed = tail;
            }
            var d = Vector512.Load((uint*)packed);
            WeightDecoders.Fp4(table, d).Store(panel);
            WeightDecoders.Fp4(table, d >>> 4).Store(panel + Stride);
            WeightDecoders.Fp4(table, d >>> 8).Store(panel + 2 * Stride);
            WeightDecoders.Fp4(table, d >>> 12).Store(panel + 3 * Stride);
            WeightDecoders.Fp4(table, d >>> 16).Store(panel + 4 * Stride);
            WeightDecoders.Fp4(table, d >>> 20).Store(panel + 5 * Stride);
            WeightDecoders.Fp4(table, d >>> 24).Store(panel + 6 * Stride);
            WeightDecoders.Fp4(table, d >>> 28).Store(panel + 7 * Stride);
            var groups = codes + column / 32;
            var plain = end - column >= 128 && !WeightDecoders.AnySpecialScale4(groups);
            (plain ? WeightDecoders.Fp4Scales(groups) : WeightDecoders.AnyFp4Scales(groups, Math.Min(4, (end - column + 31) / 32))).Store(scales);
        }
    }
}

using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Inference.Backends.Cpu;

/// <summary>
/// Decodes a piece of some rows of a weight into F32 vectors, in the format's order, with the lane scales of its chains beside them.
/// Used by <see cref="Gemm"/>; what lies behind a row's last column decodes to zero. Stateless.
/// </summary>
internal static unsafe class PanelDecoder
{
    /// <param name="first">First row.</param>
    /// <param name="rows">Rows; the panel is filled up with rows of zeros to a multiple of four.</param>
    /// <param name="vector">First vector of sixteen, a multiple of the chain length.</param>
    /// <param name="count">Vectors.</param>
    /// <param name="panel">Row r starts at r * <paramref name="stride"/>.</param>
    /// <param name="scales">Row r, chain c: sixteen floats at (r * stride / 64 + c * 16).</param>
    public static void Decode(in WeightView w, int first, int rows, int vector, int count, float* panel, int stride, float* scales)
    {
        var scaleStride = stride / 4;
        for (var r = 0; r < rows; r++)
        {
            float* destination = panel + r * stride, scale = scales + r * scaleStride;
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
            new Span<float>(panel + r * stride, count * 16).Clear();
            new Span<float>(scales + r * scaleStride, scaleStride).Clear();
        }
    }

    private static void Natural<TFormat>(in WeightView w, int n, int vector, int count, float* panel, float* scales) where TFormat : struct, INaturalFormat
    {
        var row = w.Row(n) + (long)vector * 16 * TFormat.BytesPerElement;
        var full = Math.Min(count, w.Columns / 16 - vector);
        for (var j = 0; j < full; j++, row += 16 * TFormat.BytesPerElement)
            TFormat.Load(row).Store(panel + j * 16);
        if (full < count) MatVec.LoadTail<TFormat>(row, w.Columns % 16).Store(panel + full * 16);
        for (var c = 0; c < (count + 7) / 8; c++)
            Vector512<float>.One.Store(scales + c * 16);
    }

    private static void Fp8(in WeightView w, int n, int vector, int count, float* panel, float* scales)
    {
        var tables = new WeightDecoders.Fp8Tables();
        int column = vector * 16, end = Math.Min(w.Columns, column + count * 16);
        var row = w.Row(n);
        var tail = stackalloc byte[64];
        for (; column < end; column += 64, panel += 64)
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
            v1.Store(panel + 16);
            v2.Store(panel + 32);
            v3.Store(panel + 48);
        }
        var stored = w.RowScales(n);
        if (w.Format == WeightFormat.Fp8)
        {
            for (var c = 0; c < (count + 7) / 8; c++)
                Vector512.Create(stored[vector / 8 + c]).Store(scales + c * 16);
            return;
        }
        for (var c = 0; c < count / 4; c++)
            WeightDecoders.Quarters(stored + vector + c * 4).Store(scales + c * 16);
    }

    private static void Fp4(in WeightView w, int n, int vector, int count, float* panel, float* scales)
    {
        var table = WeightDecoders.Fp4Table;
        int column = vector * 16, end = Math.Min(w.Columns, column + count * 16);
        var row = w.Row(n);
        var codes = w.RowScaleCodes(n);
        var tail = stackalloc byte[64];
        for (; column < end; column += 128, panel += 128, scales += 16)
        {
            var packed = row + column / 2;
            if (end - column < 128)
            {
                new Span<byte>(tail, 64).Clear();
                Unsafe.CopyBlockUnaligned(tail, packed, (uint)(end - column) / 2);
                packed = tail;
            }
            var d = Vector512.Load((uint*)packed);
            for (var j = 0; j < 8; j++)
                WeightDecoders.Fp4(table, d >>> (4 * j)).Store(panel + j * 16);
            WeightDecoders.AnyFp4Scales(codes + column / 32, Math.Min(4, (end - column + 31) / 32)).Store(scales);
        }
    }
}

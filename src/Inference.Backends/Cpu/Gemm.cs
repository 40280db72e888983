// Weight matrix times several vectors: y[t][n] = sum over k of W[n, k] x[t][k], the kernel of prefill and of batched decoding. Bound by FMAs:
// a weight is decoded once into a panel that stays in the cache and then meets all tokens of the tile.
//
// Order of the sum: exactly that of MatVec (see there). Blocking never changes it: rows (Panel), tokens (4, 2 or 1 side by side) and pieces of K
// (PieceVectors) only decide which sums are under way at the same time; between pieces the sixteen lanes of a sum wait in memory.
// With 256-bit registers the micro kernel runs once for lanes 0..7 and once for 8..15 (four times with 128 bits): lanes meet only at the end.
//
// The scratch is the caller's; see ScratchFloats.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

/// <summary>A group of lanes that one register holds.</summary>
internal unsafe interface ILaneGroup<TSelf> where TSelf : struct, ILaneGroup<TSelf>
{
    static abstract int Count { get; }
    static abstract TSelf Zero { get; }
    static abstract TSelf Load(float* source);
    static abstract void Store(TSelf value, float* destination);
    static abstract TSelf Fma(TSelf a, TSelf b, TSelf c);
}

internal readonly unsafe struct SixteenLanes(Vector512<float> v) : ILaneGroup<SixteenLanes>
{
    private readonly Vector512<float> _v = v;

    public static int Count => 16;
    public static SixteenLanes Zero { [MethodImpl(MethodImplOptions.AggressiveInlining)] get => new(Vector512<float>.Zero); }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static SixteenLanes Load(float* source) => new(Vector512.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(SixteenLanes value, float* destination) => value._v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static SixteenLanes Fma(SixteenLanes a, SixteenLanes b, SixteenLanes c) => new(Vector512.FusedMultiplyAdd(a._v, b._v, c._v));
}

internal readonly unsafe struct EightLanes(Vector256<float> v) : ILaneGroup<EightLanes>
{
    private readonly Vector256<float> _v = v;

    public static int Count => 8;
    public static EightLanes Zero { [MethodImpl(MethodImplOptions.AggressiveInlining)] get => new(Vector256<float>.Zero); }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static EightLanes Load(float* source) => new(Vector256.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(EightLanes value, float* destination) => value._v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static EightLanes Fma(EightLanes a, EightLanes b, EightLanes c) => new(Vector256.FusedMultiplyAdd(a._v, b._v, c._v));
}

internal readonly unsafe struct FourLanes(Vector128<float> v) : ILaneGroup<FourLanes>
{
    private readonly Vector128<float> _v = v;

    public static int Count => 4;
    public static FourLanes Zero { [MethodImpl(MethodImplOptions.AggressiveInlining)] get => new(Vector128<float>.Zero); }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static FourLanes Load(float* source) => new(Vector128.Load(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(FourLanes value, float* destination) => value._v.Store(destination);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static FourLanes Fma(FourLanes a, FourLanes b, FourLanes c) => new(Vector128.FusedMultiplyAdd(a._v, b._v, c._v));
}

internal static unsafe class Gemm
{
    /// <summary>Rows decoded together.</summary>
    public const int Panel = 16;

    /// <summary>Tokens computed together; callers cut longer batches.</summary>
    public const int TokensMax = 128;

    private const int PieceVectors = 32; // 512 columns: the panel takes 32 KB

    private const int PanelFloats = Panel * PieceVectors * 16;
    private const int ScaleFloats = Panel * (PieceVectors / 4) * 16;

    /// <summary>Floats of scratch that one worker needs for this many tokens.</summary>
    public static long ScratchFloats(int tokens) => PanelFloats + ScaleFloats + (long)tokens * Panel * 16;

    /// <summary>Rows <paramref name="start"/> .. <paramref name="end"/> - 1 of every y[t].</summary>
    /// <param name="x">Per token, its packed vector.</param>
    /// <param name="y">Per token, where element n of its result is y[t][n].</param>
    public static void Rows(in WeightView w, int start, int end, float** x, float** y, int tokens, float* scratch)
    {
        if (Vector512.IsHardwareAccelerated) Rows<SixteenLanes>(w, start, end, x, y, tokens, scratch);
        else if (Vector256.IsHardwareAccelerated) Rows<EightLanes>(w, start, end, x, y, tokens, scratch);
        else Rows<FourLanes>(w, start, end, x, y, tokens, scratch);
    }

    private static void Rows<TLanes>(in WeightView w, int start, int end, float** x, float** y, int tokens, float* scratch)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        float* panel = scratch, scales = panel + PanelFloats, sums = scales + ScaleFloats;
        int vectors = w.Vectors, chain = w.Chain;
        for (var n = start; n < end; n += Panel)
        {
            var rows = Math.Min(Panel, end - n);
            new Span<float>(sums, tokens * Panel * 16).Clear();
            for (var v = 0; v < vectors; v += PieceVectors)
            {
                var piece = Math.Min(PieceVectors, vectors - v);
                PanelDecoder.Decode(w, n, rows, v, piece, panel, PieceVectors * 16, scales);
                for (var lane = 0; lane < 16; lane += TLanes.Count)
                    Multiply<TLanes>(panel + lane, scales + lane, (rows + 3) / 4, x, v * 16 + lane, sums + lane, tokens, piece, chain);
            }
            for (var t = 0; t < tokens; t++)
            {
                for (var r = 0; r < rows; r++)
                    y[t][n + r] = Lanes.Sum(Vector512.Load(sums + (t * Panel + r) * 16));
            }
        }
    }

    private static void Multiply<TLanes>(
        float* panel, float* scales, int quads, float** x, int offset, float* sums, int tokens, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        var t = 0;
        if (TLanes.Count == 16 || AdvSimdHasRegisters)
        {
            for (; t + 4 <= tokens; t += 4)
            {
                for (var q = 0; q < quads; q++)
                    FourByFour<TLanes>(panel + q * RowsStride, scales + q * ScalesStride, x[t] + offset, x[t + 1] + offset, x[t + 2] + offset, x[t + 3] + offset, sums + (t * Panel + q * 4) * 16, piece, chain);
            }
        }
        for (; t + 2 <= tokens; t += 2)
        {
            for (var q = 0; q < quads; q++)
                FourByTwo<TLanes>(panel + q * RowsStride, scales + q * ScalesStride, x[t] + offset, x[t + 1] + offset, sums + (t * Panel + q * 4) * 16, piece, chain);
        }
        if (t < tokens)
        {
            for (var q = 0; q < quads; q++)
                FourByOne<TLanes>(panel + q * RowsStride, scales + q * ScalesStride, x[t] + offset, sums + (t * Panel + q * 4) * 16, piece, chain);
        }
    }

    private const int RowStride = PieceVectors * 16;
    private const int RowsStride = 4 * RowStride;
    private const int ScaleStride = PieceVectors / 4 * 16;
    private const int ScalesStride = 4 * ScaleStride;
    private const int TokenStride = Panel * 16;

    private static bool AdvSimdHasRegisters => System.Runtime.Intrinsics.Arm.AdvSimd.IsSupported; // 32 of them

    private static void FourByFour<TLanes>(float* w, float* s, float* x0, float* x1, float* x2, float* x3, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 16)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            TLanes c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 16, x0 += 16, x1 += 16, x2 += 16, x3 += 16)
            {
                TLanes w0 = TLanes.Load(w), w1 = TLanes.Load(w + RowStride), w2 = TLanes.Load(w + 2 * RowStride), w3 = TLanes.Load(w + 3 * RowStride);
                var x = TLanes.Load(x0);
                a0 = TLanes.Fma(w0, x, a0);
                a1 = TLanes.Fma(w1, x, a1);
                a2 = TLanes.Fma(w2, x, a2);
                a3 = TLanes.Fma(w3, x, a3);
                x = TLanes.Load(x1);
                b0 = TLanes.Fma(w0, x, b0);
                b1 = TLanes.Fma(w1, x, b1);
                b2 = TLanes.Fma(w2, x, b2);
                b3 = TLanes.Fma(w3, x, b3);
                x = TLanes.Load(x2);
                c0 = TLanes.Fma(w0, x, c0);
                c1 = TLanes.Fma(w1, x, c1);
                c2 = TLanes.Fma(w2, x, c2);
                c3 = TLanes.Fma(w3, x, c3);
                x = TLanes.Load(x3);
                d0 = TLanes.Fma(w0, x, d0);
                d1 = TLanes.Fma(w1, x, d1);
                d2 = TLanes.Fma(w2, x, d2);
                d3 = TLanes.Fma(w3, x, d3);
            }
            Close(a0, a1, a2, a3, s, sums);
            Close(b0, b1, b2, b3, s, sums + TokenStride);
            Close(c0, c1, c2, c3, s, sums + 2 * TokenStride);
            Close(d0, d1, d2, d3, s, sums + 3 * TokenStride);
        }
    }

    private static void FourByTwo<TLanes>(float* w, float* s, float* x0, float* x1, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 16)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 16, x0 += 16, x1 += 16)
            {
                TLanes w0 = TLanes.Load(w), w1 = TLanes.Load(w + RowStride), w2 = TLanes.Load(w + 2 * RowStride), w3 = TLanes.Load(w + 3 * RowStride);
                var x = TLanes.Load(x0);
                a0 = TLanes.Fma(w0, x, a0);
                a1 = TLanes.Fma(w1, x, a1);
                a2 = TLanes.Fma(w2, x, a2);
                a3 = TLanes.Fma(w3, x, a3);
                x = TLanes.Load(x1);
                b0 = TLanes.Fma(w0, x, b0);
                b1 = TLanes.Fma(w1, x, b1);
                b2 = TLanes.Fma(w2, x, b2);
                b3 = TLanes.Fma(w3, x, b3);
            }
            Close(a0, a1, a2, a3, s, sums);
            Close(b0, b1, b2, b3, s, sums + TokenStride);
        }
    }

    private static void FourByOne<TLanes>(float* w, float* s, float* x0, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 16)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 16, x0 += 16)
            {
                var x = TLanes.Load(x0);
                a0 = TLanes.Fma(TLanes.Load(w), x, a0);
                a1 = TLanes.Fma(TLanes.Load(w + RowStride), x, a1);
                a2 = TLanes.Fma(TLanes.Load(w + 2 * RowStride), x, a2);
                a3 = TLanes.Fma(TLanes.Load(w + 3 * RowStride), x, a3);
            }
            Close(a0, a1, a2, a3, s, sums);
        }
    }

    /// <summary>acc = fma(p, scale, acc) for four rows of one token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Close<TLanes>(TLanes p0, TLanes p1, TLanes p2, TLanes p3, float* s, float* sums) where TLanes : struct, ILaneGroup<TLanes>
    {
        TLanes.Store(TLanes.Fma(p0, TLanes.Load(s), TLanes.Load(sums)), sums);
        TLanes.Store(TLanes.Fma(p1, TLanes.Load(s + ScaleStride), TLanes.Load(sums + 16)), sums + 16);
        TLanes.Store(TLanes.Fma(p2, TLanes.Load(s + 2 * ScaleStride), TLanes.Load(sums + 32)), sums + 32);
        TLanes.Store(TLanes.Fma(p3, TLanes.Load(s + 3 * ScaleStride), TLanes.Load(sums + 48)), sums + 48);
    }
}

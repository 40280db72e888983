// Weight matrix times several vectors: y[t][n] = sum over k of W[n, k] x[t][k], the kernel of prefill and of batched decoding. Bound by FMAs:
// a weight is decoded once into a panel that stays in the first-level cache and then meets all tokens of the tile; where GemmInRegisters can do
// without a panel, it does.
//
// Order of the sum: exactly that of MatVec (see there). Blocking never changes it: rows (Block, Panel), tokens (four side by side, or the few that are
// left) and pieces of K (PieceVectors) only decide which sums are under way at the same time; between chains the sixteen lanes of a sum wait in memory.
// Blocks of rows share a piece of the activations, which the second-level cache holds for them.
// With 256-bit registers the micro kernels run once for lanes 0..7 and once for 8..15 (four times with 128 bits): lanes meet only at the end.
//
// Layouts, chosen so that a micro kernel walks two pointers: activations in groups of four tokens [group][vector][token of the group][16], the last
// group as narrow as it is (PackedBatch); panel [four rows][vector][row][16], scales [four rows][chain][row][16], sums [group][four rows][token][row][16].
// The scratch is the caller's; see ScratchFloats.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

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

/// <summary>Where a batch of activation vectors lies when packed for a weight: in groups of four, the vectors of a group interleaved.</summary>
internal readonly unsafe struct PackedBatch(float* data, int tokens, int vectors)
{
    public const int GroupTokens = 4;

    public int Tokens { get; } = tokens;

    public static long Floats(int tokens, int vectors) => (long)tokens * vectors * Lanes.Count;

    /// <summary>First float of a group.</summary>
    public float* Group(int group) => data + (long)group * GroupTokens * vectors * Lanes.Count;

    public int WidthOf(int group) => Math.Min(GroupTokens, Tokens - group * GroupTokens);

    /// <summary>Packs one token.</summary>
    public void Pack(in WeightView w, int token, float* source)
    {
        var (group, place) = Math.DivRem(token, GroupTokens);
        WeightDecoders.Pack(w, source, Group(group) + place * Lanes.Count, WidthOf(group) * Lanes.Count);
    }
}

internal static unsafe class Gemm
{
    /// <summary>Rows that are worked on together; a good multiple for cutting work.</summary>
    public const int Block = 32;

    private const int Panel = 8; // rows decoded together

    /// <summary>Tokens computed together; callers cut longer batches.</summary>
    public const int TokensMax = 128;

    private const int PieceVectors = 32; // 512 columns: the panel takes 16 KB of the first-level cache, a group of activations 8 KB

    private const int PanelFloats = Panel * PieceVectors * 16;
    private const int ScaleFloats = Panel * (PieceVectors / 4) * 16;
    private const int FourRows = 4 * PieceVectors * 16;
    private const int FourScales = 4 * (PieceVectors / 4) * 16;

    /// <summary>Floats of scratch that one worker needs for this many tokens.</summary>
    public static long ScratchFloats(int tokens) => Math.Max(PanelFloats + ScaleFloats + (long)tokens * Block * 16, GemmInRegisters.ScratchFloats(tokens));

    /// <summary>Rows <paramref name="start"/> .. <paramref name="end"/> - 1 of every y[t].</summary>
    /// <param name="y">Per token, where element n of its result is y[t][n].</param>
    public static void Rows(in WeightView w, int start, int end, in PackedBatch x, float** y, float* scratch)
    {
        for (; start < end && GemmInRegisters.Covers(w, start, Math.Min(start + Block, end)); start += Block)
            GemmInRegisters.Rows(w, start, Math.Min(start + Block, end), x, y, scratch);
        if (start >= end) return;
        if (Vector512.IsHardwareAccelerated) Rows<SixteenLanes>(w, start, end, x, y, scratch);
        else if (Vector256.IsHardwareAccelerated) Rows<EightLanes>(w, start, end, x, y, scratch);
        else Rows<FourLanes>(w, start, end, x, y, scratch);
    }

    private static void Rows<TLanes>(in WeightView w, int start, int end, in PackedBatch x, float** y, float* scratch)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        float* panel = scratch, scales = panel + PanelFloats, sums = scales + ScaleFloats;
        int vectors = w.Vectors, panelSums = x.Tokens * Panel * 16;
        for (var n = start; n < end; n += Block)
        {
            var rows = Math.Min(Block, end - n);
            new Span<float>(sums, (rows + Panel - 1) / Panel * panelSums).Clear();
            for (var v = 0; v < vectors; v += PieceVectors)
            {
                var piece = Math.Min(PieceVectors, vectors - v);
                var next = v + piece < vectors ? w.BytesOf(piece) : Block * w.RowBytes - w.BytesOf(v);
                for (var r = 0; r < rows; r += Panel)
                {
                    var panelRows = Math.Min(Panel, rows - r);
                    PanelDecoder.Decode(w, n + r, panelRows, v, piece, panel, FourRows, scales, FourScales, (nint)next);
                    MultiplyPanel<TLanes>(panel, scales, (panelRows + 3) / 4, x, v, piece, w.Chain, sums + r / Panel * panelSums);
                }
            }
            for (var r = 0; r < rows; r += Panel)
                Finish(sums + r / Panel * panelSums, n + r, Math.Min(Panel, rows - r), x, y);
        }
    }

    /// <summary>A panel times one piece of all tokens.</summary>
    private static void MultiplyPanel<TLanes>(float* panel, float* scales, int quads, in PackedBatch x, int vector, int piece, int chain, float* sums)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var group = 0; group * PackedBatch.GroupTokens < x.Tokens; group++)
        {
            var width = x.WidthOf(group);
            var activations = x.Group(group) + (long)vector * width * 16;
            var groupSums = sums + group * PackedBatch.GroupTokens * Panel * 16;
            for (var q = 0; q < quads; q++, groupSums += 4 * width * 16)
            {
                for (var lane = 0; lane < 16; lane += TLanes.Count)
                    Multiply<TLanes>(panel + q * FourRows + lane, scales + q * FourScales + lane, activations + lane, width, groupSums + lane, piece, chain);
            }
        }
    }

    /// <summary>Joins the lanes of a panel's sums and stores the results.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Finish(float* sums, int n, int rows, in PackedBatch x, float** y)
    {
        for (var t = 0; t < x.Tokens; t++)
        {
            int group = t / PackedBatch.GroupTokens, place = t % PackedBatch.GroupTokens;
            var four = sums + (group * PackedBatch.GroupTokens * Panel + place * 4) * 16;
            for (var r = 0; r < rows; r += 4, four += 4 * x.WidthOf(group) * 16)
            {
                var results = Lanes.Sum4(Vector512.Load(four), Vector512.Load(four + 16), Vector512.Load(four + 32), Vector512.Load(four + 48));
                if (r + 4 <= rows) results.Store(y[t] + n + r);
                else for (var i = r; i < rows; i++) y[t][n + i] = results[i - r];
            }
        }
    }

    /// <summary>Four rows times the tokens of a group.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Multiply<TLanes>(float* w, float* s, float* x, int width, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        if (width == 4 && ManyRegisters<TLanes>())
        {
            FourByFour<TLanes>(w, s, x, sums, piece, chain);
            return;
        }
        if (width == 3 && ManyRegisters<TLanes>())
        {
            FourByThree<TLanes>(w, s, x, sums, piece, chain);
            return;
        }
        var t = 0;
        for (; t + 2 <= width; t += 2)
            FourByTwo<TLanes>(w, s, x + t * 16, width * 16, sums + t * 64, piece, chain);
        if (t < width)
            FourByOne<TLanes>(w, s, x + t * 16, width * 16, sums + t * 64, piece, chain);
    }

    private static bool ManyRegisters<TLanes>() where TLanes : struct, ILaneGroup<TLanes> =>
        TLanes.Count == 16 || System.Runtime.Intrinsics.Arm.AdvSimd.IsSupported;

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByFour<TLanes>(float* w, float* s, float* x, float* sums, int piece, int chain) where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 64)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            TLanes c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 64, x += 64)
            {
                TLanes w0 = TLanes.Load(w), w1 = TLanes.Load(w + 16), w2 = TLanes.Load(w + 32), w3 = TLanes.Load(w + 48);
                var t = TLanes.Load(x);
                a0 = TLanes.Fma(w0, t, a0);
                a1 = TLanes.Fma(w1, t, a1);
                a2 = TLanes.Fma(w2, t, a2);
                a3 = TLanes.Fma(w3, t, a3);
                t = TLanes.Load(x + 16);
                b0 = TLanes.Fma(w0, t, b0);
                b1 = TLanes.Fma(w1, t, b1);
                b2 = TLanes.Fma(w2, t, b2);
                b3 = TLanes.Fma(w3, t, b3);
                t = TLanes.Load(x + 32);
                c0 = TLanes.Fma(w0, t, c0);
                c1 = TLanes.Fma(w1, t, c1);
                c2 = TLanes.Fma(w2, t, c2);
                c3 = TLanes.Fma(w3, t, c3);
                t = TLanes.Load(x + 48);
                d0 = TLanes.Fma(w0, t, d0);
                d1 = TLanes.Fma(w1, t, d1);
                d2 = TLanes.Fma(w2, t, d2);
                d3 = TLanes.Fma(w3, t, d3);
            }
            TLanes s0 = TLanes.Load(s), s1 = TLanes.Load(s + 16), s2 = TLanes.Load(s + 32), s3 = TLanes.Load(s + 48);
            Close(a0, a1, a2, a3, s0, s1, s2, s3, sums);
            Close(b0, b1, b2, b3, s0, s1, s2, s3, sums + 64);
            Close(c0, c1, c2, c3, s0, s1, s2, s3, sums + 128);
            Close(d0, d1, d2, d3, s0, s1, s2, s3, sums + 192);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByThree<TLanes>(float* w, float* s, float* x, float* sums, int piece, int chain) where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 64)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0, c0 = a0, c1 = a0, c2 = a0, c3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 64, x += 48)
            {
                TLanes w0 = TLanes.Load(w), w1 = TLanes.Load(w + 16), w2 = TLanes.Load(w + 32), w3 = TLanes.Load(w + 48);
                var t = TLanes.Load(x);
                a0 = TLanes.Fma(w0, t, a0);
                a1 = TLanes.Fma(w1, t, a1);
                a2 = TLanes.Fma(w2, t, a2);
                a3 = TLanes.Fma(w3, t, a3);
                t = TLanes.Load(x + 16);
                b0 = TLanes.Fma(w0, t, b0);
                b1 = TLanes.Fma(w1, t, b1);
                b2 = TLanes.Fma(w2, t, b2);
                b3 = TLanes.Fma(w3, t, b3);
                t = TLanes.Load(x + 32);
                c0 = TLanes.Fma(w0, t, c0);
                c1 = TLanes.Fma(w1, t, c1);
                c2 = TLanes.Fma(w2, t, c2);
                c3 = TLanes.Fma(w3, t, c3);
            }
            TLanes s0 = TLanes.Load(s), s1 = TLanes.Load(s + 16), s2 = TLanes.Load(s + 32), s3 = TLanes.Load(s + 48);
            Close(a0, a1, a2, a3, s0, s1, s2, s3, sums);
            Close(b0, b1, b2, b3, s0, s1, s2, s3, sums + 64);
            Close(c0, c1, c2, c3, s0, s1, s2, s3, sums + 128);
        }
    }

    /// <summary>Two neighbours of a group whose vectors lie <paramref name="stride"/> floats apart.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByTwo<TLanes>(float* w, float* s, float* x, int stride, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 64)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 64, x += stride)
            {
                TLanes w0 = TLanes.Load(w), w1 = TLanes.Load(w + 16), w2 = TLanes.Load(w + 32), w3 = TLanes.Load(w + 48);
                var t = TLanes.Load(x);
                a0 = TLanes.Fma(w0, t, a0);
                a1 = TLanes.Fma(w1, t, a1);
                a2 = TLanes.Fma(w2, t, a2);
                a3 = TLanes.Fma(w3, t, a3);
                t = TLanes.Load(x + 16);
                b0 = TLanes.Fma(w0, t, b0);
                b1 = TLanes.Fma(w1, t, b1);
                b2 = TLanes.Fma(w2, t, b2);
                b3 = TLanes.Fma(w3, t, b3);
            }
            TLanes s0 = TLanes.Load(s), s1 = TLanes.Load(s + 16), s2 = TLanes.Load(s + 32), s3 = TLanes.Load(s + 48);
            Close(a0, a1, a2, a3, s0, s1, s2, s3, sums);
            Close(b0, b1, b2, b3, s0, s1, s2, s3, sums + 64);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByOne<TLanes>(float* w, float* s, float* x, int stride, float* sums, int piece, int chain)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        for (var v = 0; v < piece; v += chain, s += 64)
        {
            TLanes a0 = TLanes.Zero, a1 = a0, a2 = a0, a3 = a0;
            for (var j = Math.Min(chain, piece - v); j > 0; j--, w += 64, x += stride)
            {
                var t = TLanes.Load(x);
                a0 = TLanes.Fma(TLanes.Load(w), t, a0);
                a1 = TLanes.Fma(TLanes.Load(w + 16), t, a1);
                a2 = TLanes.Fma(TLanes.Load(w + 32), t, a2);
                a3 = TLanes.Fma(TLanes.Load(w + 48), t, a3);
            }
            Close(a0, a1, a2, a3, TLanes.Load(s), TLanes.Load(s + 16), TLanes.Load(s + 32), TLanes.Load(s + 48), sums);
        }
    }

    /// <summary>sum = fma(p, scale, sum) for four rows of one token.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Close<TLanes>(TLanes p0, TLanes p1, TLanes p2, TLanes p3, TLanes s0, TLanes s1, TLanes s2, TLanes s3, float* sums)
        where TLanes : struct, ILaneGroup<TLanes>
    {
        TLanes.Store(TLanes.Fma(p0, s0, TLanes.Load(sums)), sums);
        TLanes.Store(TLanes.Fma(p1, s1, TLanes.Load(sums + 16)), sums + 16);
        TLanes.Store(TLanes.Fma(p2, s2, TLanes.Load(sums + 32)), sums + 32);
        TLanes.Store(TLanes.Fma(p3, s3, TLanes.Load(sums + 48)), sums + 48);
    }
}

// The lightning indexer: score every visible row, choose the best (Operators/Attention.cs; deepseek-v4 2.8).
//
// score[b] = sum over h of (HeadWeights[h] * Scale) * relu(q_h . row_b). Lanes are rows: thirty-two rows are transposed once and meet the heads of
// all tokens of a group. A dot product is one chain of FMAs per ChainChannels channels, the chains added in order (a block of E2M1 values has one scale,
// so that each of their chains is exact in integers too); the sum over heads is one chain in the order of h. So a score depends on its row and its
// token's query only; how rows and tokens are cut into pieces, and how rows are stored, changes nothing.
// Tokens that see no more than TopK rows select them all and score nothing. Scores of a batch of tokens are held at once, at most ScoresMax.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class IndexKernel(WorkerPool pool) : IDisposable
{
    private const int TileRows = 32;
    private const int PieceRows = 512;
    private const int ChainChannels = RowFormat.Fp4Block;
    private const int GroupTokens = 8;
    private const long ScoresMax = 16L << 20;

    private readonly Scratch _workers = new(), _seen = new(), _scores = new(), _groups = new(), _rotary = new();

    private struct Group
    {
        public int First, Count; // tokens of one sequence
        public int Visible; // rows that the last of them sees
        public int FirstPiece; // ordinal of its first piece of rows
    }

    public void Run(in IndexTopK op)
    {
        CpuChecks.Tokens("IndexTopK", op.Tokens, op.Rows.PageTable.D0, _seen);
        int tokens = op.Queries.D0, heads = op.Queries.D1, width = op.Queries.D2, pairs = op.Rope.Frequencies.D0;
        var body = new Body
        {
            Queries = op.Queries.F32(),
            QueriesStride = op.Queries.RowStride,
            HeadWeights = op.HeadWeights.F32(),
            HeadWeightsStride = op.HeadWeights.RowStride,
            Scale = op.Scale,
            Heads = heads,
            Width = width,
            Frequencies = op.Rope.Frequencies.F32(),
            Pairs = pairs,
            Rounding = op.Rounding,
            Rotary = _rotary.Get<double>((long)RotaryTable.Doubles(pairs) * pool.Threads),
            Sequence = op.Tokens.Sequence.I32(),
            Position = op.Tokens.Position.I32(),
            Rows = new RowMap(op.Rows, RowMap.Operand.IndexRows),
            Codec = new RowCodec(op.Rows.Format),
            Ratio = op.Ratio,
            TopK = op.TopK,
            Selected = op.Selected.I32(),
            SelectedStride = op.Selected.RowStride,
        };
        for (var t = 0; t < tokens;)
            t += Batch(ref body, t, tokens);
    }

    /// <summary>Selects for as many tokens from <paramref name="first"/> on as may be scored at once; returns their number.</summary>
    private int Batch(ref Body body, int first, int tokens)
    {
        int count = 0, visibleMax = 0;
        for (; first + count < tokens; count++)
        {
            var visible = Math.Max(visibleMax, body.Visible(first + count));
            if (count > 0 && (long)visible * (count + 1) > ScoresMax) break;
            visibleMax = visible;
        }
        var groups = _groups.Get<Group>(count);
        int groupCount = 0, pieces = 0;
        for (var t = first; t < first + count; t++)
        {
            var visible = body.Visible(t);
            if (visible <= body.TopK) continue;
            ref var last = ref groups[Math.Max(groupCount - 1, 0)];
            if (groupCount > 0 && last.First + last.Count == t && last.Count < GroupTokens && body.Sequence[last.First] == body.Sequence[t])
            {
                pieces += Pieces(visible) - Pieces(last.Visible);
                last.Count++;
                last.Visible = visible;
                continue;
            }
            groups[groupCount++] = new Group { First = t, Count = 1, Visible = visible, FirstPiece = pieces };
            pieces += Pieces(visible);
        }
        body.Batch = first;
        body.Groups = groups;
        body.GroupCount = groupCount;
        body.ScoresStride = (visibleMax + TileRows - 1) / TileRows * TileRows;
        body.Scores = groupCount == 0 ? null : _scores.Get<float>((long)body.ScoresStride * count);
        body.ScratchStride = Math.Max(TileRows * (body.Width + body.WidthPadded), TopK.ScratchInts) + TileRows;
        body.Scratch = _workers.Get<float>((long)body.ScratchStride * pool.Threads);

        if (groupCount > 0)
        {
            body.Phase = Phase.Prepare;
            pool.For(ref body, checked(count * body.Heads), pool.Grain(body.Width * 8L));
            body.Phase = Phase.Score;
            pool.For(ref body, pieces, pool.Grain((long)PieceRows * body.Heads * body.Width * Math.Max(1, count / groupCount)));
        }
        body.Phase = Phase.Choose;
        pool.For(ref body, count, pool.Grain(Math.Max(body.TopK, visibleMax) * 6L));
        return count;
    }

    private static int Pieces(int visible) => (visible + PieceRows - 1) / PieceRows;

    private enum Phase { Prepare, Score, Choose }

    private struct Body : IParallelBody
    {
        public float* Queries, HeadWeights, Frequencies, Scores, Scratch;
        public double* Rotary;
        public int* Sequence, Position, Selected;
        public Group* Groups;
        public long QueriesStride, HeadWeightsStride, SelectedStride;
        public RowMap Rows;
        public RowCodec Codec;
        public RowRounding Rounding;
        public Phase Phase;
        public int Heads, Width, Pairs, Ratio, TopK, Batch, GroupCount, ScoresStride, ScratchStride;
        public float Scale;

        public readonly int WidthPadded => (Width + 15) / 16 * 16;

        /// <summary>Rows that token t sees.</summary>
        public readonly int Visible(int t) => (int)((Position[t] + 1L) / Ratio);

        public readonly void Run(int start, int end, int worker)
        {
            switch (Phase)
            {
                case Phase.Prepare:
                    PrepareQueries(start, end, worker);
                    break;
                case Phase.Score:
                    var g = 0;
                    for (var piece = start; piece < end; piece++)
                    {
                        while (g + 1 < GroupCount && Groups[g + 1].FirstPiece <= piece) g++;
                        ScorePiece(Groups[g], (piece - Groups[g].FirstPiece) * PieceRows, Scratch + (long)worker * ScratchStride);
                    }
                    break;
                default:
                    for (var t = Batch + start; t < Batch + end; t++)
                        Choose(t, (int*)(Scratch + (long)worker * ScratchStride));
                    break;
            }
        }

        /// <summary>Rotates and rounds queries; items are heads of tokens.</summary>
        private readonly void PrepareQueries(int start, int end, int worker)
        {
            var table = new RotaryTable(Frequencies, Pairs, Rotary + (long)worker * RotaryTable.Doubles(Pairs));
            var filled = -1;
            for (var item = start; item < end; item++)
            {
                int t = Batch + item / Heads, h = item % Heads;
                if (Visible(t) <= TopK) continue;
                if (t != filled) table.Fill(Position[filled = t], inverse: false);
                var query = Queries + t * QueriesStride + (long)h * Width;
                table.Apply(query + Width - 2 * Pairs);
                GridRounding.Round(query, Width, 2 * Pairs, Rounding);
            }
        }

        private readonly void ScorePiece(in Group group, int first, float* scratch)
        {
            var end = Math.Min(first + PieceRows, group.Visible);
            for (var row = first; row < end; row += TileRows)
            {
                var count = Math.Min(TileRows, end - row);
                Transpose(Sequence[group.First], row, count, scratch, scratch + TileRows * Width);
                for (var i = 0; i < group.Count; i++)
                    ScoreTile(group.First + i, scratch, Scores + (long)(group.First + i - Batch) * ScoresStride + row);
            }
        }

        /// <summary>tile[d, r] = element d of row first + r; rows that are not there are zero.</summary>
        /// <param name="decoded">Room for the rows of a tile.</param>
        private readonly void Transpose(int sequence, int first, int count, float* tile, float* decoded)
        {
            if (count < TileRows) new Span<float>(tile, TileRows * Width).Clear();
            var rows = stackalloc float*[TileRows];
            for (var r = 0; r < count;)
            {
                var row = Rows.Row(sequence, first + r, out var contiguous);
                for (var last = Math.Min(count, r + contiguous); r < last; r++, row += Rows.RowBytes)
                {
                    rows[r] = Codec.IsF32 ? (float*)row : decoded + (long)r * WidthPadded;
                    if (!Codec.IsF32) Codec.Decode(row, rows[r], RowCodec.Block);
                }
            }
            var done = 0;
            for (; done + 16 <= count && Avx512F.IsSupported; done += 16)
                TransposeSixteen(rows + done, Width, tile + done);
            for (; done < count; done++)
            {
                for (var d = 0; d < Width; d++)
                    tile[d * TileRows + done] = rows[done][d];
            }
        }

        /// <summary>Sixteen rows into sixteen columns of the tile: squares of 16 x 16, by exchanging halves of growing size.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void TransposeSixteen(float** rows, int width, float* tile)
        {
            var square = stackalloc Vector512<float>[16];
            var d = 0;
            for (; d + 16 <= width; d += 16, tile += 16 * TileRows)
            {
                // Squares of 4 x 4 within each quarter of four rows, then the quarters.
                for (var r = 0; r < 4; r++)
                {
                    Vector512<float> a = Vector512.Load(rows[4 * r] + d), b = Vector512.Load(rows[4 * r + 1] + d), c = Vector512.Load(rows[4 * r + 2] + d), e = Vector512.Load(rows[4 * r + 3] + d);
                    Vector512<double> ab = Avx512F.UnpackLow(a, b).AsDouble(), ce = Avx512F.UnpackLow(c, e).AsDouble();
                    Vector512<double> ab2 = Avx512F.UnpackHigh(a, b).AsDouble(), ce2 = Avx512F.UnpackHigh(c, e).AsDouble();
                    square[r] = Avx512F.UnpackLow(ab, ce).AsSingle(); // columns 0, 4, 8, 12 of the four rows
                    square[4 + r] = Avx512F.UnpackHigh(ab, ce).AsSingle(); // columns 1, 5, 9, 13
                    square[8 + r] = Avx512F.UnpackLow(ab2, ce2).AsSingle();
                    square[12 + r] = Avx512F.UnpackHigh(ab2, ce2).AsSingle();
                }
                for (var c = 0; c < 4; c++)
                {
                    var s = square + 4 * c;
                    Vector512<float> low01 = Avx512F.Shuffle4x128(s[0], s[1], 0b01_00_01_00), high01 = Avx512F.Shuffle4x128(s[0], s[1], 0b11_10_11_10);
                    Vector512<float> low23 = Avx512F.Shuffle4x128(s[2], s[3], 0b01_00_01_00), high23 = Avx512F.Shuffle4x128(s[2], s[3], 0b11_10_11_10);
                    Avx512F.Shuffle4x128(low01, low23, 0b10_00_10_00).Store(tile + c * TileRows);
                    Avx512F.Shuffle4x128(low01, low23, 0b11_01_11_01).Store(tile + (4 + c) * TileRows);
                    Avx512F.Shuffle4x128(high01, high23, 0b10_00_10_00).Store(tile + (8 + c) * TileRows);
                    Avx512F.Shuffle4x128(high01, high23, 0b11_01_11_01).Store(tile + (12 + c) * TileRows);
                }
            }
            for (; d < width; d++, tile += TileRows)
            {
                for (var r = 0; r < 16; r++)
                    tile[r] = rows[r][d];
            }
        }

        /// <summary>Scores of thirty-two rows for one token.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void ScoreTile(int t, float* tile, float* scores)
        {
            Vector512<float> low = Vector512<float>.Zero, high = low;
            var query = Queries + t * QueriesStride;
            var weights = HeadWeights + t * HeadWeightsStride;
            var h = 0;
            for (; h + 4 <= Heads; h += 4, query += 4 * Width)
            {
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
                var k = tile;
                for (int start = 0, end; start < Width; start = end)
                {
                    end = Math.Min(start + ChainChannels, Width);
                    Vector512<float> e0 = Vector512<float>.Zero, e1 = e0, f0 = e0, f1 = e0, g0 = e0, g1 = e0, h0 = e0, h1 = e0;
                    for (var d = start; d < end; d++, k += TileRows)
                    {
                        Vector512<float> k0 = Vector512.Load(k), k1 = Vector512.Load(k + 16);
                        var q = Vector512.Create(query[d]);
                        e0 = Vector512.FusedMultiplyAdd(k0, q, e0);
                        e1 = Vector512.FusedMultiplyAdd(k1, q, e1);
                        q = Vector512.Create(query[Width + d]);
                        f0 = Vector512.FusedMultiplyAdd(k0, q, f0);
                        f1 = Vector512.FusedMultiplyAdd(k1, q, f1);
                        q = Vector512.Create(query[2 * Width + d]);
                        g0 = Vector512.FusedMultiplyAdd(k0, q, g0);
                        g1 = Vector512.FusedMultiplyAdd(k1, q, g1);
                        q = Vector512.Create(query[3 * Width + d]);
                        h0 = Vector512.FusedMultiplyAdd(k0, q, h0);
                        h1 = Vector512.FusedMultiplyAdd(k1, q, h1);
                    }
                    a0 += e0;
                    a1 += e1;
                    b0 += f0;
                    b1 += f1;
                    c0 += g0;
                    c1 += g1;
                    d0 += h0;
                    d1 += h1;
                }
                Add(weights[h], a0, a1, ref low, ref high);
                Add(weights[h + 1], b0, b1, ref low, ref high);
                Add(weights[h + 2], c0, c1, ref low, ref high);
                Add(weights[h + 3], d0, d1, ref low, ref high);
            }
            for (; h < Heads; h++, query += Width)
            {
                Vector512<float> a0 = Vector512<float>.Zero, a1 = a0;
                var k = tile;
                for (int start = 0, end; start < Width; start = end)
                {
                    end = Math.Min(start + ChainChannels, Width);
                    Vector512<float> e0 = Vector512<float>.Zero, e1 = e0;
                    for (var d = start; d < end; d++, k += TileRows)
                    {
                        var q = Vector512.Create(query[d]);
                        e0 = Vector512.FusedMultiplyAdd(Vector512.Load(k), q, e0);
                        e1 = Vector512.FusedMultiplyAdd(Vector512.Load(k + 16), q, e1);
                    }
                    a0 += e0;
                    a1 += e1;
                }
                Add(weights[h], a0, a1, ref low, ref high);
            }
            low.Store(scores);
            high.Store(scores + 16);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private readonly void Add(float headWeight, Vector512<float> a, Vector512<float> b, ref Vector512<float> low, ref Vector512<float> high)
        {
            var weight = Vector512.Create(headWeight * Scale);
            low = Vector512.FusedMultiplyAdd(weight, Vector512.Max(a, Vector512<float>.Zero), low);
            high = Vector512.FusedMultiplyAdd(weight, Vector512.Max(b, Vector512<float>.Zero), high);
        }

        private readonly void Choose(int t, int* histogram)
        {
            var visible = Visible(t);
            var selected = Selected + t * SelectedStride;
            var count = Math.Min(TopK, visible);
            if (visible <= TopK)
            {
                for (var b = 0; b < count; b++)
                    selected[b] = b;
            }
            else
            {
                Cpu.TopK.Select(Scores + (long)(t - Batch) * ScoresStride, visible, TopK, selected, histogram);
            }
            new Span<int>(selected + count, TopK - count).Fill(-1);
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
        _scores.Dispose();
        _groups.Dispose();
        _rotary.Dispose();
    }
}

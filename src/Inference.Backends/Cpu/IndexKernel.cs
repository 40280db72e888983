// The lightning indexer: score every visible row, choose the best (Operators/Attention.cs; deepseek-v4 2.8).
//
// score[b] = sum over h of (HeadWeights[h] * Scale) * relu(q_h . row_b). Lanes are rows: thirty-two rows are transposed once and meet the heads of
// all tokens of a group. A dot product is one chain of FMAs per ChainChannels channels, the chains added in order (a block of E2M1 values has one scale,
// so that each of their chains is exact in integers too); the sum over heads is one chain in the order of h. So a score depends on its row and its
// token's query only; how rows and tokens are cut into pieces, and how rows are stored, changes nothing.
// FP4 rows are never made F32: codes times two are small integers, and 32 products of two of them, summed in 16 bits, are exact; the sum times the two
// power-of-two scales is what the chain of FMAs gives, to the bit (unless a number leaves the range of normal F32). IndexTileFp4.cs.
// Tokens that see no more than TopK rows select them all and score nothing. Scores of a batch of tokens are held at once, at most ScoresMax.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class IndexKernel(WorkerPool pool) : IDisposable
{
    private const int TileRows = RowTile.Rows;
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
                if (Codec.IsFp4) IndexTileFp4.PackQuery(query, Width, Codec);
            }
        }

        private readonly void ScorePiece(in Group group, int first, float* scratch)
        {
            var end = Math.Min(first + PieceRows, group.Visible);
            var rows = stackalloc byte*[TileRows];
            for (var row = first; row < end; row += TileRows)
            {
                FindRows(Sequence[group.First], row, Math.Min(TileRows, end - row), rows);
                var scores = Scores + (long)(group.First - Batch) * ScoresStride + row;
                if (Codec.IsFp4)
                {
                    var tile = new IndexTileFp4(scratch, Width);
                    tile.Fill(rows);
                    for (var i = 0; i < group.Count; i++, scores += ScoresStride)
                        tile.Score((byte*)Query(group.First + i), Heads, HeadWeights + (group.First + i) * HeadWeightsStride, Scale, scores);
                    continue;
                }
                Transpose(rows, scratch, scratch + TileRows * Width);
                for (var i = 0; i < group.Count; i++, scores += ScoresStride)
                    ScoreTile(group.First + i, scratch, scores);
            }
        }

        private readonly float* Query(int t) => Queries + t * QueriesStride;

        /// <summary>Addresses of a tile's rows; those behind the last repeat the first, and their scores are not looked at.</summary>
        private readonly void FindRows(int sequence, int first, int count, byte** rows)
        {
            for (var r = 0; r < count;)
            {
                var row = Rows.Row(sequence, first + r, out var contiguous);
                for (var last = Math.Min(count, r + contiguous); r < last; r++, row += Rows.RowBytes)
                    rows[r] = row;
            }
            for (var r = count; r < TileRows; r++)
                rows[r] = rows[0];
        }

        /// <summary>tile[d, r] = element d of row r.</summary>
        /// <param name="decoded">Room for the rows of a tile.</param>
        private readonly void Transpose(byte** rows, float* tile, float* decoded)
        {
            for (var r = 0; r < TileRows && !Codec.IsF32; r++, decoded += WidthPadded)
            {
                Codec.Decode(rows[r], decoded, RowCodec.Block);
                rows[r] = (byte*)decoded;
            }
            RowTile.Transpose((float**)rows, Width, tile);
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
                RowTile.AddHead(weights[h] * Scale, a0, a1, ref low, ref high);
                RowTile.AddHead(weights[h + 1] * Scale, b0, b1, ref low, ref high);
                RowTile.AddHead(weights[h + 2] * Scale, c0, c1, ref low, ref high);
                RowTile.AddHead(weights[h + 3] * Scale, d0, d1, ref low, ref high);
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
                RowTile.AddHead(weights[h] * Scale, a0, a1, ref low, ref high);
            }
            low.Store(scores);
            high.Store(scores + 16);
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

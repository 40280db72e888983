// The lightning indexer: score every visible row, choose the best (Operators/Attention.cs; deepseek-v4 2.8).
//
// score[b] = sum over h of (HeadWeights[h] * Scale) * relu(q_h . row_b). Lanes are rows: thirty-two rows are transposed once and meet the heads of
// all tokens of a group. A dot product is one chain of FMAs per ChainChannels channels, the chains added in order (a block of E2M1 values has one scale,
// so that each of their chains is exact in integers too); the sum over heads is one chain in the order of h. So a score depends on its row and its
// token's query only; how rows and tokens are cut into pieces, and how rows are stored, changes nothing.
// FP4 rows are never made F32: codes times two are small integers, and 32 products of two of them, summed in 16 bits, are exact; the sum times the two
// power-of-two scales is what the chain of FMAs gives, to the bit (unless a number leaves the range of normal F32). IndexTileFp4.cs.
// Tokens that see no more than TopK rows select them all and score nothing. The others are taken in groups of one sequence, and their rows in ranges; a
// group meets a range as one piece of work, in which every token keeps a short list of its best rows (TopK.cs): scores are compared and forgotten. The
// lists of a token's ranges are joined at the end.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class IndexKernel(WorkerPool pool) : IDisposable
{
    private const int TileRows = RowTile.Rows;
    private const int ChainChannels = RowFormat.Fp4Block;
    private const int RangeRowsMin = 256; // fewer are not worth lists of their own
    private const int GroupTokensMax = 32, GroupTokensMin = 8;
    private const int GroupQueryBytes = 256 << 10; // what a second-level cache has room for beside a tile and the lists
    private const long ListIntsMax = 16L << 20; // 64 MB of lists at once

    private readonly Scratch _workers = new(), _seen = new(), _lists = new(), _memory = new(), _groups = new(), _rotary = new();

    private struct Group
    {
        public int First, Count; // tokens of one sequence
        public int Visible; // rows that the last of them sees
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

    /// <summary>Selects for as many tokens from <paramref name="first"/> on as there may be lists at once; returns their number.</summary>
    private int Batch(ref Body body, int first, int tokens)
    {
        var listInts = TopK.Ints(body.TopK);
        var count = (int)Math.Min(tokens - first, Math.Max(1, ListIntsMax / listInts));
        var groupTokens = Math.Clamp(GroupQueryBytes / (sizeof(float) * body.Heads * body.Width), GroupTokensMin, GroupTokensMax);
        var groups = _groups.Get<Group>(count);
        int groupCount = 0, visibleMax = 0;
        for (var t = first; t < first + count; t++)
        {
            var visible = body.Visible(t);
            if (visible <= body.TopK) continue;
            visibleMax = Math.Max(visibleMax, visible);
            ref var last = ref groups[Math.Max(groupCount - 1, 0)];
            if (groupCount > 0 && last.First + last.Count == t && last.Count < groupTokens && body.Sequence[last.First] == body.Sequence[t])
            {
                last.Count++;
                last.Visible = visible;
                continue;
            }
            groups[groupCount++] = new Group { First = t, Count = 1, Visible = visible };
        }
        body.Batch = first;
        body.Groups = groups;
        // Four pieces per thread, if rows are enough; lists for each, so no more than memory allows.
        var ranges = groupCount == 0 ? 1 : (int)Math.Min((4L * pool.Threads + groupCount - 1) / groupCount, Math.Max(1, ListIntsMax / listInts / count));
        body.RangeRows = (Math.Max(RangeRowsMin, (visibleMax + ranges - 1) / ranges) + TileRows - 1) / TileRows * TileRows;
        body.Ranges = Math.Max(1, (visibleMax + body.RangeRows - 1) / body.RangeRows);
        body.Lists = _lists.Get<TopK>((long)count * body.Ranges);
        body.ListMemory = _memory.Get<int>((long)count * body.Ranges * listInts);
        body.ScratchStride = TileRows * (body.Width + body.WidthPadded) + TileRows + TopK.ScratchInts + (listInts + 15) / 16 * 16;
        body.Scratch = _workers.Get<float>((long)body.ScratchStride * pool.Threads);

        if (groupCount > 0)
        {
            body.Phase = Phase.Prepare;
            pool.For(ref body, checked(count * body.Heads), pool.Grain(body.Width * 8L));
            body.Phase = Phase.Score;
            pool.For(ref body, checked(groupCount * body.Ranges), pool.Grain((long)body.RangeRows * body.Heads * body.Width * Math.Max(1, count / groupCount)));
        }
        body.Phase = Phase.Choose;
        pool.For(ref body, count, pool.Grain(body.TopK * body.Ranges * 8L));
        return count;
    }

    private enum Phase { Prepare, Score, Choose }

    private struct Body : IParallelBody
    {
        public float* Queries, HeadWeights, Frequencies, Scratch;
        public double* Rotary;
        public int* Sequence, Position, Selected, ListMemory;
        public TopK* Lists; // [tokens of the batch, ranges]
        public Group* Groups;
        public long QueriesStride, HeadWeightsStride, SelectedStride;
        public RowMap Rows;
        public RowCodec Codec;
        public RowRounding Rounding;
        public Phase Phase;
        public int Heads, Width, Pairs, Ratio, TopK, Batch, Ranges, RangeRows, ScratchStride;
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
                    for (var item = start; item < end; item++)
                        ScoreRange(Groups[item / Ranges], item % Ranges, Scratch + (long)worker * ScratchStride);
                    break;
                default:
                    for (var t = Batch + start; t < Batch + end; t++)
                        Choose(t, Scratch + (long)worker * ScratchStride);
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

        // Of a worker's scratch: the tile and what it is made from, then thirty-two scores, a histogram, a list.
        private readonly float* ScoresOf(float* scratch) => scratch + TileRows * (Width + WidthPadded);

        private readonly int* HistogramOf(float* scratch) => (int*)(ScoresOf(scratch) + TileRows);

        private readonly void ScoreRange(in Group group, int range, float* scratch)
        {
            var lists = Lists + (long)(group.First - Batch) * Ranges + range;
            for (var i = 0; i < group.Count; i++)
                lists[(long)i * Ranges].Begin(TopK, ListMemory + ((long)(group.First + i - Batch) * Ranges + range) * Cpu.TopK.Ints(TopK), HistogramOf(scratch));
            var scores = ScoresOf(scratch);
            var rows = stackalloc byte*[TileRows];
            int first = range * RangeRows, end = Math.Min(first + RangeRows, group.Visible);
            for (var row = first; row < end; row += TileRows)
            {
                FindRows(Sequence[group.First], row, Math.Min(TileRows, end - row), rows);
                var tile = new IndexTileFp4(scratch, Width);
                if (Codec.IsFp4) tile.Fill(rows);
                else Transpose(rows, scratch, scratch + TileRows * Width);
                for (var i = 0; i < group.Count; i++)
                {
                    var t = group.First + i;
                    var seen = Math.Min(TileRows, Visible(t) - row);
                    if (seen <= 0) continue;
                    if (Codec.IsFp4) tile.Score((byte*)Query(t), Heads, HeadWeights + t * HeadWeightsStride, Scale, scores);
                    else ScoreTile(t, scratch, scores);
                    lists[(long)i * Ranges].Add(scores, row, seen);
                }
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

        private readonly void Choose(int t, float* scratch)
        {
            var visible = Visible(t);
            var selected = new Span<int>(Selected + t * SelectedStride, TopK);
            if (visible <= TopK)
            {
                for (var b = 0; b < visible; b++)
                    selected[b] = b;
                selected[visible..].Fill(-1);
                return;
            }
            var lists = Lists + (long)(t - Batch) * Ranges;
            var histogram = HistogramOf(scratch);
            var all = new TopK();
            all.Begin(TopK, histogram + Cpu.TopK.ScratchInts, histogram);
            for (var r = 0; r < Ranges && r * RangeRows < visible; r++)
                all.Add(lists[r]);
            all.Best().CopyTo(selected);
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
        _lists.Dispose();
        _memory.Dispose();
        _groups.Dispose();
        _rotary.Dispose();
    }
}

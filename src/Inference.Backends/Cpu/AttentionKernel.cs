// Attention over a token's row set: window rows, then compressed rows (Operators/Attention.cs; deepseek-v4 2.9).
//
// The set is cut into segments of SegmentRows rows, counted from its start, and the heads into groups; a piece of work is a token, a segment and a group
// of heads, so that a row is fetched and decoded once for many heads and one token keeps many threads busy. A piece first brings its rows to F32
// tiles, which stay in the second-level cache and serve the next piece if it has the same rows (ratio 128: all tokens of a sequence); what follows
// does not see how rows are stored. Per head and segment s, in this order:
//   score_r = Scale * Lanes.Sum(one chain of FMAs over the channels);  m_s = max over r;  w_r = exp(score_r - m_s);
//   l_s = Lanes.Sum(w, lane r mod 16);  a_s[d] = sum over r of w_r row_r[d]: one FMA chain per ChunkRows rows, chunks added in order.
// Then per head: M = max(sink, all m_s), f_s = exp(m_s - M), and in the order of s
//   out[d] = (sum of f_s a_s[d]) / (exp(sink - M) + sum of f_s l_s).
// Segments belong to the row set alone, so nothing depends on other tokens, on the grouping of heads, on threads or on where rows lie.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class AttentionKernel(WorkerPool pool) : IDisposable
{
    private const int SegmentRows = 256;
    private const int ChunkRows = 64;
    private const int GroupHeadsMax = 64;
    private const int BlockHeads = 16; // heads whose packed queries share the first-level cache with rows that stream by
    private const int TileChannels = 64;
    private const long PartialFloatsMax = 8L << 20; // 32 MB of segment results at once

    private readonly Scratch _workers = new(), _seen = new(), _partials = new();

    public void Run(in Attention op)
    {
        CpuChecks.Tokens("Attention", op.Tokens, op.Window.PageTable.D0, _seen);
        int tokens = op.Queries.D0, heads = op.Queries.D1, width = op.Queries.D2;
        if (tokens == 0) return;
        var body = new Body
        {
            Queries = op.Queries.F32(),
            QueriesStride = op.Queries.RowStride,
            Output = op.Output.F32(),
            OutputStride = op.Output.RowStride,
            Sequence = op.Tokens.Sequence.I32(),
            Position = op.Tokens.Position.I32(),
            Window = new RowMap(op.Window, RowMap.Operand.AttentionWindow),
            WindowSize = op.WindowSize,
            Compressed = new RowMap(op.Compressed, RowMap.Operand.AttentionCompressed),
            HasCompressed = op.Compressed.IsPresent,
            Codec = new RowCodec(op.Window.Format),
            Ratio = op.Ratio,
            Selected = op.Selected.IsPresent ? op.Selected.I32() : null,
            SelectedStride = op.Selected.IsPresent ? op.Selected.RowStride : 0,
            SelectedMax = op.Selected.D1,
            Sinks = op.Sinks.F32(),
            Scale = op.Scale,
            Heads = heads,
            Width = width,
            WidthPadded = (width + 15) / 16 * 16,
        };
        for (var t = 0; t < tokens;)
            t += Batch(ref body, t, tokens);
    }

    /// <summary>Does as many tokens from <paramref name="first"/> on as there is room for their segments' results; returns their number.</summary>
    private int Batch(ref Body body, int first, int tokens)
    {
        int count = 0, segments = 1;
        long rows = 0;
        for (; first + count < tokens; count++)
        {
            var setRows = body.RowCount(first + count);
            var needed = Math.Max(segments, (int)((setRows + SegmentRows - 1) / SegmentRows));
            if (count > 0 && (count + 1L) * needed * body.Heads * body.PartialStride > PartialFloatsMax) break;
            segments = needed;
            rows += setRows;
        }
        (body.Batch, body.Tokens) = (first, count);
        body.Segments = segments;
        body.GroupHeads = GroupHeadsMax;
        while (body.GroupHeads > 4 && (long)count * segments * body.HeadGroups < 2 * pool.Threads)
            body.GroupHeads /= 2;
        body.Partials = _partials.Get<float>((long)count * segments * body.Heads * body.PartialStride);
        body.Scratch = _workers.Get<float>(body.ScratchFloats * pool.Threads);
        body.Combining = false;
        var items = checked(count * segments * body.HeadGroups);
        pool.For(ref body, items, pool.Grain(2 * rows * body.Heads * body.Width / items));
        body.Combining = true;
        pool.For(ref body, checked(count * body.Heads), pool.Grain((long)segments * body.Width * 2));
        return count;
    }

    private struct Body : IParallelBody
    {
        public float* Queries, Output, Sinks, Scratch, Partials;
        public int* Sequence, Position, Selected;
        public RowMap Window, Compressed;
        public RowCodec Codec;
        public long QueriesStride, OutputStride, SelectedStride;
        public int WindowSize, Ratio, SelectedMax, Heads, Width, WidthPadded;
        public int Batch, Tokens, Segments, GroupHeads;
        public bool HasCompressed, Combining;
        public float Scale;

        public readonly int HeadGroups => (Heads + GroupHeads - 1) / GroupHeads;

        /// <summary>Floats of one head's result of one segment: its sum, then m and l (a whole vector for them, to stay aligned).</summary>
        public readonly int PartialStride => WidthPadded + 16;

        // Per worker: row addresses, weights [heads, rows], packed queries [heads, width], the tiles of a segment, and a row for results that nobody wants.
        public readonly long ScratchFloats => 2L * SegmentRows + GroupHeadsMax * (SegmentRows + WidthPadded) + SegmentRows * TilesWidth + WidthPadded;

        private readonly float* Tiles(float* weights) => weights + GroupHeadsMax * (SegmentRows + WidthPadded);

        private readonly int TilesWidth => (Width + TileChannels - 1) / TileChannels * TileChannels;

        private readonly float* Partial(int t, int segment, int head) =>
            Partials + (((long)(t - Batch) * Segments + segment) * Heads + head) * PartialStride;

        private readonly int FirstPosition(int t) => Math.Max(0, Position[t] - WindowSize + 1);

        private readonly int Visible(int t) => (int)((Position[t] + 1L) / Ratio);

        /// <summary>Rows in token t's set.</summary>
        public readonly long RowCount(int t)
        {
            long rows = Position[t] - FirstPosition(t) + 1L;
            if (!HasCompressed) return rows;
            if (Selected is null) return rows + Visible(t);
            var selected = new ReadOnlySpan<int>(Selected + t * SelectedStride, SelectedMax);
            var count = selected.IndexOf(-1);
            return rows + (count < 0 ? selected.Length : count);
        }

        public readonly void Run(int start, int end, int worker)
        {
            if (Combining)
            {
                for (var item = start; item < end; item++)
                    Combine(Batch + item / Heads, item % Heads);
                return;
            }
            // Pieces in the order of segments, tokens, groups of heads: neighbours often have the same rows, and find them decoded.
            var scratch = Scratch + worker * ScratchFloats;
            var rows = (byte**)scratch;
            var held = default(Held);
            for (var item = start; item < end; item++)
            {
                var (token, group) = Math.DivRem(item, HeadGroups);
                (var segment, token) = Math.DivRem(token, Tokens);
                var t = Batch + token;
                var count = (int)Math.Clamp(RowCount(t) - (long)segment * SegmentRows, 0, SegmentRows);
                if (count == 0) continue;
                float* weights = scratch + 2 * SegmentRows, tiles = Tiles(weights);
                if (!held.Serves(this, t, segment, count))
                {
                    FindRows(t, segment * SegmentRows, rows);
                    Decode(rows, count, tiles);
                    held = new Held { Token = t, Segment = segment, Count = count };
                }
                Attend(t, segment, group * GroupHeads, count, weights, tiles);
            }
        }

        /// <summary>Whose rows the tiles hold.</summary>
        private struct Held
        {
            public int Token, Segment, Count;

            /// <summary>Whether they are a token's too: its own, or compressed rows that another of its sequence has at the same places, behind a window of
            /// the same size.</summary>
            public readonly bool Serves(in Body body, int t, int segment, int count)
            {
                if (Count < count || Segment != segment) return false;
                if (Token == t) return true;
                int window = body.Position[t] - body.FirstPosition(t) + 1, other = body.Position[Token] - body.FirstPosition(Token) + 1;
                return body.Selected is null && body.Sequence[Token] == body.Sequence[t] && window == other && window <= segment * SegmentRows;
            }
        }

        /// <summary>The addresses of a segment's rows, in the documented order.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void FindRows(int t, int first, byte** rows)
        {
            int sequence = Sequence[t], position = Position[t], windowRows = position - FirstPosition(t) + 1;
            var end = (int)Math.Min(RowCount(t), (long)first + SegmentRows);
            var count = 0;
            if (first < windowRows)
                count = Append(Window, sequence, FirstPosition(t) + first, FirstPosition(t) + Math.Min(end, windowRows), rows, 0);
            if (end <= windowRows) return;
            int from = Math.Max(first - windowRows, 0), to = end - windowRows;
            if (Selected is null)
            {
                Append(Compressed, sequence, from, to, rows, count);
                return;
            }
            var selected = Selected + t * SelectedStride;
            for (var i = from; i < to; i++)
            {
                if ((uint)selected[i] >= (uint)Visible(t)) ThrowSelected(t, selected[i]);
                rows[count++] = Compressed.Row(sequence, selected[i]);
            }
        }

        private readonly void ThrowSelected(int t, int row) =>
            throw CpuChecks.Wrong($"Attention.Selected: token {t} at position {Position[t]} selects row {row}, sees {Visible(t)}.");

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static int Append(in RowMap map, int sequence, int first, int end, byte** rows, int count)
        {
            for (var r = first; r < end;)
            {
                var row = map.Row(sequence, r, out var contiguous);
                for (var last = Math.Min((long)end, (long)r + contiguous); r < last; r++, row += map.RowBytes)
                    rows[count++] = row;
            }
            return count;
        }

        /// <summary>One segment for a group of heads: four at a time, the last four filled up with repetitions whose results are dropped.</summary>
        private readonly void Attend(int t, int segment, int head, int count, float* weights, float* tiles)
        {
            var heads = Math.Min(GroupHeads, Heads - head);
            var quads = (heads + 3) / 4;
            var queries = weights + GroupHeadsMax * SegmentRows;
            for (var h = 0; h < 4 * quads; h++)
                PackQuery(Queries + t * QueriesStride + (long)(head + Math.Min(h, heads - 1)) * Width, queries + h / 4 * 4L * WidthPadded + h % 4 * 16);
            for (var quad = 0; quad < quads; quad += BlockHeads / 4)
                Scores(tiles, count, queries + quad * 4L * WidthPadded, Math.Min(BlockHeads / 4, quads - quad), weights + quad * 4 * SegmentRows);
            for (var h = 0; h < 4 * quads; h++)
            {
                var l = Exponentials(weights + h * SegmentRows, count, Scale, out var m);
                if (h >= heads) continue;
                var tail = Partial(t, segment, head + h) + WidthPadded;
                (tail[0], tail[1]) = (m, l);
            }
            Weigh(t, segment, head, heads, tiles, count, weights);
        }

        /// <summary>
        /// The rows of a segment as tiles, [chunk][channels / 64][row][64], filled up with zeros to whole vectors. Rows lie far apart and their width is
        /// often a power of two: read where they are, the rows of a chunk would fall on a few sets of the first-level cache.
        /// </summary>
        private readonly void Decode(byte** rows, int count, float* tiles)
        {
            for (var r = 0; r < count; r++)
            {
                if (r + 2 < count) Codec.Prefetch(rows[r + 2]);
                Codec.Decode(rows[r], tiles + (long)(r / ChunkRows) * ChunkRows * TilesWidth + r % ChunkRows * TileChannels, ChunkRows * TileChannels);
            }
        }

        /// <summary>A query as vectors 64 floats apart, beside those of three other heads; filled up with zeros.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void PackQuery(float* query, float* packed)
        {
            var d = 0;
            for (; d + 16 <= Width; d += 16, packed += 64)
                Vector512.Load(query + d).Store(packed);
            if (d < Width) Lanes.LoadPartial(query + d, Width - d).Store(packed);
        }

        /// <summary>weights[h, r] = q_h . row_r, before scaling. Rows behind the last are whatever the tiles held; their scores fall on places that
        /// Exponentials overwrites.</summary>
        private readonly void Scores(float* tiles, int count, float* queries, int quads, float* weights)
        {
            for (var r = 0; r < count; r += 4)
            {
                var tile = tiles + (long)(r / ChunkRows) * ChunkRows * TilesWidth + r % ChunkRows * TileChannels;
                for (var q = 0; q < quads; q++)
                    Scores4(tile, WidthPadded, queries + q * 4L * WidthPadded, weights + q * 4 * SegmentRows + r);
            }
        }

        /// <summary>Scores of four rows for four heads.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void Scores4(float* tile, int width, float* queries, float* weights)
        {
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            Vector512<float> c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (; width > 0; width -= TileChannels, tile += (ChunkRows - 1) * TileChannels)
            {
                for (var end = tile + Math.Min(width, TileChannels); tile < end; tile += 16, queries += 64)
                {
                    Vector512<float> v0 = Vector512.Load(tile), v1 = Vector512.Load(tile + TileChannels);
                    Vector512<float> v2 = Vector512.Load(tile + 2 * TileChannels), v3 = Vector512.Load(tile + 3 * TileChannels);
                    var q = Vector512.Load(queries);
                    a0 = Vector512.FusedMultiplyAdd(v0, q, a0);
                    a1 = Vector512.FusedMultiplyAdd(v1, q, a1);
                    a2 = Vector512.FusedMultiplyAdd(v2, q, a2);
                    a3 = Vector512.FusedMultiplyAdd(v3, q, a3);
                    q = Vector512.Load(queries + 16);
                    b0 = Vector512.FusedMultiplyAdd(v0, q, b0);
                    b1 = Vector512.FusedMultiplyAdd(v1, q, b1);
                    b2 = Vector512.FusedMultiplyAdd(v2, q, b2);
                    b3 = Vector512.FusedMultiplyAdd(v3, q, b3);
                    q = Vector512.Load(queries + 32);
                    c0 = Vector512.FusedMultiplyAdd(v0, q, c0);
                    c1 = Vector512.FusedMultiplyAdd(v1, q, c1);
                    c2 = Vector512.FusedMultiplyAdd(v2, q, c2);
                    c3 = Vector512.FusedMultiplyAdd(v3, q, c3);
                    q = Vector512.Load(queries + 48);
                    d0 = Vector512.FusedMultiplyAdd(v0, q, d0);
                    d1 = Vector512.FusedMultiplyAdd(v1, q, d1);
                    d2 = Vector512.FusedMultiplyAdd(v2, q, d2);
                    d3 = Vector512.FusedMultiplyAdd(v3, q, d3);
                }
            }
            Lanes.Sum4(a0, a1, a2, a3).Store(weights);
            Lanes.Sum4(b0, b1, b2, b3).Store(weights + SegmentRows);
            Lanes.Sum4(c0, c1, c2, c3).Store(weights + 2 * SegmentRows);
            Lanes.Sum4(d0, d1, d2, d3).Store(weights + 3 * SegmentRows);
        }

        /// <summary>Turns raw scores into exp(scaled score - max); returns their sum. The row of scores has room for whole vectors.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static float Exponentials(float* scores, int count, float scale, out float max)
        {
            var nothing = Vector512.Create(float.NegativeInfinity); // the score of a lane without a row: its weight is 0
            var lane = Vector512.Create(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            var most = nothing;
            for (var r = 0; r < count; r += 16)
            {
                var score = Vector512.Load(scores + r) * Vector512.Create(scale);
                if (count - r < 16) score = Vector512.ConditionalSelect(Vector512.LessThan(lane, Vector512.Create(count - r)).AsSingle(), score, nothing);
                score.Store(scores + r);
                most = Vector512.Max(most, score);
            }
            var half = Vector256.Max(most.GetLower(), most.GetUpper());
            var quarter = Vector128.Max(half.GetLower(), half.GetUpper());
            max = MathF.Max(MathF.Max(quarter[0], quarter[1]), MathF.Max(quarter[2], quarter[3]));
            // All scores minus infinity: subtract 0, so that the weights are 0 and no NaN.
            var shift = Vector512.Create(float.IsNegativeInfinity(max) ? 0 : max);
            var sum = Vector512<float>.Zero;
            for (var r = 0; r < count; r += 16)
            {
                var weight = VectorMath.Exp(Vector512.Load(scores + r) - shift);
                weight.Store(scores + r);
                sum += weight;
            }
            return Lanes.Sum(sum);
        }

        /// <summary>a[h, d] = sum over r of weights[h, r] * row_r[d], into the partial results.</summary>
        private readonly void Weigh(int t, int segment, int head, int heads, float* tiles, int count, float* weights)
        {
            var dropped = tiles + (long)SegmentRows * TilesWidth;
            for (var first = 0; first < count; first += ChunkRows, tiles += ChunkRows * TilesWidth)
            {
                var chunk = Math.Min(ChunkRows, count - first);
                for (var d = 0; d < Width; d += TileChannels)
                {
                    for (var h = 0; h < heads; h += 4)
                    {
                        float* s0 = Partial(t, segment, head + h) + d, s1 = h + 1 < heads ? s0 + PartialStride : dropped;
                        float* s2 = h + 2 < heads ? s1 + PartialStride : dropped, s3 = h + 3 < heads ? s2 + PartialStride : dropped;
                        WeighTile(
                            tiles + d * ChunkRows, chunk, weights + h * SegmentRows + first, s0, s1, s2, s3,
                            (Math.Min(TileChannels, Width - d) + 15) / 16, first == 0);
                    }
                }
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void WeighTile(float* tile, int count, float* weights, float* s0, float* s1, float* s2, float* s3, int vectors, bool fresh)
        {
            if (vectors < 4)
            {
                for (var v = 0; v < vectors; v++)
                    WeighVector(tile + v * 16, count, weights, s0 + v * 16, s1 + v * 16, s2 + v * 16, s3 + v * 16, fresh);
                return;
            }
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            Vector512<float> c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (var r = 0; r < count; r++, tile += TileChannels)
            {
                Vector512<float> v0 = Vector512.Load(tile), v1 = Vector512.Load(tile + 16), v2 = Vector512.Load(tile + 32), v3 = Vector512.Load(tile + 48);
                var w = Vector512.Create(weights[r]);
                a0 = Vector512.FusedMultiplyAdd(v0, w, a0);
                a1 = Vector512.FusedMultiplyAdd(v1, w, a1);
                a2 = Vector512.FusedMultiplyAdd(v2, w, a2);
                a3 = Vector512.FusedMultiplyAdd(v3, w, a3);
                w = Vector512.Create(weights[SegmentRows + r]);
                b0 = Vector512.FusedMultiplyAdd(v0, w, b0);
                b1 = Vector512.FusedMultiplyAdd(v1, w, b1);
                b2 = Vector512.FusedMultiplyAdd(v2, w, b2);
                b3 = Vector512.FusedMultiplyAdd(v3, w, b3);
                w = Vector512.Create(weights[2 * SegmentRows + r]);
                c0 = Vector512.FusedMultiplyAdd(v0, w, c0);
                c1 = Vector512.FusedMultiplyAdd(v1, w, c1);
                c2 = Vector512.FusedMultiplyAdd(v2, w, c2);
                c3 = Vector512.FusedMultiplyAdd(v3, w, c3);
                w = Vector512.Create(weights[3 * SegmentRows + r]);
                d0 = Vector512.FusedMultiplyAdd(v0, w, d0);
                d1 = Vector512.FusedMultiplyAdd(v1, w, d1);
                d2 = Vector512.FusedMultiplyAdd(v2, w, d2);
                d3 = Vector512.FusedMultiplyAdd(v3, w, d3);
            }
            Add(s0, a0, a1, a2, a3, fresh);
            Add(s1, b0, b1, b2, b3, fresh);
            Add(s2, c0, c1, c2, c3, fresh);
            Add(s3, d0, d1, d2, d3, fresh);
        }

        /// <summary>Adds the sums of a chunk; the first chunk finds nothing to add to.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Add(float* sums, Vector512<float> v0, Vector512<float> v1, Vector512<float> v2, Vector512<float> v3, bool fresh)
        {
            if (!fresh)
            {
                v0 += Vector512.Load(sums);
                v1 += Vector512.Load(sums + 16);
                v2 += Vector512.Load(sums + 32);
                v3 += Vector512.Load(sums + 48);
            }
            v0.Store(sums);
            v1.Store(sums + 16);
            v2.Store(sums + 32);
            v3.Store(sums + 48);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static void WeighVector(float* tile, int count, float* weights, float* s0, float* s1, float* s2, float* s3, bool fresh)
        {
            Vector512<float> a = Vector512<float>.Zero, b = a, c = a, d = a;
            for (var r = 0; r < count; r++, tile += TileChannels)
            {
                var v = Vector512.Load(tile);
                a = Vector512.FusedMultiplyAdd(v, Vector512.Create(weights[r]), a);
                b = Vector512.FusedMultiplyAdd(v, Vector512.Create(weights[SegmentRows + r]), b);
                c = Vector512.FusedMultiplyAdd(v, Vector512.Create(weights[2 * SegmentRows + r]), c);
                d = Vector512.FusedMultiplyAdd(v, Vector512.Create(weights[3 * SegmentRows + r]), d);
            }
            (fresh ? a : Vector512.Load(s0) + a).Store(s0);
            (fresh ? b : Vector512.Load(s1) + b).Store(s1);
            (fresh ? c : Vector512.Load(s2) + c).Store(s2);
            (fresh ? d : Vector512.Load(s3) + d).Store(s3);
        }

        /// <summary>Joins the segments of one head.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Combine(int t, int head)
        {
            var segments = (int)((RowCount(t) + SegmentRows - 1) / SegmentRows);
            var max = Sinks[head];
            for (var s = 0; s < segments; s++)
                max = MathF.Max(max, Partial(t, s, head)[WidthPadded]);
            var shift = float.IsNegativeInfinity(max) ? 0 : max;
            var denominator = VectorMath.Exp(Sinks[head] - shift);
            for (var s = 0; s < segments; s++)
            {
                var tail = Partial(t, s, head) + WidthPadded;
                tail[0] = VectorMath.Exp(tail[0] - shift); // from here on the segment's factor
                denominator = MathF.FusedMultiplyAdd(tail[0], tail[1], denominator);
            }
            var output = Output + t * OutputStride + (long)head * Width;
            for (var d = 0; d < Width; d += 16)
            {
                var sum = Vector512<float>.Zero;
                for (var s = 0; s < segments; s++)
                {
                    var partial = Partial(t, s, head);
                    sum = Vector512.FusedMultiplyAdd(Vector512.Create(partial[WidthPadded]), Vector512.Load(partial + d), sum);
                }
                sum /= Vector512.Create(denominator);
                if (d + 16 <= Width) sum.Store(output + d);
                else Lanes.StorePartial(sum, output + d, Width - d);
            }
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
        _partials.Dispose();
    }
}

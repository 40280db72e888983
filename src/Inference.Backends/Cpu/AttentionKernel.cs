// Attention over a token's row set: window rows, then compressed rows (Operators/Attention.cs; deepseek-v4 2.9).
//
// A piece of work is a token and up to HeadBlock of its heads, so that a row is fetched once for several heads. Per head, in this order:
//   score_r = Scale * Lanes.Sum(one chain of FMAs over the channels), rows in the order of the set;
//   m = max(sink, all scores); w_r = exp(score_r - m); den = exp(sink - m) + Lanes.Sum(w, lane r mod 16);
//   out_d = (sum over r of w_r row_r[d]) / den, the sum in chunks of ChunkRows rows: one FMA chain per chunk, chunks added in order.
// Nothing depends on other tokens, other heads or where rows lie.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class AttentionKernel(WorkerPool pool) : IDisposable
{
    private const int HeadBlock = 4;
    private const int ChunkRows = 64;

    private readonly Scratch _workers = new(), _seen = new();

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
            Ratio = op.Ratio,
            Selected = op.Selected.IsPresent ? op.Selected.I32() : null,
            SelectedStride = op.Selected.IsPresent ? op.Selected.RowStride : 0,
            SelectedCount = op.Selected.D1,
            Sinks = op.Sinks.F32(),
            Scale = op.Scale,
            Heads = heads,
            Width = width,
            HeadBlocks = (heads + HeadBlock - 1) / HeadBlock,
        };
        long rowsMax = 1, rowsSum = 0;
        for (var t = 0; t < tokens; t++)
        {
            var rows = body.RowCountMax(t);
            rowsMax = Math.Max(rowsMax, rows);
            rowsSum += rows;
        }
        body.RowsPadded = checked((int)((rowsMax + 15) / 16 * 16));
        body.WidthPadded = (width + 15) / 16 * 16;
        body.ScratchStride = 2L * body.RowsPadded + (long)HeadBlock * (body.RowsPadded + 2 * body.WidthPadded);
        body.Scratch = _workers.Get<float>(body.ScratchStride * pool.Threads);
        pool.For(ref body, checked(tokens * body.HeadBlocks), pool.Grain(2 * rowsSum / tokens * HeadBlock * width));
    }

    private struct Body : IParallelBody
    {
        public float* Queries, Output, Sinks, Scratch;
        public int* Sequence, Position, Selected;
        public RowMap Window, Compressed;
        public long QueriesStride, OutputStride, SelectedStride, ScratchStride;
        public int WindowSize, Ratio, SelectedCount, Heads, Width, HeadBlocks, RowsPadded, WidthPadded;
        public bool HasCompressed;
        public float Scale;

        public readonly long RowCountMax(int t)
        {
            long rows = Math.Min(WindowSize, Position[t] + 1L);
            if (!HasCompressed) return rows;
            return rows + (Selected is null ? (Position[t] + 1L) / Ratio : SelectedCount);
        }

        public readonly void Run(int start, int end, int worker)
        {
            var scratch = Scratch + worker * ScratchStride;
            var rows = (float**)scratch; // [RowsPadded]
            float* weights = scratch + 2L * RowsPadded, queries = weights + (long)HeadBlock * RowsPadded, sums = queries + HeadBlock * WidthPadded;
            int token = -1, count = 0;
            for (var item = start; item < end; item++)
            {
                int t = item / HeadBlocks, head = item % HeadBlocks * HeadBlock;
                if (t != token) count = FindRows(token = t, rows);
                Attend(t, head, Math.Min(HeadBlock, Heads - head), rows, count, weights, queries, sums);
            }
        }

        /// <summary>The addresses of token t's row set, in the documented order.</summary>
        private readonly int FindRows(int t, float** rows)
        {
            int sequence = Sequence[t], position = Position[t], count = 0;
            count = Append(Window, sequence, Math.Max(0, position - WindowSize + 1), position + 1, rows, count);
            if (!HasCompressed) return count;
            var visible = (int)((position + 1L) / Ratio);
            if (Selected is null) return Append(Compressed, sequence, 0, visible, rows, count);
            var selected = Selected + t * SelectedStride;
            for (var i = 0; i < SelectedCount && selected[i] != -1; i++)
            {
                if ((uint)selected[i] >= (uint)visible) ThrowSelected(t, selected[i], visible);
                rows[count++] = Compressed.Row(sequence, selected[i]);
            }
            return count;
        }

        private readonly void ThrowSelected(int t, int row, int visible) =>
            throw CpuChecks.Wrong($"Attention.Selected: token {t} at position {Position[t]} selects row {row}, sees {visible}.");

        private static int Append(in RowMap map, int sequence, int first, int end, float** rows, int count)
        {
            for (var r = first; r < end;)
            {
                var row = map.Row(sequence, r, out var contiguous);
                for (var last = Math.Min((long)end, (long)r + contiguous); r < last; r++, row += map.Width)
                    rows[count++] = row;
            }
            return count;
        }

        private readonly void Attend(int t, int head, int heads, float** rows, int count, float* weights, float* queries, float* sums)
        {
            // A block that is not full repeats its last head; the repetition is computed and dropped.
            for (var h = 0; h < HeadBlock; h++)
            {
                var query = queries + h * WidthPadded;
                ElementwiseKernels.Copy(Queries + t * QueriesStride + (long)Math.Min(head + h, Heads - 1) * Width, query, Width);
                new Span<float>(query + Width, WidthPadded - Width).Clear();
            }
            var r = 0;
            for (; r + 4 <= count; r += 4)
                Scores4(rows + r, queries, weights + r);
            for (; r < count; r++)
                Scores1(rows[r], queries, weights + r);

            var denominators = stackalloc float[HeadBlock];
            for (var h = 0; h < HeadBlock; h++)
                denominators[h] = Softmax(weights + (long)h * RowsPadded, count, Sinks[Math.Min(head + h, Heads - 1)]);

            Weigh(rows, count, weights, sums);
            for (var h = 0; h < heads; h++)
                Divide(sums + h * WidthPadded, denominators[h], Output + t * OutputStride + (long)(head + h) * Width);
        }

        /// <summary>Scores of four rows for the four heads, before scaling: weights[h, 0..3].</summary>
        private readonly void Scores4(float** rows, float* queries, float* weights)
        {
            float* k0 = rows[0], k1 = rows[1], k2 = rows[2], k3 = rows[3];
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            Vector512<float> c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (var d = 0; d < Width; d += 16, queries += 16)
            {
                var lanes = Width - d;
                Vector512<float> v0 = Load(k0 + d, lanes), v1 = Load(k1 + d, lanes), v2 = Load(k2 + d, lanes), v3 = Load(k3 + d, lanes);
                var q = Vector512.Load(queries);
                a0 = Vector512.FusedMultiplyAdd(v0, q, a0);
                a1 = Vector512.FusedMultiplyAdd(v1, q, a1);
                a2 = Vector512.FusedMultiplyAdd(v2, q, a2);
                a3 = Vector512.FusedMultiplyAdd(v3, q, a3);
                q = Vector512.Load(queries + WidthPadded);
                b0 = Vector512.FusedMultiplyAdd(v0, q, b0);
                b1 = Vector512.FusedMultiplyAdd(v1, q, b1);
                b2 = Vector512.FusedMultiplyAdd(v2, q, b2);
                b3 = Vector512.FusedMultiplyAdd(v3, q, b3);
                q = Vector512.Load(queries + 2 * WidthPadded);
                c0 = Vector512.FusedMultiplyAdd(v0, q, c0);
                c1 = Vector512.FusedMultiplyAdd(v1, q, c1);
                c2 = Vector512.FusedMultiplyAdd(v2, q, c2);
                c3 = Vector512.FusedMultiplyAdd(v3, q, c3);
                q = Vector512.Load(queries + 3 * WidthPadded);
                d0 = Vector512.FusedMultiplyAdd(v0, q, d0);
                d1 = Vector512.FusedMultiplyAdd(v1, q, d1);
                d2 = Vector512.FusedMultiplyAdd(v2, q, d2);
                d3 = Vector512.FusedMultiplyAdd(v3, q, d3);
            }
            Store4(a0, a1, a2, a3, weights);
            Store4(b0, b1, b2, b3, weights + RowsPadded);
            Store4(c0, c1, c2, c3, weights + 2L * RowsPadded);
            Store4(d0, d1, d2, d3, weights + 3L * RowsPadded);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Store4(Vector512<float> s0, Vector512<float> s1, Vector512<float> s2, Vector512<float> s3, float* weights)
        {
            weights[0] = Lanes.Sum(s0);
            weights[1] = Lanes.Sum(s1);
            weights[2] = Lanes.Sum(s2);
            weights[3] = Lanes.Sum(s3);
        }

        private readonly void Scores1(float* row, float* queries, float* weights)
        {
            for (var h = 0; h < HeadBlock; h++, queries += WidthPadded, weights += RowsPadded)
            {
                var sum = Vector512<float>.Zero;
                for (var d = 0; d < Width; d += 16)
                    sum = Vector512.FusedMultiplyAdd(Load(row + d, Width - d), Vector512.Load(queries + d), sum);
                *weights = Lanes.Sum(sum);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<float> Load(float* source, int lanes) => lanes >= 16 ? Vector512.Load(source) : Lanes.LoadPartial(source, lanes);

        /// <summary>Turns raw scores into exp(score - max) and returns the denominator.</summary>
        private readonly float Softmax(float* scores, int count, float sink)
        {
            var scale = Vector512.Create(Scale);
            var nothing = Vector512.Create(float.NegativeInfinity); // the score of a lane without a row: its weight is 0
            var lane = Vector512.Create(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            var max = Vector512.Create(sink);
            for (var r = 0; r < count; r += 16)
            {
                var score = Vector512.Load(scores + r) * scale;
                if (count - r < 16) score = Vector512.ConditionalSelect(Vector512.LessThan(lane, Vector512.Create(count - r)).AsSingle(), score, nothing);
                score.Store(scores + r); // the row of scores has room for whole vectors
                max = Vector512.Max(max, score);
            }
            var m = max.GetElement(0);
            for (var i = 1; i < 16; i++)
                m = MathF.Max(m, max.GetElement(i));
            var sum = Vector512<float>.Zero;
            for (var r = 0; r < count; r += 16)
            {
                var weight = VectorMath.Exp(Vector512.Load(scores + r) - Vector512.Create(m));
                weight.Store(scores + r);
                sum += weight;
            }
            return VectorMath.Exp(sink - m) + Lanes.Sum(sum);
        }

        /// <summary>sums[h, d] = sum over r of weights[h, r] * row_r[d] for the four heads.</summary>
        private readonly void Weigh(float** rows, int count, float* weights, float* sums)
        {
            new Span<float>(sums, HeadBlock * WidthPadded).Clear();
            for (var first = 0; first < count; first += ChunkRows)
            {
                var end = Math.Min(first + ChunkRows, count);
                var d = 0;
                for (; d + 64 <= Width; d += 64)
                    Weigh4(rows, first, end, weights, d, sums + d);
                for (; d < Width; d += 16)
                    Weigh1(rows, first, end, weights, d, sums + d);
            }
        }

        /// <summary>Sixty-four channels of one chunk for the four heads.</summary>
        private readonly void Weigh4(float** rows, int first, int end, float* weights, int d, float* sums)
        {
            float* h0 = weights, h1 = h0 + RowsPadded, h2 = h1 + RowsPadded, h3 = h2 + RowsPadded;
            Vector512<float> a0 = Vector512<float>.Zero, a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            Vector512<float> c0 = a0, c1 = a0, c2 = a0, c3 = a0, d0 = a0, d1 = a0, d2 = a0, d3 = a0;
            for (var r = first; r < end; r++)
            {
                var row = rows[r] + d;
                Vector512<float> v0 = Vector512.Load(row), v1 = Vector512.Load(row + 16), v2 = Vector512.Load(row + 32), v3 = Vector512.Load(row + 48);
                var w = Vector512.Create(h0[r]);
                a0 = Vector512.FusedMultiplyAdd(v0, w, a0);
                a1 = Vector512.FusedMultiplyAdd(v1, w, a1);
                a2 = Vector512.FusedMultiplyAdd(v2, w, a2);
                a3 = Vector512.FusedMultiplyAdd(v3, w, a3);
                w = Vector512.Create(h1[r]);
                b0 = Vector512.FusedMultiplyAdd(v0, w, b0);
                b1 = Vector512.FusedMultiplyAdd(v1, w, b1);
                b2 = Vector512.FusedMultiplyAdd(v2, w, b2);
                b3 = Vector512.FusedMultiplyAdd(v3, w, b3);
                w = Vector512.Create(h2[r]);
                c0 = Vector512.FusedMultiplyAdd(v0, w, c0);
                c1 = Vector512.FusedMultiplyAdd(v1, w, c1);
                c2 = Vector512.FusedMultiplyAdd(v2, w, c2);
                c3 = Vector512.FusedMultiplyAdd(v3, w, c3);
                w = Vector512.Create(h3[r]);
                d0 = Vector512.FusedMultiplyAdd(v0, w, d0);
                d1 = Vector512.FusedMultiplyAdd(v1, w, d1);
                d2 = Vector512.FusedMultiplyAdd(v2, w, d2);
                d3 = Vector512.FusedMultiplyAdd(v3, w, d3);
            }
            Add4(a0, a1, a2, a3, sums);
            Add4(b0, b1, b2, b3, sums + WidthPadded);
            Add4(c0, c1, c2, c3, sums + 2 * WidthPadded);
            Add4(d0, d1, d2, d3, sums + 3 * WidthPadded);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Add4(Vector512<float> s0, Vector512<float> s1, Vector512<float> s2, Vector512<float> s3, float* sums)
        {
            (Vector512.Load(sums) + s0).Store(sums);
            (Vector512.Load(sums + 16) + s1).Store(sums + 16);
            (Vector512.Load(sums + 32) + s2).Store(sums + 32);
            (Vector512.Load(sums + 48) + s3).Store(sums + 48);
        }

        private readonly void Weigh1(float** rows, int first, int end, float* weights, int d, float* sums)
        {
            var lanes = Width - d;
            for (var h = 0; h < HeadBlock; h++, weights += RowsPadded, sums += WidthPadded)
            {
                var sum = Vector512<float>.Zero;
                for (var r = first; r < end; r++)
                    sum = Vector512.FusedMultiplyAdd(Load(rows[r] + d, lanes), Vector512.Create(weights[r]), sum);
                (Vector512.Load(sums) + sum).Store(sums);
            }
        }

        private readonly void Divide(float* sums, float denominator, float* output)
        {
            var d = 0;
            for (; d + 16 <= Width; d += 16)
                (Vector512.Load(sums + d) / Vector512.Create(denominator)).Store(output + d);
            for (; d < Width; d++)
                output[d] = sums[d] / denominator;
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
    }
}

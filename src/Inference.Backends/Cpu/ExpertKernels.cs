// Routed experts: (token, slot) pairs are grouped by expert, so that an expert's weights are read and decoded once for all its tokens; the
// pieces of work are (expert, block of rows).
//
// Bits: a pair's dot products are those of MatVec; Output of the down projection is ((shared + y_0) + y_1) + ... in the order of the slots, y_s
// each rounded to F32. So neither the grouping nor what other tokens chose changes a token.
// Owns its scratch; one call at a time.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class ExpertKernels(WorkerPool pool) : IDisposable
{
    private const int RowBlock = Gemm.Block;

    private readonly Scratch _packed = new(), _lists = new(), _views = new(), _workers = new(), _down = new();

    /// <summary>The pairs of a call, sorted by expert and, within an expert, by pair.</summary>
    private struct Grouping
    {
        public int* Pairs; // [pair count] token * perToken + slot
        public int* Experts; // [Active] ids of experts that have pairs
        public int* Starts; // [Active + 1] into Pairs
        public int Active;

        /// <summary>The batch of group g that starts with pair <paramref name="first"/> of the sorted pairs.</summary>
        public readonly PackedBatch Batch(int g, int first, float* packed, int vectors) =>
            new(packed + PackedBatch.Floats(first, vectors), Math.Min(Gemm.TokensMax, Starts[g + 1] - first), vectors);
    }

    public void Run(in ExpertGateUp op)
    {
        int tokens = op.Input.D0, perToken = op.ExpertIds.D1;
        if (tokens == 0) return;
        var groups = Group("ExpertGateUp.ExpertIds", op.ExpertIds, op.Gate.Length);
        var views = Views(op.Gate, groups, 0, 2);
        Views(op.Up, groups, 1, 2);

        var x = Pack(views[0], groups, op.Input.F32(), op.Input.RowStride, perToken, slotStride: 0);
        var tokensMax = Math.Min(Gemm.TokensMax, tokens * perToken);
        var body = new GateUpBody
        {
            Groups = groups,
            Views = views,
            X = x,
            Weights = op.ExpertWeights.F32(),
            WeightsStride = op.ExpertWeights.RowStride,
            PerToken = perToken,
            Limit = op.Limit,
            Inner = op.Output.D2,
            Output = op.Output.F32(),
            OutputStride = op.Output.RowStride,
            TokensMax = tokensMax,
            ScratchStride = Gemm.ScratchFloats(tokensMax) + 2L * tokensMax * RowBlock + 2L * tokensMax,
        };
        body.Scratch = _workers.Get<float>(body.ScratchStride * pool.Threads);
        var blocks = (body.Inner + RowBlock - 1) / RowBlock;
        body.Blocks = blocks;
        var work = 2L * RowBlock * op.Input.D1 * tokens * perToken / groups.Active;
        pool.For(ref body, checked(groups.Active * blocks), pool.Grain(work));
    }

    public void Run(in ExpertDownCombine op)
    {
        // Results of all pairs wait in memory until they are combined; a long batch goes in tiles of at most 256 MB of them.
        int tokens = op.Hidden.D0, perToken = op.Hidden.D1, width = op.Output.D1;
        var tile = (int)Math.Clamp((64L << 20) / ((long)perToken * width), 1, Math.Max(tokens, 1));
        for (var t = 0; t < tokens; t += tile)
            DownTile(op, t, Math.Min(tile, tokens - t));
    }

    private void DownTile(in ExpertDownCombine op, int first, int tokens)
    {
        int perToken = op.Hidden.D1, inner = op.Hidden.D2, width = op.Output.D1;
        var groups = Group("ExpertDownCombine.ExpertIds", op.ExpertIds.Slice(first, tokens), op.Down.Length);
        var views = Views(op.Down, groups, 0, 1);
        var pairs = tokens * perToken;
        var x = Pack(views[0], groups, op.Hidden.F32(first), op.Hidden.RowStride, perToken, slotStride: inner);
        var tokensMax = Math.Min(Gemm.TokensMax, pairs);
        var body = new DownBody
        {
            Groups = groups,
            Views = views,
            X = x,
            Width = width,
            Blocks = (width + RowBlock - 1) / RowBlock,
            Results = _down.Get<float>((long)pairs * width),
            TokensMax = tokensMax,
            ScratchStride = Gemm.ScratchFloats(tokensMax) + 2L * tokensMax,
        };
        body.Scratch = _workers.Get<float>(body.ScratchStride * pool.Threads);
        var work = (long)RowBlock * inner * pairs / groups.Active;
        pool.For(ref body, checked(groups.Active * body.Blocks), pool.Grain(work));

        var combine = new CombineBody
        {
            Results = body.Results,
            Shared = op.Shared.IsPresent ? op.Shared.F32(first) : null,
            SharedStride = op.Shared.IsPresent ? op.Shared.RowStride : 0,
            Output = op.Output.F32(first),
            OutputStride = op.Output.RowStride,
            PerToken = perToken,
            Width = width,
        };
        pool.For(ref combine, tokens, pool.Grain((long)perToken * width * 2));
    }

    /// <summary>Sorts the pairs by expert (counting sort: stable, linear).</summary>
    private Grouping Group(string operand, in Tensor ids, int experts)
    {
        int tokens = ids.D0, perToken = ids.D1, pairs = tokens * perToken;
        var memory = _lists.Get<int>((long)pairs + 3L * experts + 2);
        int* counts = memory, active = counts + experts, starts = active + experts, sorted = starts + experts + 1;
        new Span<int>(counts, experts).Clear();
        for (var t = 0; t < tokens; t++)
        {
            for (var s = 0; s < perToken; s++)
            {
                var id = ids.I32(t)[s];
                if ((uint)id >= (uint)experts)
                    throw CpuChecks.Wrong($"{operand}: slot {s} of token {t} is {id}, which is not in 0..{experts - 1}.");
                counts[id]++;
            }
        }
        int groups = 0, start = 0;
        for (var e = 0; e < experts; e++)
        {
            if (counts[e] == 0) continue;
            active[groups] = e;
            starts[groups++] = start;
            var count = counts[e];
            counts[e] = start; // from here on: where the expert's next pair goes
            start += count;
        }
        starts[groups] = start;
        for (var t = 0; t < tokens; t++)
        {
            for (var s = 0; s < perToken; s++)
                sorted[counts[ids.I32(t)[s]]++] = t * perToken + s;
        }
        return new Grouping { Pairs = sorted, Experts = active, Starts = starts, Active = groups };
    }

    /// <summary>The active experts' weights as plain data: entry g * step + offset.</summary>
    private WeightView* Views(PreparedWeight[] weights, in Grouping groups, int offset, int step)
    {
        var views = _views.Get<WeightView>((long)groups.Active * step);
        for (var g = 0; g < groups.Active; g++)
        {
            ref readonly var view = ref ((CpuWeight)weights[groups.Experts[g]]).View;
            views[g * step + offset] = view;
            if (view.Format != views[0].Format)
                throw CpuChecks.Wrong($"Experts of one layer must be stored alike: '{weights[groups.Experts[0]].Name}' is {weights[groups.Experts[0]].Scheme}, '{weights[groups.Experts[g]].Name}' is {weights[groups.Experts[g]].Scheme}.");
        }
        return views;
    }

    /// <summary>
    /// The activations of all pairs in the order of the grouping, packed in batches of at most <see cref="Gemm.TokensMax"/> tokens of one expert: the batch
    /// that starts with pair i lies at i x vectors x 16 floats.
    /// </summary>
    /// <param name="slotStride">Floats from a token's slot to the next; 0 if all slots share the token's vector.</param>
    private float* Pack(in WeightView w, in Grouping groups, float* input, long inputStride, int perToken, int slotStride)
    {
        var pairs = groups.Starts[groups.Active];
        var body = new PackBody
        {
            Weight = w,
            Groups = groups,
            Input = input,
            InputStride = inputStride,
            SlotStride = slotStride,
            PerToken = perToken,
            Packed = _packed.Get<float>(PackedBatch.Floats(pairs, w.Vectors)),
        };
        pool.For(ref body, groups.Active, pool.Grain(w.Columns * 4L * pairs / groups.Active));
        return body.Packed;
    }

    private struct PackBody : IParallelBody
    {
        public WeightView Weight;
        public Grouping Groups;
        public float* Input, Packed;
        public long InputStride;
        public int SlotStride, PerToken;

        public readonly void Run(int start, int end, int worker)
        {
            for (var g = start; g < end; g++)
            {
                for (var first = Groups.Starts[g]; first < Groups.Starts[g + 1]; first += Gemm.TokensMax)
                {
                    var batch = Groups.Batch(g, first, Packed, Weight.Vectors);
                    for (var i = 0; i < batch.Tokens; i++)
                    {
                        var (t, s) = Math.DivRem(Groups.Pairs[first + i], PerToken);
                        batch.Pack(Weight, i, Input + t * InputStride + (long)s * SlotStride);
                    }
                }
            }
        }
    }

    private struct GateUpBody : IParallelBody
    {
        public Grouping Groups;
        public WeightView* Views; // [active, 2]: gate, up
        public float* X, Weights, Output, Scratch;
        public long WeightsStride, OutputStride, ScratchStride;
        public int PerToken, Inner, Blocks, TokensMax;
        public float Limit;

        public readonly void Run(int start, int end, int worker)
        {
            var scratch = Scratch + worker * ScratchStride;
            float* gate = scratch + Gemm.ScratchFloats(TokensMax), up = gate + TokensMax * RowBlock;
            var y = (float**)(up + TokensMax * RowBlock);
            for (var item = start; item < end; item++)
            {
                int g = item / Blocks, n = item % Blocks * RowBlock, stop = Math.Min(n + RowBlock, Inner);
                for (var first = Groups.Starts[g]; first < Groups.Starts[g + 1]; first += Gemm.TokensMax)
                {
                    var x = Groups.Batch(g, first, X, Views[2 * g].Vectors);
                    Multiply(Views[2 * g], n, stop, x, y, gate, scratch);
                    Multiply(Views[2 * g + 1], n, stop, x, y, up, scratch);
                    for (var i = 0; i < x.Tokens; i++)
                        Finish(Groups.Pairs[first + i], n, stop - n, gate + i * RowBlock, up + i * RowBlock);
                }
            }
        }

        private static void Multiply(in WeightView w, int n, int stop, in PackedBatch x, float** y, float* results, float* scratch)
        {
            for (var i = 0; i < x.Tokens; i++)
                y[i] = results + i * RowBlock - n;
            if (x.Tokens == 1) MatVec.Rows(w, n, stop, x.Group(0), y[0]);
            else Gemm.Rows(w, n, stop, x, y, scratch);
        }

        private readonly void Finish(int pair, int n, int rows, float* gate, float* up)
        {
            var (t, s) = Math.DivRem(pair, PerToken);
            var weight = Weights[t * WeightsStride + s];
            ElementwiseKernels.SwiGlu(gate, up, Limit, weight, Output + t * OutputStride + (long)s * Inner + n, rows);
        }
    }

    private struct DownBody : IParallelBody
    {
        public Grouping Groups;
        public WeightView* Views; // [active]
        public float* X, Results, Scratch; // results [pairs, width]
        public long ScratchStride;
        public int Width, Blocks, TokensMax;

        public readonly void Run(int start, int end, int worker)
        {
            var scratch = Scratch + worker * ScratchStride;
            var y = (float**)(scratch + Gemm.ScratchFloats(TokensMax));
            for (var item = start; item < end; item++)
            {
                int g = item / Blocks, n = item % Blocks * RowBlock, stop = Math.Min(n + RowBlock, Width);
                for (var first = Groups.Starts[g]; first < Groups.Starts[g + 1]; first += Gemm.TokensMax)
                {
                    var x = Groups.Batch(g, first, X, Views[g].Vectors);
                    for (var i = 0; i < x.Tokens; i++)
                        y[i] = Results + (long)Groups.Pairs[first + i] * Width;
                    if (x.Tokens == 1) MatVec.Rows(Views[g], n, stop, x.Group(0), y[0]);
                    else Gemm.Rows(Views[g], n, stop, x, y, scratch);
                }
            }
        }
    }

    private struct CombineBody : IParallelBody
    {
        public float* Results, Shared, Output;
        public long SharedStride, OutputStride;
        public int PerToken, Width;

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public readonly void Run(int start, int end, int worker)
        {
            for (long t = start; t < end; t++)
            {
                var results = Results + t * PerToken * Width;
                var shared = Shared is null ? null : Shared + t * SharedStride;
                var output = Output + t * OutputStride;
                var d = 0;
                for (; d + 16 <= Width; d += 16)
                {
                    var sum = shared is null ? Vector512<float>.Zero : Vector512.Load(shared + d);
                    for (var s = 0; s < PerToken; s++)
                        sum += Vector512.Load(results + (long)s * Width + d);
                    sum.Store(output + d);
                }
                for (; d < Width; d++)
                {
                    var sum = shared is null ? 0 : shared[d];
                    for (var s = 0; s < PerToken; s++)
                        sum += results[(long)s * Width + d];
                    output[d] = sum;
                }
            }
        }
    }

    public void Dispose()
    {
        _packed.Dispose();
        _lists.Dispose();
        _views.Dispose();
        _workers.Dispose();
        _down.Dispose();
    }
}

// Linear layers: packs the activations once, cuts the rows of the weight into blocks, and gives each block to MatVec (one token) or Gemm.
// Owns the packed activations and the workers' scratch of all matrix products; one call at a time.
// Bits: see MatVec. Blocks, tiles and threads decide who computes a sum, never how.
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class LinearKernel(WorkerPool pool) : IDisposable
{
    private const int RowBlock = Gemm.Block;

    private readonly Scratch _packed = new(), _pointers = new(), _workers = new();

    public void Run(in Linear op) => Run(((CpuWeight)op.Weight).View, op.Input.F32(), op.Input.RowStride, op.Input.D0, op.Output.F32(), op.Output.RowStride);

    public void Run(in GroupedLinear op) =>
        Run(((CpuWeight)op.Weight).View, op.Input.F32(), op.Input.RowStride, op.Input.D0, op.Output.F32(), op.Output.RowStride, op.Input.D1);

    /// <summary>y[t, g, n] = sum over k of w[g N + n, k] x[t, g, k]; one group is the plain linear layer.</summary>
    /// <param name="x">Row t starts at x + t * xStride and holds groups x columns floats.</param>
    /// <param name="y">Row t starts at y + t * yStride and gets w.Rows floats.</param>
    public void Run(in WeightView w, float* x, long xStride, int tokens, float* y, long yStride, int groups = 1)
    {
        for (var t = 0; t < tokens; t += Gemm.TokensMax)
            Tile(w, x + t * xStride, xStride, Math.Min(Gemm.TokensMax, tokens - t), y + t * yStride, yStride, groups);
    }

    private void Tile(in WeightView w, float* x, long xStride, int tokens, float* y, long yStride, int groups)
    {
        var body = new Body
        {
            Weight = w,
            X = x,
            Stride = PackedBatch.Floats(tokens, w.Vectors),
            Y = (float**)_pointers.Get<nint>(tokens),
            Tokens = tokens,
            GroupRows = w.Rows / groups,
            ScratchStride = tokens == 1 ? 0 : Gemm.ScratchFloats(tokens),
        };
        for (var t = 0; t < tokens; t++)
            body.Y[t] = y + t * yStride;
        if (tokens > 1) body.Scratch = _workers.Get<float>(body.ScratchStride * pool.Threads);
        if (tokens > 1 || NeedsPacking(w))
        {
            body.X = _packed.Get<float>(body.Stride * groups);
            var pack = new PackBody { Weight = w, Source = x, SourceStride = xStride, Tokens = tokens, Packed = body.X, Stride = body.Stride };
            pool.For(ref pack, tokens * groups, pool.Grain(w.Columns * 4L));
        }
        else
        {
            body.Stride = w.Columns; // the vectors of the groups as they lie
        }
        var blocks = (w.Rows + RowBlock - 1) / RowBlock;
        pool.For(ref body, blocks, pool.Grain((long)RowBlock * w.Columns * tokens));
    }

    /// <summary>Whether even a single vector must be copied: the kernels want the format's order, and whole vectors.</summary>
    private static bool NeedsPacking(in WeightView w) => w.Format >= WeightFormat.Fp8 || w.Columns % 16 != 0;

    private struct PackBody : IParallelBody
    {
        public WeightView Weight;
        public float* Source, Packed;
        public long SourceStride, Stride;
        public int Tokens;

        public readonly void Run(int start, int end, int worker)
        {
            for (var i = start; i < end; i++)
            {
                var (group, t) = Math.DivRem(i, Tokens);
                new PackedBatch(Packed + group * Stride, Tokens, Weight.Vectors).Pack(Weight, t, Source + t * SourceStride + (long)group * Weight.Columns);
            }
        }
    }

    private struct Body : IParallelBody
    {
        public WeightView Weight;
        public float* X; // one batch per group, Stride floats apart
        public float** Y; // [tokens]
        public float* Scratch;
        public long Stride, ScratchStride;
        public int Tokens, GroupRows;

        public readonly void Run(int start, int end, int worker)
        {
            int n = start * RowBlock, stop = Math.Min(end * RowBlock, Weight.Rows);
            while (n < stop)
            {
                var group = n / GroupRows;
                var groupEnd = Math.Min(stop, (group + 1) * GroupRows);
                var x = X + group * Stride;
                if (Tokens == 1) MatVec.Rows(Weight, n, groupEnd, x, Y[0]);
                else Gemm.Rows(Weight, n, groupEnd, new PackedBatch(x, Tokens, Weight.Vectors), Y, Scratch + worker * ScratchStride);
                n = groupEnd;
            }
        }
    }

    public void Dispose()
    {
        _packed.Dispose();
        _pointers.Dispose();
        _workers.Dispose();
    }
}

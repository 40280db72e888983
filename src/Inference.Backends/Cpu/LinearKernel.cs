// Linear layers: packs the activations once, cuts the rows of the weight into blocks, and gives each block to MatVec (one token) or Gemm.
// Owns the packed activations and the workers' scratch of all matrix products; one call at a time.
// Bits: see MatVec. Blocks, tiles and threads decide who computes a sum, never how.
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class LinearKernel(WorkerPool pool) : IDisposable
{
    private const int RowBlock = Gemm.Panel;

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
        var vectors = w.Vectors;
        var pointers = (float**)_pointers.Get<nint>((long)tokens * (groups + 1));
        var body = new Body
        {
            Weight = w,
            X = pointers,
            Y = pointers + (long)tokens * groups,
            Tokens = tokens,
            GroupRows = w.Rows / groups,
            ScratchStride = tokens == 1 ? 0 : Gemm.ScratchFloats(tokens),
        };
        body.Scratch = tokens == 1 ? null : _workers.Get<float>(body.ScratchStride * pool.Threads);
        for (var t = 0; t < tokens; t++)
        {
            for (var g = 0; g < groups; g++)
                body.X[g * tokens + t] = x + t * xStride + (long)g * w.Columns;
            body.Y[t] = y + t * yStride;
        }
        if (NeedsPacking(w)) PackAll(w, body.X, tokens * groups);

        var blocks = (w.Rows + RowBlock - 1) / RowBlock;
        pool.For(ref body, blocks, pool.Grain((long)RowBlock * vectors * 16 * tokens));
    }

    public static bool NeedsPacking(in WeightView w) => w.Format >= WeightFormat.Fp8 || w.Columns % 16 != 0;

    /// <summary>Replaces every vector by its packed copy.</summary>
    private void PackAll(in WeightView w, float** vectors, int count)
    {
        long stride = w.Vectors * 16;
        var pack = new PackBody { Weight = w, Vectors = vectors, Packed = _packed.Get<float>(stride * count), Stride = stride };
        pool.For(ref pack, count, pool.Grain(w.Columns * 4L));
    }

    private struct PackBody : IParallelBody
    {
        public WeightView Weight;
        public float** Vectors;
        public float* Packed;
        public long Stride;

        public readonly void Run(int start, int end, int worker)
        {
            for (var i = start; i < end; i++)
            {
                WeightDecoders.Pack(Weight, Vectors[i], Packed + i * Stride);
                Vectors[i] = Packed + i * Stride;
            }
        }
    }

    private struct Body : IParallelBody
    {
        public WeightView Weight;
        public float** X; // [groups, tokens]
        public float** Y; // [tokens]
        public float* Scratch;
        public long ScratchStride;
        public int Tokens, GroupRows;

        public readonly void Run(int start, int end, int worker)
        {
            int n = start * RowBlock, stop = Math.Min(end * RowBlock, Weight.Rows);
            while (n < stop)
            {
                var group = n / GroupRows;
                var groupEnd = Math.Min(stop, (group + 1) * GroupRows);
                var x = X + (long)group * Tokens;
                if (Tokens == 1) MatVec.Rows(Weight, n, groupEnd, x[0], Y[0]);
                else Gemm.Rows(Weight, n, groupEnd, x, Y, Tokens, Scratch + worker * ScratchStride);
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

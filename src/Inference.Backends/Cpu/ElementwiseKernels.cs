// Embedding, gathering, RMSNorm, SwiGLU: a pass over memory each. Elements are computed on their own; the one sum (RMSNorm's mean of squares)
// is Lanes.SumOfSquares. Nothing is owned here.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal static unsafe class ElementwiseKernels
{
    public static void Run(in Embed op)
    {
        var table = (CpuWeight)op.Table;
        int copies = op.Output.D1, width = op.Output.D2;
        for (var t = 0; t < op.Ids.D0; t++)
        {
            var row = CpuChecks.Index("Embed.Ids", "token", t, op.Ids.I32()[t], table.Rows);
            var output = op.Output.F32(t);
            DecodeRow(table, row, output);
            for (var s = 1; s < copies; s++)
                Copy(output, output + (long)s * width, width);
        }
    }

    private static void DecodeRow(CpuWeight table, int row, float* output)
    {
        ref readonly var w = ref table.View;
        switch (w.Format)
        {
            case WeightFormat.F32: Copy((float*)w.Row(row), output, w.Columns); break;
            case WeightFormat.BF16: DecodeNatural<BF16Format>(w.Row(row), w.Columns, output); break;
            case WeightFormat.F16: DecodeNatural<F16Format>(w.Row(row), w.Columns, output); break;
            default:
                for (var i = 0; i < w.Columns; i++)
                    output[i] = table.At(row, i);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void DecodeNatural<TFormat>(byte* row, int count, float* output) where TFormat : struct, INaturalFormat
    {
        var i = 0;
        for (; i + 16 <= count; i += 16)
            TFormat.Load(row + i * TFormat.BytesPerElement).Store(output + i);
        if (i < count) Lanes.StorePartial(MatVec.LoadTail<TFormat>(row + i * TFormat.BytesPerElement, count - i), output + i, count - i);
    }

    public static void Copy(float* source, float* destination, long count) =>
        Buffer.MemoryCopy(source, destination, count * sizeof(float), count * sizeof(float));

    public static void Run(in GatherRows op)
    {
        for (var m = 0; m < op.Rows.D0; m++)
        {
            var source = CpuChecks.Index("GatherRows.Rows", "entry", m, op.Rows.I32()[m], op.Input.D0);
            Copy(op.Input.F32(source), op.Output.F32(m), op.Input.RowElements);
        }
    }

    public static void Run(in RmsNorm op, WorkerPool pool)
    {
        var heads = op.Input.Rank == 2 ? 1 : op.Input.D1;
        var body = new NormBody
        {
            Input = op.Input.F32(),
            Output = op.Output.F32(),
            Weight = op.Weight.IsPresent ? op.Weight.F32() : null,
            InputStride = op.Input.RowStride,
            OutputStride = op.Output.RowStride,
            Heads = heads,
            Width = op.Input.Rank == 2 ? op.Input.D1 : op.Input.D2,
            Epsilon = op.Epsilon,
        };
        pool.For(ref body, checked(op.Input.D0 * heads), pool.Grain(body.Width * 2L));
    }

    private struct NormBody : IParallelBody
    {
        public float* Input, Output, Weight;
        public long InputStride, OutputStride;
        public int Heads, Width;
        public float Epsilon;

        public readonly void Run(int start, int end, int worker)
        {
            for (var i = start; i < end; i++)
            {
                long t = i / Heads, h = i % Heads;
                Norm(Input + t * InputStride + h * Width, Weight, Width, Epsilon, Output + t * OutputStride + h * Width);
            }
        }
    }

    /// <summary>output = (input * rho) * weight, rho = 1 / sqrt(mean(input^2) + epsilon) rounded to F32. A null weight is all ones.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Norm(float* input, float* weight, int width, float epsilon, float* output)
    {
        var rho = (float)Lanes.InverseRms(input, width, epsilon);
        var scale = Vector512.Create(rho);
        var i = 0;
        for (; i + 16 <= width; i += 16)
        {
            var v = Vector512.Load(input + i) * scale;
            if (weight is not null) v *= Vector512.Load(weight + i);
            v.Store(output + i);
        }
        for (; i < width; i++)
            output[i] = weight is null ? input[i] * rho : input[i] * rho * weight[i];
    }

    public static void Run(in SwiGlu op, WorkerPool pool)
    {
        var body = new SwiGluBody
        {
            Gate = op.Gate.F32(),
            Up = op.Up.F32(),
            Output = op.Output.F32(),
            GateStride = op.Gate.RowStride,
            UpStride = op.Up.RowStride,
            OutputStride = op.Output.RowStride,
            Width = op.Gate.D1,
            Limit = op.Limit,
        };
        pool.For(ref body, op.Gate.D0, pool.Grain(body.Width * 20L));
    }

    private struct SwiGluBody : IParallelBody
    {
        public float* Gate, Up, Output;
        public long GateStride, UpStride, OutputStride;
        public int Width;
        public float Limit;

        public readonly void Run(int start, int end, int worker)
        {
            for (long t = start; t < end; t++)
                SwiGlu(Gate + t * GateStride, Up + t * UpStride, Limit, 1, Output + t * OutputStride, Width);
        }
    }

    /// <summary>output = scale * (silu(min(gate, limit)) * clamp(up, -limit, limit)).</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void SwiGlu(float* gate, float* up, float limit, float scale, float* output, int count)
    {
        var i = 0;
        for (; i + 16 <= count; i += 16)
            SwiGlu(Vector512.Load(gate + i), Vector512.Load(up + i), limit, scale).Store(output + i);
        if (i == count) return;
        var rest = count - i;
        Lanes.StorePartial(SwiGlu(Lanes.LoadPartial(gate + i, rest), Lanes.LoadPartial(up + i, rest), limit, scale), output + i, rest);
    }

    private static Vector512<float> SwiGlu(Vector512<float> gate, Vector512<float> up, float limit, float scale)
    {
        gate = Vector512.Min(gate, Vector512.Create(limit));
        up = Vector512.Max(Vector512.Min(up, Vector512.Create(limit)), Vector512.Create(-limit));
        return Vector512.Create(scale) * (VectorMath.Silu(gate) * up);
    }
}

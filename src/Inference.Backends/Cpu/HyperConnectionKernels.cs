// Hyper-connections: coefficients of a site, collapse of the streams, and their update (Operators/HyperConnections.cs; deepseek-v4 2.3).
//
// The mix is a linear layer; rho = 1 / sqrt(mean(x^2) + eps) in double, rounded once; coefficients in F32, sums over streams in the order of
// the stream, fma(weight_j, stream_j, sum). Sinkhorn sums a row or column in the order of the index.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class HyperConnectionKernels(WorkerPool pool, LinearKernel linear) : IDisposable
{
    private readonly Scratch _mixed = new();

    public void Run(in HyperConnectionPre op)
    {
        int tokens = op.Streams.D0, streams = op.Streams.D1, coefficients = (2 + streams) * streams;
        var body = new PreBody
        {
            Mixed = Mix(op.Streams, (CpuWeight)op.Mix),
            Streams = op.Streams.F32(),
            StreamsStride = op.Streams.RowStride,
            Count = streams,
            Width = op.Streams.D2,
            Coefficients = coefficients,
            Base = op.Base.F32(),
            Scale = op.Scale.F32(),
            NormEpsilon = op.NormEpsilon,
            Epsilon = op.Epsilon,
            Iterations = op.Iterations,
            Output = op.Output.F32(),
            OutputStride = op.Output.RowStride,
            Post = op.Post.F32(),
            PostStride = op.Post.RowStride,
            Combine = op.Combine.F32(),
            CombineStride = op.Combine.RowStride,
        };
        pool.For(ref body, tokens, pool.Grain(3L * streams * body.Width + 5000));
    }

    public void Run(in HyperConnectionHead op)
    {
        var body = new PreBody
        {
            Mixed = Mix(op.Streams, (CpuWeight)op.Mix),
            Streams = op.Streams.F32(),
            StreamsStride = op.Streams.RowStride,
            Count = op.Streams.D1,
            Width = op.Streams.D2,
            Coefficients = op.Streams.D1,
            Base = op.Base.F32(),
            Scale = op.Scale.F32(),
            NormEpsilon = op.NormEpsilon,
            Epsilon = op.Epsilon,
            Output = op.Output.F32(),
            OutputStride = op.Output.RowStride,
        };
        pool.For(ref body, op.Streams.D0, pool.Grain(3L * body.Count * body.Width));
    }

    /// <summary>Mix x for every token, [T, coefficients].</summary>
    private float* Mix(in Tensor streams, CpuWeight mix)
    {
        var mixed = _mixed.Get<float>((long)streams.D0 * mix.Rows);
        linear.Run(mix.View, streams.F32(), streams.RowStride, streams.D0, mixed, mix.Rows);
        return mixed;
    }

    private struct PreBody : IParallelBody
    {
        public float* Mixed, Streams, Base, Scale, Output, Post, Combine;
        public long StreamsStride, OutputStride, PostStride, CombineStride;
        public int Count, Width, Coefficients, Iterations;
        public float NormEpsilon, Epsilon;

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public readonly void Run(int start, int end, int worker)
        {
            var weights = stackalloc float[Count];
            for (long t = start; t < end; t++)
            {
                var x = Streams + t * StreamsStride;
                var rho = (float)Lanes.InverseRms(x, (long)Count * Width, NormEpsilon);
                var m = Mixed + t * Coefficients;
                for (var j = 0; j < Count; j++)
                    weights[j] = VectorMath.Sigmoid(m[j] * rho * Scale[0] + Base[j]) + Epsilon;
                if (Post is not null)
                {
                    Sites(m, rho, t);
                }
                Collapse(weights, x, Output + t * OutputStride);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Sites(float* m, float rho, long t)
        {
            var post = Post + t * PostStride;
            for (var k = 0; k < Count; k++)
                post[k] = 2 * VectorMath.Sigmoid(m[Count + k] * rho * Scale[1] + Base[Count + k]);
            var combine = Combine + t * CombineStride;
            for (var i = 0; i < Count * Count; i++)
                combine[i] = m[2 * Count + i] * rho * Scale[2] + Base[2 * Count + i];
            Sinkhorn(combine, Count, Epsilon, Iterations);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Collapse(float* weights, float* streams, float* output)
        {
            var d = 0;
            for (; d + 16 <= Width; d += 16)
            {
                var sum = Vector512<float>.Zero;
                for (var j = 0; j < Count; j++)
                    sum = Vector512.FusedMultiplyAdd(Vector512.Create(weights[j]), Vector512.Load(streams + (long)j * Width + d), sum);
                sum.Store(output + d);
            }
            for (; d < Width; d++)
            {
                var sum = 0f;
                for (var j = 0; j < Count; j++)
                    sum = MathF.FusedMultiplyAdd(weights[j], streams[(long)j * Width + d], sum);
                output[d] = sum;
            }
        }
    }

    /// <summary>Softmax over each row plus epsilon, a column step, then iterations - 1 times a row step and a column step.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Sinkhorn(float* matrix, int n, float epsilon, int iterations)
    {
        for (var j = 0; j < n; j++)
        {
            var row = matrix + j * n;
            var max = row[0];
            for (var k = 1; k < n; k++)
                max = MathF.Max(max, row[k]);
            var sum = 0f;
            for (var k = 0; k < n; k++)
                sum += row[k] = VectorMath.Exp(row[k] - max);
            for (var k = 0; k < n; k++)
                row[k] = row[k] / sum + epsilon;
        }
        Normalise(matrix, n, 1, n, epsilon);
        for (var i = 1; i < iterations; i++)
        {
            Normalise(matrix, n, n, 1, epsilon);
            Normalise(matrix, n, 1, n, epsilon);
        }
    }

    /// <summary>Divides each line by its sum plus epsilon. Line l has the elements l * start + i * step.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Normalise(float* matrix, int n, int start, int step, float epsilon)
    {
        for (var line = 0; line < n; line++)
        {
            var x = matrix + line * start;
            var sum = 0f;
            for (var i = 0; i < n; i++)
                sum += x[i * step];
            sum += epsilon;
            for (var i = 0; i < n; i++)
                x[i * step] /= sum;
        }
    }

    public void Run(in HyperConnectionPost op)
    {
        var body = new PostBody
        {
            Streams = op.Streams.F32(),
            Sublayer = op.Sublayer.F32(),
            Post = op.Post.F32(),
            Combine = op.Combine.F32(),
            Output = op.Output.F32(),
            StreamsStride = op.Streams.RowStride,
            SublayerStride = op.Sublayer.RowStride,
            PostStride = op.Post.RowStride,
            CombineStride = op.Combine.RowStride,
            OutputStride = op.Output.RowStride,
            Count = op.Streams.D1,
            Width = op.Streams.D2,
        };
        pool.For(ref body, op.Streams.D0, pool.Grain((long)body.Count * (body.Count + 1) * body.Width));
    }

    private struct PostBody : IParallelBody
    {
        public float* Streams, Sublayer, Post, Combine, Output;
        public long StreamsStride, SublayerStride, PostStride, CombineStride, OutputStride;
        public int Count, Width;

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        public readonly void Run(int start, int end, int worker)
        {
            var old = stackalloc Vector512<float>[Count]; // every stream of the channels before any is overwritten: output may be the input
            for (long t = start; t < end; t++)
            {
                float* source = Streams + t * StreamsStride, y = Sublayer + t * SublayerStride, output = Output + t * OutputStride;
                float* post = Post + t * PostStride, combine = Combine + t * CombineStride;
                for (var d = 0; d < Width; d += 16)
                {
                    var lanes = Math.Min(16, Width - d);
                    for (var j = 0; j < Count; j++)
                        old[j] = Load(source + (long)j * Width + d, lanes);
                    var sublayer = Load(y + d, lanes);
                    for (var k = 0; k < Count; k++)
                    {
                        var sum = Vector512.Create(post[k]) * sublayer;
                        for (var j = 0; j < Count; j++)
                            sum = Vector512.FusedMultiplyAdd(Vector512.Create(combine[j * Count + k]), old[j], sum);
                        if (lanes == 16) sum.Store(output + (long)k * Width + d);
                        else Lanes.StorePartial(sum, output + (long)k * Width + d, lanes);
                    }
                }
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static Vector512<float> Load(float* source, int lanes) => lanes == 16 ? Vector512.Load(source) : Lanes.LoadPartial(source, lanes);
    }

    public void Dispose() => _mixed.Dispose();
}

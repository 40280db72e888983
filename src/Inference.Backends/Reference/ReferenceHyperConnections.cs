using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>Manifold-constrained hyper-connections (Operators/HyperConnections.cs; deepseek-v4 2.3). Static; owns nothing.</summary>
internal static unsafe class ReferenceHyperConnections
{
    public static void Run(in HyperConnectionPre op)
    {
        int tokens = op.Streams.D0, streams = op.Streams.D1;
        var mixed = Mix((ReferenceWeight)op.Mix, op.Streams, op.NormEpsilon);
        double[] pre = new double[streams], combine = new double[streams * streams];
        float* scale = op.Scale.F32(), bias = op.Base.F32();
        for (var t = 0; t < tokens; t++)
        {
            var m = mixed[t];
            for (var j = 0; j < streams; j++)
                pre[j] = Sigmoid(m[j] * scale[0] + bias[j]) + op.Epsilon;
            for (var k = 0; k < streams; k++)
                op.Post.F32(t)[k] = (float)(2 * Sigmoid(m[streams + k] * scale[1] + bias[streams + k]));
            for (var i = 0; i < combine.Length; i++)
                combine[i] = m[2 * streams + i] * scale[2] + bias[2 * streams + i];
            Sinkhorn(combine, streams, op.Epsilon, op.Iterations);
            for (var i = 0; i < combine.Length; i++)
                op.Combine.F32(t)[i] = (float)combine[i];
            Collapse(pre, HostRows.Row(op.Streams, t), HostRows.Row(op.Output, t));
        }
    }

    public static void Run(in HyperConnectionHead op)
    {
        int tokens = op.Streams.D0, streams = op.Streams.D1;
        var mixed = Mix((ReferenceWeight)op.Mix, op.Streams, op.NormEpsilon);
        var weights = new double[streams];
        for (var t = 0; t < tokens; t++)
        {
            for (var j = 0; j < streams; j++)
                weights[j] = Sigmoid(mixed[t][j] * op.Scale.F32()[0] + op.Base.F32()[j]) + op.Epsilon;
            Collapse(weights, HostRows.Row(op.Streams, t), HostRows.Row(op.Output, t));
        }
    }

    public static void Run(in HyperConnectionPost op)
    {
        int streams = op.Streams.D1, width = op.Streams.D2;
        var old = new double[streams];
        for (var t = 0; t < op.Streams.D0; t++)
        {
            float* source = op.Streams.F32(t), output = op.Output.F32(t), post = op.Post.F32(t), combine = op.Combine.F32(t);
            for (var d = 0; d < width; d++)
            {
                for (var j = 0; j < streams; j++)
                    old[j] = source[j * width + d]; // all streams of the channel before any is overwritten: output may be the input
                for (var k = 0; k < streams; k++)
                {
                    var sum = (double)post[k] * op.Sublayer.F32(t)[d];
                    for (var j = 0; j < streams; j++)
                        sum += combine[j * streams + k] * old[j];
                    output[k * width + d] = (float)sum;
                }
            }
        }
    }

    /// <summary>(mix x) * rho for every token, x the token's streams one after the other.</summary>
    private static double[][] Mix(ReferenceWeight mix, in Tensor streams, float epsilon)
    {
        var mixed = new double[streams.D0][];
        var row = new double[mix.Columns];
        for (var t = 0; t < mixed.Length; t++)
        {
            mixed[t] = new double[mix.Rows];
            var x = HostRows.Row(streams, t);
            var rho = ReferenceDense.InverseRms(x, epsilon);
            for (var i = 0; i < mix.Rows; i++)
            {
                mix.DecodeRow(i, row);
                mixed[t][i] = ReferenceDense.Dot(row, x) * rho;
            }
        }
        return mixed;
    }

    /// <summary>
    /// Makes a positive matrix [n, n] of the given logits whose columns, and nearly its rows, sum to 1: softmax over each row plus epsilon,
    /// a column step, then iterations - 1 times a row step and a column step.
    /// </summary>
    private static void Sinkhorn(Span<double> matrix, int n, double epsilon, int iterations)
    {
        for (var j = 0; j < n; j++)
        {
            var row = matrix.Slice(j * n, n);
            double max = double.NegativeInfinity, sum = 0;
            foreach (var logit in row)
                max = Math.Max(max, logit);
            foreach (ref var value in row)
                sum += value = Math.Exp(value - max);
            foreach (ref var value in row)
                value = value / sum + epsilon;
        }
        Normalise(matrix, n, start: 1, step: n, epsilon);
        for (var i = 1; i < iterations; i++)
        {
            Normalise(matrix, n, start: n, step: 1, epsilon);
            Normalise(matrix, n, start: 1, step: n, epsilon);
        }
    }

    /// <summary>Divides each line by its sum plus epsilon. Line l has the elements l * start + i * step: rows (n, 1), columns (1, n).</summary>
    private static void Normalise(Span<double> matrix, int n, int start, int step, double epsilon)
    {
        for (var line = 0; line < n; line++)
        {
            var sum = 0.0;
            for (var i = 0; i < n; i++)
                sum += matrix[line * start + i * step];
            for (var i = 0; i < n; i++)
                matrix[line * start + i * step] /= sum + epsilon;
        }
    }

    /// <summary>output = sum over j of weights[j] * streams[j].</summary>
    private static void Collapse(ReadOnlySpan<double> weights, ReadOnlySpan<float> streams, Span<float> output)
    {
        for (var d = 0; d < output.Length; d++)
        {
            var sum = 0.0;
            for (var j = 0; j < weights.Length; j++)
                sum += weights[j] * streams[j * output.Length + d];
            output[d] = (float)sum;
        }
    }

    private static double Sigmoid(double x) => 1 / (1 + Math.Exp(-x));
}

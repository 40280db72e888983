using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Cases of Operators/HyperConnections.cs.</summary>
internal static class HyperConnectionCases
{
    public static IEnumerable<OperatorCase> All =>
    [
        .. new[] { WeightScheme.F32, WeightScheme.BF16 }.Select(s => new HyperConnectionPreCase(s, tokens: 5, streams: 4, width: 64)),
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 3, streams: 4, width: 33, iterations: 1),
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 2, streams: 2, width: 17, iterations: 5),
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 2, streams: 1, width: 9),
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 2, streams: 3, width: 1),
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 4, streams: 4, width: 24, spread: 30), // saturated gates, nearly permutations
        new HyperConnectionPreCase(WeightScheme.F32, tokens: 0, streams: 4, width: 8),
        new HyperConnectionPostCase(tokens: 5, streams: 4, width: 65),
        new HyperConnectionPostCase(tokens: 3, streams: 4, width: 33, inPlace: true),
        new HyperConnectionPostCase(tokens: 2, streams: 1, width: 1),
        new HyperConnectionPostCase(tokens: 2, streams: 3, width: 16, inPlace: true),
        new HyperConnectionPostCase(tokens: 0, streams: 4, width: 8),
        .. new[] { WeightScheme.F32, WeightScheme.BF16 }.Select(s => new HyperConnectionHeadCase(s, tokens: 5, streams: 4, width: 64)),
        new HyperConnectionHeadCase(WeightScheme.F32, tokens: 3, streams: 2, width: 33),
        new HyperConnectionHeadCase(WeightScheme.F32, tokens: 2, streams: 1, width: 1),
        new HyperConnectionHeadCase(WeightScheme.F32, tokens: 0, streams: 4, width: 8),
    ];

    /// <summary>The mixes (Mix x) * rho of one token.</summary>
    public static Approx Mixes(RandomWeight mix, ReadOnlySpan<float> streams, double epsilon)
    {
        var rho = 1 / Math.Sqrt(streams.ToArray().Average(x => (double)x * x) + epsilon);
        var result = new Approx(mix.Rows);
        for (var i = 0; i < mix.Rows; i++)
        {
            var (value, error) = Approx.Dot(mix.Row(i), streams);
            result[i] = (value * rho, error * rho + Math.Abs(value * rho) * Approx.Eps * (Math.Sqrt(streams.Length) / 2 + 4));
        }
        return result;
    }

    /// <summary>m * scale + bias.</summary>
    public static (double Value, double Error) Affine((double Value, double Error) m, double scale, double bias) =>
        (m.Value * scale + bias, m.Error * Math.Abs(scale) + 2 * Approx.Eps * (Math.Abs(m.Value * scale) + Math.Abs(bias)));

    /// <summary>Sigmoid, written with tanh; its slope is at most a quarter.</summary>
    public static (double Value, double Error) Sigmoid((double Value, double Error) x)
    {
        var value = (1 + Math.Tanh(x.Value / 2)) / 2;
        return (value, x.Error / 4 + 8 * Approx.Eps * value + Approx.Tiny);
    }

    /// <summary>sum over j of weights[j] * streams[j].</summary>
    public static void Collapse(Approx weights, ReadOnlySpan<float> streams, Approx output, int start)
    {
        var width = streams.Length / weights.Length;
        for (var d = 0; d < width; d++)
        {
            double value = 0, error = 0;
            for (var j = 0; j < weights.Length; j++)
            {
                double x = streams[j * width + d];
                value += weights.Values[j] * x;
                error += Math.Abs(x) * (weights.Errors[j] + (weights.Length + 2) * Approx.Eps * Math.Abs(weights.Values[j]));
            }
            output[start + d] = (value, error);
        }
    }
}

internal sealed class HyperConnectionPreCase : OperatorCase
{
    private const float NormEpsilon = 1e-6f, Epsilon = 1e-6f;
    private readonly RandomWeight _mix;
    private readonly float[] _streams, _base, _scale;
    private readonly int _count, _width, _iterations;

    public HyperConnectionPreCase(WeightScheme scheme, int tokens, int streams, int width, int iterations = 20, double spread = 1)
        : base($"HyperConnectionPre {scheme} T={tokens} S={streams} D={width} iterations {iterations} spread {spread}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_count, _width, _iterations) = (streams, width, iterations);
        _mix = new RandomWeight(random, scheme, (2 + streams) * streams, streams * width, 1 / Math.Sqrt(streams * width));
        _streams = Draws.Floats(random, tokens * streams * width);
        _base = Draws.Floats(random, _mix.Rows, 0.5 * spread);
        _scale = [(float)spread, 0.9f * (float)spread, 1.2f * (float)spread];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stored = _mix.Store(device.Placement);
        var mix = device.Weight(stored);
        Tensor bias = device.Vector(_base), scale = device.Vector(_scale);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var streams = device.In(Pick(_streams, _count * _width, tokens), tokens.Length, _count, _width);
            Tensor output = device.Out(DType.F32, tokens.Length, _width), post = device.Out(DType.F32, tokens.Length, _count);
            var combine = device.Out(DType.F32, tokens.Length, _count, _count);
            device.Run(new HyperConnectionPre(streams, mix, bias, scale, NormEpsilon, Epsilon, _iterations, output, post, combine));
            outputs.Scatter("Output", this, tokens, device.Read(output));
            outputs.Scatter("Post", this, tokens, device.Read(post));
            outputs.Scatter("Combine", this, tokens, device.Read(combine));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        Approx output = new(Tokens * _width), post = new(Tokens * _count), combine = new(Tokens * _count * _count);
        for (var t = 0; t < Tokens; t++)
        {
            var streams = _streams.AsSpan(t * _count * _width, _count * _width);
            var m = HyperConnectionCases.Mixes(_mix, streams, NormEpsilon);
            var pre = new Approx(_count);
            for (var j = 0; j < _count; j++)
            {
                var (value, error) = HyperConnectionCases.Sigmoid(HyperConnectionCases.Affine(m[j], _scale[0], _base[j]));
                pre[j] = (value + Epsilon, error + Approx.Eps);
                (value, error) = HyperConnectionCases.Sigmoid(HyperConnectionCases.Affine(m[_count + j], _scale[1], _base[_count + j]));
                post[t * _count + j] = (2 * value, 2 * error);
            }
            HyperConnectionCases.Collapse(pre, streams, output, t * _width);
            Sinkhorn(m).CopyTo(combine, t * _count * _count);
        }
        return new() { ["Output"] = output, ["Post"] = post, ["Combine"] = combine };
    }

    /// <summary>
    /// Sinkhorn as two vectors of scaling factors around one fixed matrix. A relative change of the matrix moves the result by a small
    /// multiple of it (the scaling steps do not expand distances in the logarithm), and every step rounds once more, independently.
    /// </summary>
    private Approx Sinkhorn(Approx m)
    {
        var n = _count;
        var matrix = new double[n, n];
        double moved = 0;
        for (var j = 0; j < n; j++)
        {
            var logits = Enumerable.Range(2 * n + j * n, n).Select(i => HyperConnectionCases.Affine(m[i], _scale[2], _base[i])).ToArray();
            double max = logits.Max(l => l.Value), logSum = max + Math.Log(logits.Sum(l => Math.Exp(l.Value - max)));
            for (var k = 0; k < n; k++)
            {
                matrix[j, k] = Math.Exp(logits[k].Value - logSum) + Epsilon;
                var range = max - logits[k].Value;
                moved = Math.Max(moved, (matrix[j, k] - Epsilon) / matrix[j, k] * (2 * logits.Max(l => l.Error) + Approx.Eps * (range + 16)));
            }
        }
        double[] rows = new double[n], columns = new double[n];
        Array.Fill(rows, 1);
        Array.Fill(columns, 1);
        for (var i = 0; i < _iterations; i++)
        {
            for (var j = 0; i > 0 && j < n; j++)
                rows[j] /= Enumerable.Range(0, n).Sum(k => rows[j] * matrix[j, k] * columns[k]) + Epsilon;
            for (var k = 0; k < n; k++)
                columns[k] /= Enumerable.Range(0, n).Sum(j => rows[j] * matrix[j, k] * columns[k]) + Epsilon;
        }
        var result = new Approx(n * n);
        for (var i = 0; i < n * n; i++)
        {
            var value = rows[i / n] * matrix[i / n, i % n] * columns[i % n];
            result[i] = (value, value * (4 * moved + (n + 2) * Math.Sqrt(2 * _iterations) * Approx.Eps));
        }
        return result;
    }
}

internal sealed class HyperConnectionPostCase : OperatorCase
{
    private readonly float[] _streams, _sublayer, _post, _combine;
    private readonly int _count, _width;
    private readonly bool _inPlace;

    public HyperConnectionPostCase(int tokens, int streams, int width, bool inPlace = false)
        : base($"HyperConnectionPost T={tokens} S={streams} D={width}{(inPlace ? " in place" : "")}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_count, _width, _inPlace) = (streams, width, inPlace);
        _streams = Draws.Floats(random, tokens * streams * width);
        _sublayer = Draws.Floats(random, tokens * width);
        _post = Draws.Floats(random, tokens * streams);
        _combine = Draws.Floats(random, tokens * streams * streams);
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var values = Pick(_streams, _count * _width, tokens);
            var streams = _inPlace ? device.InOut(values, tokens.Length, _count, _width) : device.In(values, tokens.Length, _count, _width);
            var sublayer = device.In(Pick(_sublayer, _width, tokens), tokens.Length, _width);
            var post = device.In(Pick(_post, _count, tokens), tokens.Length, _count);
            var combine = device.In(Pick(_combine, _count * _count, tokens), tokens.Length, _count, _count);
            var output = _inPlace ? streams : device.Out(DType.F32, tokens.Length, _count, _width);
            device.Run(new HyperConnectionPost(streams, sublayer, post, combine, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(_streams.Length);
        for (var i = 0; i < output.Length; i++)
        {
            int d = i % _width, k = i / _width % _count, t = i / _width / _count;
            double value = 0, magnitude = 0;
            for (var j = _count - 1; j >= 0; j--)
            {
                double term = (double)_combine[(t * _count + j) * _count + k] * _streams[(t * _count + j) * _width + d];
                value += term;
                magnitude += Math.Abs(term);
            }
            double own = (double)_post[t * _count + k] * _sublayer[t * _width + d];
            output[i] = (value + own, (_count + 3) * Approx.Eps * (magnitude + Math.Abs(own)));
        }
        return new() { ["Output"] = output };
    }
}

internal sealed class HyperConnectionHeadCase : OperatorCase
{
    private const float NormEpsilon = 1e-6f, Epsilon = 1e-6f;
    private readonly RandomWeight _mix;
    private readonly float[] _streams, _base;
    private readonly int _count, _width;
    private readonly float _scale = 1.3f;

    public HyperConnectionHeadCase(WeightScheme scheme, int tokens, int streams, int width)
        : base($"HyperConnectionHead {scheme} T={tokens} S={streams} D={width}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_count, _width) = (streams, width);
        _mix = new RandomWeight(random, scheme, streams, streams * width, 1 / Math.Sqrt(streams * width));
        _streams = Draws.Floats(random, tokens * streams * width);
        _base = Draws.Floats(random, streams, 0.5);
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stored = _mix.Store(device.Placement);
        var mix = device.Weight(stored);
        Tensor bias = device.Vector(_base), scale = device.Vector(_scale);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var streams = device.In(Pick(_streams, _count * _width, tokens), tokens.Length, _count, _width);
            var output = device.Out(DType.F32, tokens.Length, _width);
            device.Run(new HyperConnectionHead(streams, mix, bias, scale, NormEpsilon, Epsilon, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(Tokens * _width);
        for (var t = 0; t < Tokens; t++)
        {
            var streams = _streams.AsSpan(t * _count * _width, _count * _width);
            var m = HyperConnectionCases.Mixes(_mix, streams, NormEpsilon);
            var weights = new Approx(_count);
            for (var j = 0; j < _count; j++)
            {
                var (value, error) = HyperConnectionCases.Sigmoid(HyperConnectionCases.Affine(m[j], _scale, _base[j]));
                weights[j] = (value + Epsilon, error + Approx.Eps);
            }
            HyperConnectionCases.Collapse(weights, streams, output, t * _width);
        }
        return new() { ["Output"] = output };
    }
}

using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Cases of Operators/Dense.cs.</summary>
internal static class DenseCases
{
    public static readonly WeightScheme Fp8 = new(DType.F8E4M3, DType.F8E8M0, 128, 128);
    public static readonly WeightScheme Fp8F32 = new(DType.F8E4M3, DType.F32, 128, 128);
    public static readonly WeightScheme Fp8Small = new(DType.F8E4M3, DType.F8E8M0, 32, 32);
    public static readonly WeightScheme Fp4 = new(DType.F4E2M1, DType.F8E8M0, 1, 32);

    public static readonly WeightScheme[] Schemes = [WeightScheme.F32, WeightScheme.BF16, WeightScheme.F16, Fp8, Fp8F32, Fp8Small, Fp4];

    public static IEnumerable<OperatorCase> All =>
    [
        .. Schemes.Select(s => new LinearCase(s, tokens: 5, columns: 256, rows: 64)),
        .. Schemes.Select(s => new LinearCase(s, tokens: 3, columns: 208, rows: 145)), // tiles cut on both sides
        .. Schemes.Select(s => new LinearCase(s, tokens: 1, columns: 34, rows: 3)),
        .. Schemes.Select(s => new LinearCase(s, tokens: 2, columns: 2, rows: 1)),
        new LinearCase(WeightScheme.F32, tokens: 0, columns: 16, rows: 16),
        new LinearCase(WeightScheme.F32, tokens: 4, columns: 1, rows: 1),
        new LinearCase(WeightScheme.F32, tokens: 33, columns: 67, rows: 31),
        new LinearCase(WeightScheme.BF16, tokens: 17, columns: 129, rows: 65),
        new LinearCase(WeightScheme.BF16, tokens: 2, columns: 4099, rows: 5),
        new LinearCase(WeightScheme.F16, tokens: 9, columns: 15, rows: 17),
        new LinearCase(Fp8, tokens: 70, columns: 384, rows: 40),
        new LinearCase(Fp8, tokens: 2, columns: 127, rows: 129),
        new LinearCase(Fp8F32, tokens: 2, columns: 131, rows: 7),
        new LinearCase(Fp4, tokens: 66, columns: 96, rows: 33),
        new LinearCase(Fp4, tokens: 3, columns: 48, rows: 5), // half a group at the end
        new LinearCase(WeightScheme.F32, tokens: 3, columns: 64, rows: 8, magnitude: 1e15),
        new LinearCase(WeightScheme.F32, tokens: 3, columns: 64, rows: 8, magnitude: 1e-22),
        new LinearCase(new(DType.F8E4M3, DType.F8E8M0, 3, 5), tokens: 2, columns: 23, rows: 10) { Exotic = true },
        new LinearCase(new(DType.F8E4M3, DType.BF16, 1, 64), tokens: 2, columns: 100, rows: 3) { Exotic = true },
        new LinearCase(new(DType.F4E2M1, DType.F8E8M0, 2, 7), tokens: 2, columns: 16, rows: 3) { Exotic = true },
        new LinearCase(new(DType.I8, DType.F16, 1, 32), tokens: 2, columns: 70, rows: 3) { Exotic = true },

        .. Schemes.Select(s => new GroupedLinearCase(s, tokens: 3, groups: 2, columns: 128, rows: 48)),
        new GroupedLinearCase(WeightScheme.BF16, tokens: 7, groups: 3, columns: 17, rows: 5),
        new GroupedLinearCase(WeightScheme.F32, tokens: 2, groups: 1, columns: 24, rows: 24),
        new GroupedLinearCase(Fp8, tokens: 2, groups: 4, columns: 200, rows: 100), // tiles that lie over two groups
        new GroupedLinearCase(WeightScheme.F32, tokens: 0, groups: 2, columns: 8, rows: 8),

        .. Schemes.Select(s => new EmbedCase(s, tokens: 9, rows: 40, columns: 66, copies: 4)),
        new EmbedCase(WeightScheme.BF16, tokens: 0, rows: 4, columns: 8, copies: 1),
        new EmbedCase(WeightScheme.F32, tokens: 3, rows: 1, columns: 1, copies: 1),

        new GatherRowsCase(sources: 7, rows: 5, width: 9, streams: 0),
        new GatherRowsCase(sources: 1, rows: 4, width: 33, streams: 0),
        new GatherRowsCase(sources: 6, rows: 9, width: 5, streams: 4),
        new GatherRowsCase(sources: 3, rows: 0, width: 8, streams: 0),

        new RmsNormCase(tokens: 4, heads: 0, width: 64, weighted: true),
        new RmsNormCase(tokens: 3, heads: 0, width: 1, weighted: true),
        new RmsNormCase(tokens: 2, heads: 0, width: 4097, weighted: true),
        new RmsNormCase(tokens: 5, heads: 3, width: 24, weighted: false),
        new RmsNormCase(tokens: 2, heads: 5, width: 17, weighted: true),
        new RmsNormCase(tokens: 4, heads: 0, width: 33, weighted: true, inPlace: true),
        new RmsNormCase(tokens: 3, heads: 2, width: 31, weighted: false, inPlace: true),
        new RmsNormCase(tokens: 2, heads: 0, width: 40, weighted: true, magnitude: 1e15),
        new RmsNormCase(tokens: 2, heads: 0, width: 40, weighted: true, magnitude: 1e-30),
        new RmsNormCase(tokens: 2, heads: 0, width: 40, weighted: true, magnitude: 0),
        new RmsNormCase(tokens: 0, heads: 0, width: 16, weighted: true),

        new SwiGluCase(tokens: 3, width: 65, limit: 10, magnitude: 5),
        new SwiGluCase(tokens: 2, width: 7, limit: 0.5f, magnitude: 1),
        new SwiGluCase(tokens: 2, width: 64, limit: float.PositiveInfinity, magnitude: 40),
        new SwiGluCase(tokens: 2, width: 64, limit: 10, magnitude: 1e30),
        new SwiGluCase(tokens: 1, width: 1, limit: 10, magnitude: 1),
        new SwiGluCase(tokens: 4, width: 33, limit: 10, magnitude: 3, inPlace: "Gate"),
        new SwiGluCase(tokens: 4, width: 33, limit: 10, magnitude: 3, inPlace: "Up"),
        new SwiGluCase(tokens: 0, width: 8, limit: 10, magnitude: 1),
    ];
}

internal sealed class LinearCase : OperatorCase
{
    private readonly RandomWeight _weight;
    private readonly float[] _input;

    public LinearCase(WeightScheme scheme, int tokens, int columns, int rows, double magnitude = 1)
        : base($"Linear {scheme}, T={tokens} K={columns} N={rows}{(magnitude == 1 ? "" : $" magnitude {magnitude:E0}")}", Independent(tokens))
    {
        var random = Draws.For(Name);
        _weight = new RandomWeight(random, scheme, rows, columns, magnitude);
        _input = Draws.Floats(random, tokens * columns, magnitude);
    }

    /// <summary>A scheme that no known checkpoint has.</summary>
    public bool Exotic { get; init; }

    public override bool MayBeRefused => Exotic;

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stored = _weight.Store(device.Placement);
        var weight = device.Weight(stored);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var output = device.Out(DType.F32, tokens.Length, _weight.Rows);
            device.Run(new Linear(device.In(Pick(_input, _weight.Columns, tokens), tokens.Length, _weight.Columns), weight, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(Tokens * _weight.Rows);
        for (var i = 0; i < output.Length; i++)
            output[i] = Approx.Dot(_weight.Row(i % _weight.Rows), _input.AsSpan(i / _weight.Rows * _weight.Columns, _weight.Columns));
        return new() { ["Output"] = output };
    }
}

internal sealed class GroupedLinearCase : OperatorCase
{
    private readonly RandomWeight _weight;
    private readonly float[] _input;
    private readonly int _groups, _rows, _columns;

    public GroupedLinearCase(WeightScheme scheme, int tokens, int groups, int columns, int rows)
        : base($"GroupedLinear {scheme}, T={tokens} G={groups} K={columns} N={rows}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_groups, _rows, _columns) = (groups, rows, columns);
        _weight = new RandomWeight(random, scheme, groups * rows, columns);
        _input = Draws.Floats(random, tokens * groups * columns);
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stored = _weight.Store(device.Placement);
        var weight = device.Weight(stored);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var input = device.In(Pick(_input, _groups * _columns, tokens), tokens.Length, _groups, _columns);
            var output = device.Out(DType.F32, tokens.Length, _groups, _rows);
            device.Run(new GroupedLinear(input, weight, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(Tokens * _groups * _rows);
        for (var t = 0; t < Tokens; t++)
        {
            for (var g = 0; g < _groups; g++)
            {
                var input = _input.AsSpan((t * _groups + g) * _columns, _columns);
                for (var n = 0; n < _rows; n++)
                    output[(t * _groups + g) * _rows + n] = Approx.Dot(_weight.Row(g * _rows + n), input);
            }
        }
        return new() { ["Output"] = output };
    }
}

internal sealed class EmbedCase : OperatorCase
{
    private readonly RandomWeight _table;
    private readonly int[] _ids;
    private readonly int _copies;

    public EmbedCase(WeightScheme scheme, int tokens, int rows, int columns, int copies)
        : base($"Embed {scheme}, T={tokens} V={rows} D={columns} copies={copies}", Independent(tokens))
    {
        var random = Draws.For(Name);
        _copies = copies;
        _table = new RandomWeight(random, scheme, rows, columns);
        _ids = [.. Enumerable.Range(0, tokens).Select(t => t == 0 ? rows - 1 : random.Next(rows))];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stored = _table.Store(device.Placement);
        var table = device.Weight(stored);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var output = device.Out(DType.F32, tokens.Length, _copies, _table.Columns);
            device.Run(new Embed(device.In(Pick(_ids, 1, tokens), tokens.Length), table, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    /// <summary>No error at all is allowed: a product of a code and a scale has one right rounding.</summary>
    public override Dictionary<string, Approx> Model()
    {
        var values = _ids.SelectMany(id => Enumerable.Range(0, _copies).SelectMany(_ => _table.Row(id).ToArray())).Select(x => (double)(float)x);
        var exact = values.ToArray();
        return new() { ["Output"] = new Approx(exact, new double[exact.Length]) };
    }

    public override void Check(Outputs reference, Outputs actual) => reference.AssertSameBits(actual, "embedding");
}

internal sealed class GatherRowsCase : OperatorCase
{
    private readonly float[] _input;
    private readonly int[] _rows;
    private readonly int _sources, _width, _streams;

    public GatherRowsCase(int sources, int rows, int width, int streams)
        : base($"GatherRows T={sources} M={rows} D={width} S={streams}", Independent(rows))
    {
        var random = Draws.For(Name);
        (_sources, _width, _streams) = (sources, width, streams);
        _input = Draws.Floats(random, sources * width * Math.Max(streams, 1));
        _rows = [.. Enumerable.Range(0, rows).Select(_ => random.Next(sources))];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var input = _streams == 0 ? device.In(_input, _sources, _width) : device.In(_input, _sources, _streams, _width);
        var outputs = new Outputs();
        foreach (var rows in schedule.Steps)
        {
            var output = _streams == 0 ? device.Out(DType.F32, rows.Length, _width) : device.Out(DType.F32, rows.Length, _streams, _width);
            device.Run(new GatherRows(input, device.In(Pick(_rows, 1, rows), rows.Length), output));
            outputs.Scatter("Output", this, rows, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model() => new() { ["Output"] = Approx.Exact(Pick(_input, _width * Math.Max(_streams, 1), _rows)) };

    public override void Check(Outputs reference, Outputs actual) => reference.AssertSameBits(actual, "copied rows");
}

internal sealed class RmsNormCase : OperatorCase
{
    private const float Epsilon = 1e-6f;
    private readonly float[] _input;
    private readonly float[] _weight;
    private readonly int _heads, _width;
    private readonly bool _inPlace;

    public RmsNormCase(int tokens, int heads, int width, bool weighted, bool inPlace = false, double magnitude = 1)
        : base($"RmsNorm T={tokens} H={heads} D={width}{(weighted ? " weighted" : "")}{(inPlace ? " in place" : "")} magnitude {magnitude:E0}",
            Independent(tokens))
    {
        var random = Draws.For(Name);
        (_heads, _width, _inPlace) = (heads, width, inPlace);
        _input = Draws.Floats(random, tokens * width * Math.Max(heads, 1), magnitude);
        _weight = weighted ? Draws.Floats(random, width) : [];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var weight = _weight.Length == 0 ? default : device.Vector(_weight);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            int[] shape = _heads == 0 ? [tokens.Length, _width] : [tokens.Length, _heads, _width];
            var values = Pick(_input, _width * Math.Max(_heads, 1), tokens);
            var input = _inPlace ? device.InOut(values, shape) : device.In(values, shape);
            var output = _inPlace ? input : device.Out(DType.F32, shape);
            device.Run(new RmsNorm(input, weight, Epsilon, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(_input.Length);
        for (var start = 0; start < _input.Length; start += _width)
            Approx.Exact(_input.AsSpan(start, _width)).RmsNorm(_weight, Epsilon).CopyTo(output, start);
        return new() { ["Output"] = output };
    }
}

internal sealed class SwiGluCase : OperatorCase
{
    private readonly float[] _gate, _up;
    private readonly int _width;
    private readonly float _limit;
    private readonly string _inPlace;

    public SwiGluCase(int tokens, int width, float limit, double magnitude, string inPlace = "")
        : base($"SwiGlu T={tokens} I={width} limit {limit} magnitude {magnitude} {inPlace}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_width, _limit, _inPlace) = (width, limit, inPlace);
        _gate = Draws.Floats(random, tokens * width, magnitude);
        _up = Draws.Floats(random, tokens * width, magnitude);
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            float[] g = Pick(_gate, _width, tokens), u = Pick(_up, _width, tokens);
            var gate = _inPlace == "Gate" ? device.InOut(g, tokens.Length, _width) : device.In(g, tokens.Length, _width);
            var up = _inPlace == "Up" ? device.InOut(u, tokens.Length, _width) : device.In(u, tokens.Length, _width);
            var output = _inPlace switch { "Gate" => gate, "Up" => up, _ => device.Out(DType.F32, tokens.Length, _width) };
            device.Run(new SwiGlu(gate, up, _limit, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(_gate.Length);
        for (var i = 0; i < output.Length; i++)
            output[i] = Value((_gate[i], 0), (_up[i], 0), _limit);
        return new() { ["Output"] = output };
    }

    /// <summary>The slope of silu is below 1.1, that of a clamp at most 1.</summary>
    public static (double Value, double Error) Value((double Value, double Error) gate, (double Value, double Error) up, double limit)
    {
        double g = gate.Value > limit ? limit : gate.Value, u = up.Value > limit ? limit : up.Value < -limit ? -limit : up.Value;
        var silu = g * Math.Exp(g) / (Math.Exp(g) + 1); // another form than the operator's; g is below 700 here unless it is hugely negative
        if (g > 700) silu = g;
        var error = 1.1 * gate.Error * (Math.Abs(u) + up.Error) + Math.Abs(silu) * up.Error + 16 * Approx.Eps * Math.Abs(silu * u);
        return (silu * u, error + Approx.Tiny * Math.Abs(u));
    }
}

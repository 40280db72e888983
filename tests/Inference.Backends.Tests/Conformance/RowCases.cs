using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Cases of the operators that rotate and make rows: Rotate, KvInsert, CompressorUpdate.</summary>
internal static class RowCases
{
    public static IEnumerable<OperatorCase> All =>
    [
        new RotateCase(tokens: 5, heads: 3, width: 24, rotary: 8, inverse: false),
        new RotateCase(tokens: 5, heads: 3, width: 24, rotary: 8, inverse: true),
        new RotateCase(tokens: 3, heads: 2, width: 192, rotary: 64, inverse: false),
        new RotateCase(tokens: 3, heads: 1, width: 2, rotary: 2, inverse: true),
        new RotateCase(tokens: 2, heads: 5, width: 17, rotary: 6, inverse: false),
        new RotateCase(tokens: 4, heads: 1, width: 64, rotary: 64, inverse: false, firstPosition: 1_048_570),
        new RotateCase(tokens: 2, heads: 1, width: 64, rotary: 64, inverse: true, firstPosition: 20_000_000), // beyond what an F32 holds exactly
        new RotateCase(tokens: 0, heads: 2, width: 8, rotary: 4, inverse: false),

        new KvInsertCase([(0, 9)], width: 24, rotary: 8, RowRounding.None, rowsPerPage: 4),
        new KvInsertCase([(7, 5), (0, 3), (1000, 1)], width: 33, rotary: 16, RowRounding.None, rowsPerPage: 3),
        new KvInsertCase([(0, 6), (250, 9)], width: 144, rotary: 16, RowRounding.Fp8Block64, rowsPerPage: 8),
        new KvInsertCase([(65_530, 12)], width: 512, rotary: 64, RowRounding.Fp8Block64, rowsPerPage: 16),
        new KvInsertCase([(3, 4)], width: 64, rotary: 64, RowRounding.Fp8Block64, rowsPerPage: 2), // no channel to round
        new KvInsertCase([(0, 5)], width: 72, rotary: 8, RowRounding.Fp8Block64, rowsPerPage: 1, magnitude: 1e-9),
        new KvInsertCase([(0, 5)], width: 72, rotary: 8, RowRounding.Fp8Block64, rowsPerPage: 256, magnitude: 1e12),
        new KvInsertCase([(5, 6), (0, 2)], width: 32, rotary: 16, RowRounding.HadamardFp4Block32, rowsPerPage: 4),
        new KvInsertCase([(9, 6)], width: 128, rotary: 64, RowRounding.HadamardFp4Block32, rowsPerPage: 4),
        new KvInsertCase([(9, 6)], width: 128, rotary: 64, RowRounding.HadamardFp8, rowsPerPage: 4),
        new KvInsertCase([(9, 6)], width: 37, rotary: 6, RowRounding.BF16, rowsPerPage: 4),
        new KvInsertCase([(9, 6)], width: 144, rotary: 16, RowRounding.Fp8Row, rowsPerPage: 4),
        new KvInsertCase([(0, 0)], width: 8, rotary: 4, RowRounding.None, rowsPerPage: 4),
        new KvInsertCase([(7, 5), (0, 3)], width: 33, rotary: 16, RowRounding.BF16, rowsPerPage: 3, encoding: RowEncoding.BF16),
        new KvInsertCase([(65_530, 12)], width: 512, rotary: 64, RowRounding.Fp8Row, rowsPerPage: 16, encoding: RowEncoding.Fp8),
        new KvInsertCase([(0, 6), (250, 9)], width: 144, rotary: 16, RowRounding.Fp8Row, rowsPerPage: 8, encoding: RowEncoding.Fp8),
        new KvInsertCase([(0, 5)], width: 72, rotary: 8, RowRounding.Fp8Row, rowsPerPage: 1, magnitude: 1e-9, encoding: RowEncoding.Fp8),
        new KvInsertCase([(0, 5)], width: 72, rotary: 8, RowRounding.Fp8Row, rowsPerPage: 256, magnitude: 1e12, encoding: RowEncoding.Fp8),
        new KvInsertCase([(9, 6), (0, 2)], width: 128, rotary: 64, RowRounding.HadamardFp4Block32, rowsPerPage: 4, encoding: RowEncoding.Fp4),
        new KvInsertCase([(9, 6), (0, 2)], width: 128, rotary: 64, RowRounding.HadamardFp8, rowsPerPage: 4, encoding: RowEncoding.Fp8OneScale),

        new CompressorCase([(0, 19)], ratio: 4, overlap: true, width: 24, rotary: 8, RowRounding.None, rowsPerPage: 4),
        new CompressorCase([(0, 3)], ratio: 4, overlap: true, width: 24, rotary: 8, RowRounding.None, rowsPerPage: 4), // emits nothing
        new CompressorCase([(6, 11), (0, 5), (1023, 2)], ratio: 4, overlap: true, width: 17, rotary: 6, RowRounding.None, rowsPerPage: 3),
        new CompressorCase([(5, 14), (0, 9)], ratio: 4, overlap: true, width: 144, rotary: 16, RowRounding.Fp8Block64, rowsPerPage: 8),
        new CompressorCase([(0, 16), (11, 6)], ratio: 4, overlap: true, width: 32, rotary: 16, RowRounding.HadamardFp4Block32, rowsPerPage: 5),
        new CompressorCase([(0, 40)], ratio: 16, overlap: false, width: 24, rotary: 8, RowRounding.None, rowsPerPage: 4),
        new CompressorCase([(100, 40), (383, 1), (511, 3)], ratio: 128, overlap: false, width: 80, rotary: 16, RowRounding.Fp8Block64, rowsPerPage: 16),
        new CompressorCase([(0, 5)], ratio: 1, overlap: false, width: 9, rotary: 2, RowRounding.None, rowsPerPage: 2),
        new CompressorCase([(0, 5)], ratio: 1, overlap: true, width: 8, rotary: 4, RowRounding.None, rowsPerPage: 2),
        new CompressorCase([(0, 24)], ratio: 4, overlap: true, width: 16, rotary: 4, RowRounding.None, rowsPerPage: 4, gates: 60), // one-hot softmax
        new CompressorCase([(0, 24)], ratio: 8, overlap: false, width: 16, rotary: 4, RowRounding.None, rowsPerPage: 4, gates: 0), // plain average
        new CompressorCase([(0, 0)], ratio: 4, overlap: true, width: 8, rotary: 4, RowRounding.None, rowsPerPage: 4),
        new CompressorCase([(6, 11), (0, 5)], ratio: 4, overlap: true, width: 17, rotary: 6, RowRounding.BF16, rowsPerPage: 3, encoding: RowEncoding.BF16),
        new CompressorCase([(5, 14), (0, 9)], ratio: 4, overlap: true, width: 144, rotary: 16, RowRounding.Fp8Row, rowsPerPage: 8, encoding: RowEncoding.Fp8),
        new CompressorCase([(0, 16), (11, 6)], ratio: 4, overlap: true, width: 32, rotary: 16, RowRounding.HadamardFp4Block32, rowsPerPage: 5, encoding: RowEncoding.Fp4),
        new CompressorCase([(0, 16), (11, 6)], ratio: 4, overlap: true, width: 32, rotary: 16, RowRounding.HadamardFp8, rowsPerPage: 5, encoding: RowEncoding.Fp8OneScale),
    ];
}

internal sealed class RotateCase : OperatorCase
{
    private readonly float[] _vectors, _frequencies;
    private readonly int[] _positions;
    private readonly int _heads, _width;
    private readonly bool _inverse;

    public RotateCase(int tokens, int heads, int width, int rotary, bool inverse, int firstPosition = 0)
        : base($"Rotate T={tokens} H={heads} D={width} R={rotary} from {firstPosition}{(inverse ? " inverse" : "")}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_heads, _width, _inverse) = (heads, width, inverse);
        _vectors = Draws.Floats(random, tokens * heads * width);
        _frequencies = RopeFrequencies.Plain(10000, rotary);
        _positions = [.. Enumerable.Range(0, tokens).Select(t => firstPosition + 3 * t)];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var rope = new Rope(device.Vector(_frequencies));
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var vectors = device.InOut(Pick(_vectors, _heads * _width, tokens), tokens.Length, _heads, _width);
            device.Run(new Rotate(vectors, device.In(Pick(_positions, 1, tokens), tokens.Length), rope, _inverse));
            outputs.Scatter("Vectors", this, tokens, device.Read(vectors));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var result = new Approx(_vectors.Length);
        for (var v = 0; v < Tokens * _heads; v++)
            Approx.Exact(_vectors.AsSpan(v * _width, _width)).Rotate(_positions[v / _heads], _frequencies, _inverse).CopyTo(result, v * _width);
        return new() { ["Vectors"] = result };
    }
}

/// <summary>A case whose outputs are rows that may have been rounded to codes.</summary>
internal abstract class RowMakingCase(string name, (int First, int Count)[] sequences, RowRounding rounding, int rotary)
    : SequenceCase(name, sequences)
{
    protected RowRounding Rounding => rounding;

    /// <summary>Rows before rounding, one after the other, as in the output "Rows".</summary>
    protected abstract List<Approx> RowsBeforeRounding();

    public override Dictionary<string, Approx> Model() => throw new NotSupportedException("rounded rows are compared code by code");

    public override void CheckReference(Outputs reference)
    {
        // What float64 may leave undecided, and the one rounding to F32 before the codes.
        CheckRows(reference, (value, error) => 1.0001 * Approx.Eps * Math.Abs(value) + 1e-6 * error);
    }

    public override void Check(Outputs reference, Outputs actual) => CheckRows(actual, (_, error) => error);

    private void CheckRows(Outputs outputs, Func<double, double, double> allowed)
    {
        var rows = RowsBeforeRounding();
        var start = 0;
        for (var r = 0; r < rows.Count; r++)
        {
            var row = rows[r];
            for (var i = 0; i < row.Length; i++) row.Errors[i] = allowed(row.Values[i], row.Errors[i]);
            RoundedRow.AssertPossible(row, outputs.Floats["Rows"].AsSpan(start, row.Length), rounding, rotary, $"row {r}");
            start += row.Length;
        }
    }
}

internal sealed class KvInsertCase : RowMakingCase
{
    private const float Epsilon = 1e-6f;
    private readonly float[] _input, _norm, _frequencies;
    private readonly int _width, _rowsPerPage;

    public KvInsertCase((int First, int Count)[] sequences, int width, int rotary, RowRounding rounding, int rowsPerPage, double magnitude = 1,
        RowEncoding encoding = RowEncoding.F32)
        : base($"KvInsert {Describe(sequences)} D={width} R={rotary} {rounding} page {rowsPerPage} magnitude {magnitude:E0}{(encoding == RowEncoding.F32 ? "" : $" stored as {encoding}")}",
            sequences, rounding, rotary)
    {
        var random = Draws.For(Name);
        (_width, _rowsPerPage, Format) = (width, rowsPerPage, FormatOf(encoding, width, rotary));
        _input = Draws.Floats(random, Tokens * width, magnitude);
        _norm = Draws.Floats(random, width);
        _frequencies = RopeFrequencies.Plain(10000, rotary);
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var (slots, slotCount) = Slots(device);
        var store = new PagedStore(device, new KeptRows(Format, _rowsPerPage, Sequences, (_, _) => null), slots, slotCount, (_, _) => true);
        var norm = device.Vector(_norm);
        var rope = new Rope(device.Vector(_frequencies));
        foreach (var tokens in schedule.Steps)
        {
            var input = device.In(Pick(_input, _width, tokens), tokens.Length, _width);
            device.Run(new KvInsert(input, norm, Epsilon, StepTokens(device, tokens, slots), rope, Rounding, store.Rows));
        }
        var outputs = new Outputs();
        outputs.Floats["Rows"] = [.. Layout.SelectMany(t => store[t.Sequence, t.Position])];
        return outputs;
    }

    protected override List<Approx> RowsBeforeRounding() => [.. Enumerable.Range(0, Tokens).Select(t =>
        Approx.Exact(_input.AsSpan(t * _width, _width)).RmsNorm(_norm, Epsilon).Rotate(Layout[t].Position, _frequencies))];
}

internal sealed class CompressorCase : RowMakingCase
{
    private const float Epsilon = 1e-6f;
    private readonly float[] _ape, _norm, _frequencies;
    private readonly Dictionary<(int Sequence, int Position), (float[] Values, float[] Gates)> _tokens = [];
    private readonly int _ratio, _width, _channels, _rowsPerPage;
    private readonly bool _overlap;

    public CompressorCase(
        (int First, int Count)[] sequences, int ratio, bool overlap, int width, int rotary, RowRounding rounding, int rowsPerPage,
        double gates = 1, RowEncoding encoding = RowEncoding.F32)
        : base($"CompressorUpdate {Describe(sequences)} r={ratio}{(overlap ? " overlap" : "")} D={width} R={rotary} {rounding} "
            + $"page {rowsPerPage} gates {gates}{(encoding == RowEncoding.F32 ? "" : $" stored as {encoding}")}", sequences, rounding, rotary)
    {
        var random = Draws.For(Name);
        (_ratio, _width, _channels, _rowsPerPage, _overlap) = (ratio, width, overlap ? 2 * width : width, rowsPerPage, overlap);
        Format = FormatOf(encoding, width, rotary);
        _ape = Draws.Floats(random, ratio * _channels, 0.5 * gates);
        _norm = Draws.Floats(random, width);
        _frequencies = RopeFrequencies.Yarn(160000, rotary, 16, 32, 1, 65536);
        foreach (var (sequence, position) in StateRanges().SelectMany((r, s) => Enumerable.Range(r.First, r.Count).Select(p => (s, p))))
            _tokens[(sequence, position)] = (Draws.Floats(random, _channels), Draws.Floats(random, _channels, gates));
    }

    /// <summary>The tokens of the case and, before them, those of the unfinished block and (with overlap) of the block before that.</summary>
    private (int First, int Count)[] StateRanges() => Array.ConvertAll(Sequences, s =>
    {
        var first = Math.Max(0, (s.First / _ratio - (_overlap ? 1 : 0)) * _ratio);
        return s.Count == 0 ? (0, 0) : (first, s.First + s.Count - first);
    });

    private (int First, int Count)[] BlockRanges() => Array.ConvertAll(Sequences, s =>
        (s.First / _ratio, (s.First + s.Count) / _ratio - s.First / _ratio));

    /// <summary>A state row: values, and gates with the bias of the position.</summary>
    private float[] StateRow(int sequence, int position)
    {
        var (values, gates) = _tokens[(sequence, position)];
        return [.. values, .. gates.Select((g, i) => g + _ape[position % _ratio * _channels + i])];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var (slots, slotCount) = Slots(device);
        bool IsToken(int sequence, int position) => position >= Sequences[sequence].First;
        var kept = new KeptRows(2 * _channels, _rowsPerPage, StateRanges(), (s, p) => IsToken(s, p) ? null : StateRow(s, p));
        var state = new PagedStore(device, kept, slots, slotCount, IsToken);
        var rows = new PagedStore(device, new KeptRows(Format, _rowsPerPage, BlockRanges(), (_, _) => null), slots, slotCount, (_, _) => true);
        Tensor ape = device.In(_ape, _ratio, _channels), norm = device.Vector(_norm);
        var rope = new Rope(device.Vector(_frequencies));
        foreach (var tokens in schedule.Steps)
        {
            var values = device.In([.. tokens.SelectMany(t => _tokens[Layout[t]].Values)], tokens.Length, _channels);
            var gates = device.In([.. tokens.SelectMany(t => _tokens[Layout[t]].Gates)], tokens.Length, _channels);
            var layout = StepTokens(device, tokens, slots);
            device.Run(new CompressorUpdate(values, gates, ape, state.Rows, _ratio, _overlap, layout, norm, Epsilon, rope, Rounding, rows.Rows));
        }
        var outputs = new Outputs();
        outputs.Floats["State"] = [.. Layout.SelectMany(t => state[t.Sequence, t.Position])];
        outputs.Floats["Rows"] = [.. BlockRanges().SelectMany((r, s) => Enumerable.Range(r.First, r.Count).SelectMany(b => rows[s, b]))];
        return outputs;
    }

    protected override List<Approx> RowsBeforeRounding() =>
        [.. BlockRanges().SelectMany((r, s) => Enumerable.Range(r.First, r.Count).Select(b =>
            Pool(s, b).RmsNorm(_norm, Epsilon).Rotate(b * _ratio, _frequencies)))];

    /// <summary>The pool as weights exp(gate - log of the sum of exp).</summary>
    private Approx Pool(int sequence, int block)
    {
        var first = (_overlap && block > 0 ? block - 1 : block) * _ratio;
        var tokens = Enumerable.Range(first, (block + 1) * _ratio - first).ToArray();
        var pooled = new Approx(_width);
        for (var channel = 0; channel < _width; channel++)
        {
            var slots = tokens.Select(p =>
            {
                var row = StateRow(sequence, p);
                var at = channel + (_overlap && p >= block * _ratio ? _width : 0);
                return (Value: (double)row[at], Gate: (double)row[_channels + at]);
            }).ToArray();
            double max = slots.Max(s => s.Gate), logSum = max + Math.Log(slots.Sum(s => Math.Exp(s.Gate - max)));
            double value = 0, error = 0, weightError = 0;
            foreach (var (v, gate) in slots)
            {
                double weight = Math.Exp(gate - logSum), relative = Approx.Eps * (Math.Sqrt(slots.Length) + 8 + max - gate);
                value += weight * v;
                error += weight * Math.Abs(v) * relative;
                weightError += weight * relative;
            }
            pooled[channel] = (value, error + Math.Abs(value) * (weightError + 4 * Approx.Eps) + Approx.Tiny);
        }
        return pooled;
    }

    public override void CheckReference(Outputs reference)
    {
        CheckState(reference);
        base.CheckReference(reference);
    }

    public override void Check(Outputs reference, Outputs actual)
    {
        CheckState(actual);
        base.Check(reference, actual);
    }

    /// <summary>State is copied and added once: no error is allowed.</summary>
    private void CheckState(Outputs outputs)
    {
        var expected = new Outputs();
        expected.Floats["State"] = [.. Layout.SelectMany(t => StateRow(t.Sequence, t.Position))];
        expected.Floats["Rows"] = outputs.Floats["Rows"];
        expected.AssertSameBits(outputs, "compressor state");
    }
}

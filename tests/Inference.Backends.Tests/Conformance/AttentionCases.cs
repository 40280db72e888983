using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Cases of the operators that read rows: IndexTopK and Attention.</summary>
internal static class AttentionCases
{
    private const float None = float.NegativeInfinity;

    public static IEnumerable<OperatorCase> All =>
    [
        new IndexCase([(0, 20)], heads: 8, width: 16, rotary: 8, ratio: 4, topK: 3, RowRounding.None),
        new IndexCase([(0, 20)], heads: 3, width: 17, rotary: 6, ratio: 4, topK: 1, RowRounding.None),
        new IndexCase([(40, 9), (0, 5), (200, 3)], heads: 4, width: 32, rotary: 16, ratio: 4, topK: 8, RowRounding.None),
        new IndexCase([(0, 18)], heads: 2, width: 24, rotary: 8, ratio: 4, topK: 100, RowRounding.None), // all visible rows fit
        new IndexCase([(30, 12), (3, 2)], heads: 4, width: 32, rotary: 16, ratio: 4, topK: 5, RowRounding.HadamardFp4Block32),
        new IndexCase([(253, 8)], heads: 5, width: 128, rotary: 64, ratio: 4, topK: 16, RowRounding.HadamardFp4Block32),
        new IndexCase([(100, 6)], heads: 2, width: 80, rotary: 16, ratio: 4, topK: 6, RowRounding.Fp8Block64),
        new IndexCase([(60, 10)], heads: 4, width: 16, rotary: 8, ratio: 4, topK: 4, RowRounding.None, IndexInputs.EqualRows),
        new IndexCase([(60, 10), (0, 9)], heads: 4, width: 16, rotary: 8, ratio: 4, topK: 4, RowRounding.None, IndexInputs.ZeroScores),
        new IndexCase([(60, 4)], heads: 1, width: 16, rotary: 2, ratio: 1, topK: 7, RowRounding.None),
        new IndexCase([(0, 0)], heads: 2, width: 16, rotary: 8, ratio: 4, topK: 2, RowRounding.None),
        new IndexCase([(100, 6)], heads: 2, width: 80, rotary: 16, ratio: 4, topK: 6, RowRounding.BF16, encoding: RowEncoding.BF16),
        new IndexCase([(100, 6)], heads: 2, width: 80, rotary: 16, ratio: 4, topK: 6, RowRounding.Fp8Row, encoding: RowEncoding.Fp8),
        new IndexCase([(30, 12), (3, 2)], heads: 4, width: 32, rotary: 16, ratio: 4, topK: 5, RowRounding.HadamardFp4Block32, encoding: RowEncoding.Fp4),
        new IndexCase([(253, 8)], heads: 5, width: 128, rotary: 64, ratio: 4, topK: 16, RowRounding.HadamardFp4Block32, encoding: RowEncoding.Fp4),
        new IndexCase([(200, 9)], heads: 3, width: 128, rotary: 64, ratio: 2, topK: 9, RowRounding.HadamardFp4Block32, IndexInputs.EqualRows, RowEncoding.Fp4),
        new IndexCase([(253, 8)], heads: 1, width: 128, rotary: 64, ratio: 4, topK: 16, RowRounding.HadamardFp8, encoding: RowEncoding.Fp8OneScale),
        new IndexCase([(30, 12), (3, 2)], heads: 4, width: 32, rotary: 16, ratio: 4, topK: 5, RowRounding.HadamardFp8, encoding: RowEncoding.Fp8OneScale),

        new AttentionCase([(0, 12)], heads: 4, width: 24, window: 8, compressed: 0, AttentionRows.WindowOnly, sink: 0.5),
        new AttentionCase([(0, 3), (500, 7), (77, 1)], heads: 3, width: 17, window: 16, compressed: 0, AttentionRows.WindowOnly, sink: 0.5),
        new AttentionCase([(0, 5)], heads: 1, width: 1, window: 1, compressed: 0, AttentionRows.WindowOnly, sink: None),
        new AttentionCase([(2, 4)], heads: 2, width: 33, window: 1000, compressed: 0, AttentionRows.WindowOnly, sink: None),
        new AttentionCase([(250, 10)], heads: 2, width: 144, window: 128, compressed: 0, AttentionRows.WindowOnly, sink: 1),
        new AttentionCase([(0, 40)], heads: 4, width: 24, window: 8, compressed: 16, AttentionRows.AllVisible, sink: 0.5),
        new AttentionCase([(120, 10), (383, 2), (5, 3)], heads: 2, width: 40, window: 32, compressed: 128, AttentionRows.AllVisible, sink: 0.5),
        new AttentionCase([(1000, 4)], heads: 3, width: 16, window: 4, compressed: 4, AttentionRows.AllVisible, sink: None),
        new AttentionCase([(0, 30), (61, 6)], heads: 4, width: 24, window: 8, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 3),
        new AttentionCase([(700, 5)], heads: 2, width: 72, window: 16, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 128),
        new AttentionCase([(30, 5)], heads: 2, width: 24, window: 8, compressed: 4, AttentionRows.SelectedNone, sink: 0.5, topK: 3),
        new AttentionCase([(20, 6)], heads: 2, width: 16, window: 8, compressed: 4, AttentionRows.AllVisible, sink: 1e30), // output 0
        new AttentionCase([(20, 6)], heads: 2, width: 16, window: 8, compressed: 4, AttentionRows.AllVisible, sink: -1e30),
        new AttentionCase([(20, 6)], heads: 2, width: 16, window: 8, compressed: 4, AttentionRows.AllVisible, sink: 0, magnitude: 100), // one-hot
        new AttentionCase([(20, 6)], heads: 2, width: 16, window: 8, compressed: 4, AttentionRows.AllVisible, sink: 0, magnitude: 0), // all equal
        new AttentionCase([(130, 3)], heads: 64, width: 512, window: 128, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 20),
        new AttentionCase([(0, 0)], heads: 2, width: 8, window: 4, compressed: 0, AttentionRows.WindowOnly, sink: 0),
        new AttentionCase([(120, 10), (383, 2), (5, 3)], heads: 2, width: 40, window: 32, compressed: 128, AttentionRows.AllVisible, sink: 0.5, encoding: RowEncoding.BF16),
        new AttentionCase([(0, 3), (77, 1)], heads: 3, width: 17, window: 16, compressed: 0, AttentionRows.WindowOnly, sink: 0.5, encoding: RowEncoding.BF16),
        new AttentionCase([(250, 10)], heads: 2, width: 144, window: 128, compressed: 0, AttentionRows.WindowOnly, sink: 1, encoding: RowEncoding.Fp8, rotary: 16),
        new AttentionCase([(120, 10), (383, 2), (5, 3)], heads: 5, width: 86, window: 32, compressed: 128, AttentionRows.AllVisible, sink: 0.5, encoding: RowEncoding.Fp8, rotary: 22),
        new AttentionCase([(130, 3)], heads: 64, width: 512, window: 128, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 20, encoding: RowEncoding.Fp8, rotary: 64),
        new AttentionCase([(100, 3)], heads: 4, width: 96, window: 30, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 20, encoding: RowEncoding.Fp4),
        new AttentionCase([(100, 3)], heads: 4, width: 90, window: 30, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 20, encoding: RowEncoding.Fp8OneScale),
    ];
}

internal enum IndexInputs
{
    Normal,
    /// <summary>Only three different rows, so that many scores are exactly equal.</summary>
    EqualRows,
    /// <summary>Rows with non-negative, queries with non-positive channels: relu leaves nothing, every score is zero.</summary>
    ZeroScores,
}

internal sealed class IndexCase : SequenceCase
{
    private const int RowsPerPage = 3;
    private readonly float[] _queries, _headWeights, _frequencies;
    private readonly float[][][] _rows;
    private readonly int _heads, _width, _ratio, _topK;
    private readonly float _scale = 0.3f;
    private readonly RowRounding _rounding;

    public IndexCase(
        (int First, int Count)[] sequences, int heads, int width, int rotary, int ratio, int topK, RowRounding rounding,
        IndexInputs inputs = IndexInputs.Normal, RowEncoding encoding = RowEncoding.F32)
        : base($"IndexTopK {Describe(sequences)} H={heads} D={width} R={rotary} r={ratio} k={topK} {rounding} {inputs}"
            + (encoding == RowEncoding.F32 ? "" : $" stored as {encoding}"), sequences)
    {
        var random = Draws.For(Name);
        (_heads, _width, _ratio, _topK, _rounding) = (heads, width, ratio, topK, rounding);
        _queries = Draws.Floats(random, Tokens * heads * width);
        _headWeights = Draws.Floats(random, Tokens * heads);
        _frequencies = RopeFrequencies.Yarn(160000, rotary, 16, 32, 1, 65536);
        var count = sequences.Max(s => (s.First + s.Count) / ratio);
        float[][] some = [.. Enumerable.Range(0, 3).Select(_ => Draws.Floats(random, width))];
        _rows = [.. sequences.Select(_ => Enumerable.Range(0, count).Select(_ =>
            inputs == IndexInputs.EqualRows ? some[random.Next(3)] : Draws.Floats(random, width)).ToArray())];
        Format = FormatOf(encoding, width, rotary);
        _rows = Array.ConvertAll(_rows, rows => Array.ConvertAll(rows, row => Storable(Format, row)));
        if (inputs == IndexInputs.ZeroScores)
        {
            // Without rotation, so that the signs stay.
            Array.Clear(_frequencies);
            _queries = Array.ConvertAll(_queries, x => -Math.Abs(x));
            foreach (var row in _rows.SelectMany(r => r)) for (var i = 0; i < width; i++) row[i] = Math.Abs(row[i]);
        }
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var (slots, slotCount) = Slots(device);
        (int, int)[] ranges = Array.ConvertAll(Sequences, s => (0, (s.First + s.Count) / _ratio));
        var kept = new KeptRows(Format, RowsPerPage, ranges, (s, b) => _rows[s][b]);
        var store = new PagedStore(device, kept, slots, slotCount, (_, _) => false);
        var rope = new Rope(device.Vector(_frequencies));
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var queries = device.InOut(Pick(_queries, _heads * _width, tokens), tokens.Length, _heads, _width);
            var headWeights = device.In(Pick(_headWeights, _heads, tokens), tokens.Length, _heads);
            var selected = device.Out(DType.I32, tokens.Length, _topK);
            var layout = StepTokens(device, tokens, slots);
            device.Run(new IndexTopK(queries, headWeights, _scale, layout, rope, _rounding, store.Rows, _ratio, selected));
            outputs.Scatter("Selected", this, tokens, device.ReadI32(selected));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model() => throw new NotSupportedException("a choice, not a number");

    public override void CheckReference(Outputs reference) => CheckSelection(reference, errorPart: 1e-6);

    public override void Check(Outputs reference, Outputs actual) => CheckSelection(actual, errorPart: 1);

    /// <summary>
    /// The selected rows must be those of the largest scores, where scores within the error of F32 may change places but equal rows may
    /// not. A token whose query has an element on the edge between two codes has two sets of scores; such tokens are rare and are passed
    /// over.
    /// </summary>
    private void CheckSelection(Outputs outputs, double errorPart)
    {
        var undecided = 0;
        for (var t = 0; t < Tokens; t++)
        {
            var selected = outputs.Ints["Selected"].AsSpan(t * _topK, _topK).ToArray();
            var (sequence, position) = Layout[t];
            int visible = (position + 1) / _ratio, count = Math.Min(_topK, visible);
            Assert.All(selected[count..], b => Assert.Equal(-1, b));
            selected = selected[..count];
            Assert.Equal(selected.Order(), selected);
            Assert.Equal(count, selected.Distinct().Count());
            Assert.All(selected, b => Assert.InRange(b, 0, visible - 1));
            if (Scores(t, visible) is { } scores) CheckLargest(scores, _rows[sequence], selected, errorPart);
            else undecided++;
        }
        Assert.True(undecided * 5 <= Tokens, $"{undecided} of {Tokens} tokens cannot be judged");
    }

    private static void CheckLargest(Approx scores, float[][] rows, int[] selected, double errorPart)
    {
        for (var b = 0; b < scores.Length; b++)
        {
            if (selected.Contains(b)) continue;
            foreach (var chosen in selected)
            {
                var slack = errorPart * (scores.Errors[b] + scores.Errors[chosen]);
                Assert.True(scores.Values[b] <= scores.Values[chosen] + slack,
                    $"row {b} (score {scores.Values[b]:R}) was left out for row {chosen} (score {scores.Values[chosen]:R})");
                var tie = rows[b].AsSpan().SequenceEqual(rows[chosen]) || (scores[b] == (0, 0) && scores[chosen] == (0, 0));
                Assert.True(!tie || chosen < b, $"row {b} was left out for row {chosen} of the same score");
            }
        }
    }

    private Approx? Scores(int t, int visible)
    {
        var (sequence, position) = Layout[t];
        var scores = new Approx(visible);
        for (var h = 0; h < _heads; h++)
        {
            var rotated = Approx.Exact(_queries.AsSpan((t * _heads + h) * _width, _width)).Rotate(position, _frequencies);
            if (RoundedRow.Certain(rotated, _rounding, 2 * _frequencies.Length) is not { } query) return null;
            var errors = _rounding == RowRounding.None ? rotated.Errors
                : _rounding == RowRounding.Fp8Block64 ? [.. rotated.Errors.Select((e, i) => i < _width - 2 * _frequencies.Length ? 0 : e)]
                : new double[_width];
            for (var b = 0; b < visible; b++)
            {
                var row = _rows[sequence][b];
                var (dot, error) = Approx.Dot(query, row);
                for (var i = 0; i < _width; i++) error += errors[i] * Math.Abs(row[i]);
                var weight = Math.Abs((double)_headWeights[t * _heads + h] * _scale);
                if (dot + error <= 0) continue; // relu gives exactly zero
                scores[b] = (scores.Values[b] + _headWeights[t * _heads + h] * (double)_scale * Math.Max(dot, 0),
                    scores.Errors[b] + weight * (error + (_heads + 3) * Approx.Eps * Math.Max(dot, 0)));
            }
        }
        return scores;
    }
}

internal enum AttentionRows { WindowOnly, AllVisible, Selected, SelectedNone }

internal sealed class AttentionCase : SequenceCase
{
    private const int WindowRowsPerPage = 5, CompressedRowsPerPage = 3;
    private readonly float[] _queries, _sinks;
    private readonly int[] _selected;
    private readonly float[][][] _window, _compressed;
    private readonly int _heads, _width, _windowSize, _ratio, _topK;
    private readonly float _scale;

    /// <param name="sink">Centre of the heads' sinks.</param>
    public AttentionCase(
        (int First, int Count)[] sequences, int heads, int width, int window, int compressed, AttentionRows rows, double sink,
        int topK = 0, double magnitude = 1, RowEncoding encoding = RowEncoding.F32, int rotary = 0)
        : base($"Attention {Describe(sequences)} H={heads} D={width} W={window} r={compressed} {rows} k={topK} sink {sink} magnitude {magnitude}"
            + (encoding == RowEncoding.F32 ? "" : $" stored as {encoding}"),
            sequences)
    {
        var random = Draws.For(Name);
        (_heads, _width, _windowSize, _ratio, _topK) = (heads, width, window, compressed, topK);
        _scale = (float)Math.Pow(width, -0.5);
        _queries = Draws.Floats(random, Tokens * heads * width, 2 * magnitude);
        _sinks = [.. Enumerable.Range(0, heads).Select(h => (float)(sink + 0.1 * h))];
        _window = [.. sequences.Select(s => Enumerable.Range(0, s.First + s.Count).Select(_ => Draws.Floats(random, width)).ToArray())];
        _compressed = [.. sequences.Select(s => Enumerable.Range(0, compressed == 0 ? 0 : (s.First + s.Count) / compressed)
            .Select(_ => Draws.Floats(random, width)).ToArray())];
        Format = FormatOf(encoding, width, rotary);
        _window = Array.ConvertAll(_window, all => Array.ConvertAll(all, row => Storable(Format, row)));
        _compressed = Array.ConvertAll(_compressed, all => Array.ConvertAll(all, row => Storable(Format, row)));
        _selected = rows is AttentionRows.Selected or AttentionRows.SelectedNone ? new int[Tokens * topK] : [];
        Array.Fill(_selected, -1);
        for (var t = 0; t < Tokens && rows == AttentionRows.Selected; t++)
        {
            var visible = (Layout[t].Position + 1) / compressed;
            Draws.Permutation(random, visible).Take(topK).Order().ToArray().CopyTo(_selected, t * topK);
        }
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var (slots, slotCount) = Slots(device);
        // Rows that fell out of every token's window are dropped; the pages keep a few of them, NaN.
        (int, int)[] kept = Array.ConvertAll(Sequences, s =>
        {
            var first = Math.Max(0, s.First - _windowSize + 1);
            return (first, s.Count == 0 ? 0 : s.First + s.Count - first);
        });
        (int, int)[] blocks = Array.ConvertAll(_compressed, rows => (0, rows.Length));
        PagedRows Store(int rowsPerPage, (int, int)[] ranges, float[][][] rows) =>
            new PagedStore(device, new KeptRows(Format, rowsPerPage, ranges, (s, r) => rows[s][r]), slots, slotCount, (_, _) => false).Rows;
        var window = Store(WindowRowsPerPage, kept, _window);
        var compressed = _ratio > 0 ? Store(CompressedRowsPerPage, blocks, _compressed) : default;
        var sinks = device.Vector(_sinks);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var queries = device.In(Pick(_queries, _heads * _width, tokens), tokens.Length, _heads, _width);
            var selected = _selected.Length == 0 ? default : device.In(Pick(_selected, _topK, tokens), tokens.Length, _topK);
            var output = device.Out(DType.F32, tokens.Length, _heads, _width);
            var layout = StepTokens(device, tokens, slots);
            device.Run(new Attention(queries, layout, window, _windowSize, compressed, _ratio, selected, sinks, _scale, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(_queries.Length);
        for (var t = 0; t < Tokens; t++)
        {
            var rows = RowsOf(t);
            for (var h = 0; h < _heads; h++)
                Attend(_queries.AsSpan((t * _heads + h) * _width, _width), rows, _sinks[h]).CopyTo(output, (t * _heads + h) * _width);
        }
        return new() { ["Output"] = output };
    }

    private List<float[]> RowsOf(int t)
    {
        var (sequence, position) = Layout[t];
        var rows = Enumerable.Range(0, position + 1).Where(p => position - p < _windowSize).Select(p => _window[sequence][p]).ToList();
        if (_ratio == 0) return rows;
        var blocks = Enumerable.Range(0, (position + 1) / _ratio);
        if (_selected.Length > 0) blocks = blocks.Intersect(_selected.AsSpan(t * _topK, _topK).ToArray());
        rows.AddRange(blocks.Select(b => _compressed[sequence][b]));
        return rows;
    }

    /// <summary>Softmax as exp(score - log of the sum of exp): one pass over the scores, the sink as one more of them.</summary>
    private Approx Attend(ReadOnlySpan<float> query, List<float[]> rows, float sink)
    {
        var scores = new (double Value, double Error)[rows.Count];
        var exact = Array.ConvertAll(query.ToArray(), x => (double)x);
        for (var i = 0; i < scores.Length; i++)
        {
            var (value, error) = Approx.Dot(exact, rows[i]);
            scores[i] = (value * _scale, error * _scale + 2 * Approx.Eps * Math.Abs(value * _scale));
        }
        var max = Math.Max(scores.Max(s => s.Value), sink);
        var logSum = max + Math.Log(scores.Sum(s => Math.Exp(s.Value - max)) + Math.Exp(sink - max));
        // A weight is off by its score's error, by the rounding of score - max and of exp, and by what the sum of all weights is off.
        var weights = Array.ConvertAll(scores, s => Math.Exp(s.Value - logSum));
        var relative = Array.ConvertAll(scores, s => s.Error + Approx.Eps * (max - s.Value + 8 + Math.Sqrt(scores.Length)));
        var sinkError = Approx.Eps * (double.IsInfinity(sink) ? 8 : 8 + Math.Exp(sink - logSum) * (max - sink));
        var sumError = weights.Zip(relative).Sum(w => w.First * w.Second) + sinkError;
        var output = new Approx(query.Length);
        for (var channel = 0; channel < output.Length; channel++)
        {
            double value = 0, magnitude = 0;
            for (var i = weights.Length - 1; i >= 0; i--)
            {
                value += weights[i] * rows[i][channel];
                magnitude += weights[i] * Math.Abs(rows[i][channel]) * (relative[i] + sumError);
            }
            output[channel] = (value, magnitude + Approx.Tiny * rows.Count);
        }
        return output;
    }
}

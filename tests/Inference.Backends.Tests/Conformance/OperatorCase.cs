// One operator on one set of inputs, and the three questions that are asked of it (ConformanceTests): is the reference right, does a
// backend agree with the reference, does a backend give every token the same bits however the tokens are batched and placed.
//
// A case draws its inputs from its name, so every run sees the same numbers. It holds arrays only; tensors belong to the device that it
// runs on. What a token gives is kept at the token's place, whatever call computed it.
using System.Runtime.InteropServices;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>How the tokens of a case are cut into calls: each step lists token indices in batch order.</summary>
internal sealed record Schedule(string Name, int[][] Steps)
{
    public static Schedule Whole(OperatorCase c) => new("whole", [[.. Enumerable.Range(0, c.Tokens)]]);

    public static Schedule OneByOne(OperatorCase c) => new("one by one", [.. Enumerable.Range(0, c.Tokens).Select(t => new[] { t })]);

    /// <summary>Chunks of any length of any of the sequences, the sequences in any order, each sequence's tokens in theirs.</summary>
    public static Schedule Chunked(OperatorCase c, int seed)
    {
        var random = new Random(seed);
        var waiting = Enumerable.Range(0, c.Tokens).GroupBy(t => c.Layout[t].Sequence).Select(g => new Queue<int>(g)).ToList();
        var steps = new List<int[]>();
        while (waiting.Exists(q => q.Count > 0))
        {
            var step = new List<int>();
            foreach (var i in Draws.Permutation(random, waiting.Count))
            {
                for (var n = random.Next(0, random.Next(2) == 0 ? 3 : 40); n > 0 && waiting[i].Count > 0; n--)
                    step.Add(waiting[i].Dequeue());
            }
            if (step.Count > 0) steps.Add([.. step]);
        }
        return new Schedule($"chunked {seed}", [.. steps]);
    }
}

/// <summary>What a case's tokens gave: named arrays of F32 or I32, in the order of the tokens (or of whatever the case says).</summary>
internal sealed class Outputs
{
    public Dictionary<string, float[]> Floats { get; } = [];
    public Dictionary<string, int[]> Ints { get; } = [];

    /// <summary>Files the rows of one call under its tokens.</summary>
    public void Scatter(string name, OperatorCase c, int[] tokens, float[] rows) => Scatter(Floats, name, c, tokens, rows);

    public void Scatter(string name, OperatorCase c, int[] tokens, int[] rows) => Scatter(Ints, name, c, tokens, rows);

    private static void Scatter<T>(Dictionary<string, T[]> all, string name, OperatorCase c, int[] tokens, T[] rows)
    {
        if (tokens.Length == 0) return;
        var width = rows.Length / tokens.Length;
        if (!all.TryGetValue(name, out var values)) all[name] = values = new T[c.Tokens * width];
        for (var i = 0; i < tokens.Length; i++)
            Array.Copy(rows, i * width, values, tokens[i] * width, width);
    }

    public void AssertSameBits(Outputs other, string where)
    {
        Assert.Equal(Floats.Keys.Order(), other.Floats.Keys.Order());
        foreach (var (name, values) in Floats)
            AssertSame(MemoryMarshal.Cast<float, int>(values), MemoryMarshal.Cast<float, int>(other.Floats[name]), $"{name}, {where}");
        Assert.Equal(Ints.Keys.Order(), other.Ints.Keys.Order());
        foreach (var (name, values) in Ints)
            AssertSame(values, other.Ints[name], $"{name}, {where}");
    }

    private static void AssertSame(ReadOnlySpan<int> expected, ReadOnlySpan<int> actual, string where)
    {
        var i = expected.CommonPrefixLength(actual);
        Assert.True(i == expected.Length && i == actual.Length,
            $"{where}: element {i} differs, {(i < expected.Length ? BitConverter.Int32BitsToSingle(expected[i]) : 0):R} and "
            + $"{(i < actual.Length ? BitConverter.Int32BitsToSingle(actual[i]) : 0):R} as F32");
    }
}

/// <summary>Numbers and how far from each an F32 computation of them may end up.</summary>
internal sealed class Approx(double[] values, double[] errors)
{
    /// <summary>Half a unit in the last place of 1: the relative error of one F32 rounding.</summary>
    public const double Eps = 1.0 / (1 << 24);

    /// <summary>Smallest normal F32: below it results may be flushed to zero.</summary>
    public static readonly double Tiny = Math.Pow(2, -126);

    public Approx(int count) : this(new double[count], new double[count]) { }

    public double[] Values { get; } = values;
    public double[] Errors { get; } = errors;
    public int Length => Values.Length;

    public static Approx Exact(ReadOnlySpan<float> values)
    {
        var result = new Approx(values.Length);
        for (var i = 0; i < values.Length; i++) result.Values[i] = values[i];
        return result;
    }

    public (double Value, double Error) this[int i]
    {
        get => (Values[i], Errors[i]);
        set => (Values[i], Errors[i]) = value;
    }

    public void CopyTo(Approx destination, int start)
    {
        Values.CopyTo(destination.Values, start);
        Errors.CopyTo(destination.Errors, start);
    }

    /// <summary>Sum of products in F32: the rounding errors of K additions are as good as independent, hence the root.</summary>
    public static (double Value, double Error) Dot(ReadOnlySpan<double> a, ReadOnlySpan<float> b)
    {
        double sum = 0, magnitude = 0;
        for (var i = a.Length - 1; i >= 0; i--)
        {
            sum += a[i] * b[i];
            magnitude += Math.Abs(a[i] * b[i]);
        }
        return (sum, Eps * (Math.Sqrt(a.Length) + 4) * magnitude);
    }

    /// <summary>RMSNorm with the error of its input carried through.</summary>
    public Approx RmsNorm(ReadOnlySpan<float> weight, double epsilon)
    {
        double squares = 0, moved = 0;
        for (var i = 0; i < Length; i++)
        {
            squares += Math.Pow(Values[i], 2);
            moved += Math.Abs(Values[i]) * Errors[i];
        }
        var rho = Math.Pow(squares / Length + epsilon, -0.5);
        var relative = moved / (squares + Length * epsilon) + Eps * (Math.Sqrt(Length) / 2 + 4);
        var result = new Approx(Length);
        for (var i = 0; i < Length; i++)
        {
            double w = weight.IsEmpty ? 1 : weight[i], value = Values[i] * rho * w;
            result[i] = (value, Math.Abs(w) * rho * (Errors[i] + Math.Abs(Values[i]) * relative) + 2 * Eps * Math.Abs(value));
        }
        return result;
    }

    /// <summary>Rotates the last channels as complex numbers.</summary>
    public Approx Rotate(int position, ReadOnlySpan<float> frequencies, bool inverse = false)
    {
        var result = new Approx([.. Values], [.. Errors]);
        var start = Length - 2 * frequencies.Length;
        for (var i = 0; i < frequencies.Length; i++)
        {
            int a = start + 2 * i, b = a + 1;
            float angle = (float)position * frequencies[i];
            var z = new System.Numerics.Complex(Values[a], Values[b])
                * System.Numerics.Complex.Exp(new System.Numerics.Complex(0, inverse ? -(double)angle : angle));
            var error = Errors[a] + Errors[b] + 4 * Eps * (Math.Abs(Values[a]) + Math.Abs(Values[b]));
            result[a] = (z.Real, error);
            result[b] = (z.Imaginary, error);
        }
        return result;
    }
}

internal abstract class OperatorCase(string name, (int Sequence, int Position)[] layout)
{
    public string Name { get; } = name;

    /// <summary>Sequence and position of every token; a case without sequences gives every token its own.</summary>
    public (int Sequence, int Position)[] Layout { get; } = layout;

    public int Tokens => Layout.Length;

    /// <summary>True for weights that a backend may refuse to prepare.</summary>
    public virtual bool MayBeRefused => false;

    /// <summary>Computes all tokens as the schedule says.</summary>
    public abstract Outputs Run(TestDevice device, Schedule schedule);

    /// <summary>Every F32 output, by another way and in double, with error bounds for F32 arithmetic.</summary>
    public abstract Dictionary<string, Approx> Model();

    /// <summary>The reference rounds once: it may be off by half a unit in the last place, and by the noise of float64.</summary>
    public virtual void CheckReference(Outputs reference)
    {
        foreach (var (name, model) in Model())
        {
            double Bound(int i) => 1.0001 * Approx.Eps * Math.Abs(model.Values[i]) + 1e-6 * model.Errors[i] + 1.5e-45;
            Compare(name, model.Values, Bound, reference.Floats);
        }
    }

    /// <summary>A backend may be as far from the reference as the operation's error bound says.</summary>
    public virtual void Check(Outputs reference, Outputs actual)
    {
        foreach (var (name, model) in Model())
        {
            var expected = model.Length == 0 ? [] : Array.ConvertAll(reference.Floats[name], x => (double)x);
            double Bound(int i) => model.Errors[i] + Approx.Eps * Math.Abs(model.Values[i]) + Approx.Tiny;
            Compare(name, expected, Bound, actual.Floats);
        }
    }

    private static void Compare(string name, double[] expected, Func<int, double> bound, Dictionary<string, float[]> outputs)
    {
        if (expected.Length == 0) return;
        var actual = outputs[name];
        Assert.Equal(expected.Length, actual.Length);
        for (var i = 0; i < expected.Length; i++)
        {
            Assert.True(Math.Abs(actual[i] - expected[i]) <= bound(i) || actual[i] == expected[i],
                $"{name}[{i}]: {actual[i]:R}, expected {expected[i]:R} +- {bound(i):E2}");
        }
    }

    /// <summary>A layout for operators without sequences.</summary>
    protected static (int, int)[] Independent(int tokens) => [.. Enumerable.Range(0, tokens).Select(t => (t, 0))];

    /// <summary>The rows of some tokens.</summary>
    protected static T[] Pick<T>(T[] all, int width, int[] tokens)
    {
        var rows = new T[tokens.Length * width];
        for (var i = 0; i < tokens.Length; i++)
            Array.Copy(all, tokens[i] * width, rows, i * width, width);
        return rows;
    }
}

using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>Embedding, norm, linear and SwiGLU, by their formulas (Operators/Dense.cs). Static; owns nothing.</summary>
internal static unsafe class ReferenceDense
{
    public static void Run(in Embed op)
    {
        var table = (ReferenceWeight)op.Table;
        var row = new double[table.Columns];
        for (var t = 0; t < op.Ids.D0; t++)
        {
            table.DecodeRow(HostRows.Index("Embed.Ids", $"token {t}", op.Ids.I32()[t], table.Rows), row);
            var output = HostRows.Row(op.Output, t); // [copies, D]
            for (var i = 0; i < output.Length; i++)
                output[i] = (float)row[i % row.Length];
        }
    }

    public static void Run(in GatherRows op)
    {
        for (var m = 0; m < op.Rows.D0; m++)
        {
            var source = HostRows.Index("GatherRows.Rows", $"entry {m}", op.Rows.I32()[m], op.Input.D0);
            HostRows.Row(op.Input, source).CopyTo(HostRows.Row(op.Output, m));
        }
    }

    public static void Run(in RmsNorm op)
    {
        var width = op.Input.Rank == 2 ? op.Input.D1 : op.Input.D2;
        var weight = op.Weight.IsPresent ? op.Weight.F32() : null;
        for (var t = 0; t < op.Input.D0; t++)
        {
            for (var start = 0; start < op.Input.RowElements; start += width)
            {
                var input = HostRows.Row(op.Input, t).Slice(start, width);
                var output = HostRows.Row(op.Output, t).Slice(start, width);
                var rho = InverseRms(input, op.Epsilon);
                for (var i = 0; i < width; i++)
                    output[i] = (float)(input[i] * rho * (weight is null ? 1 : weight[i]));
            }
        }
    }

    public static void Run(in Linear op)
    {
        var weight = (ReferenceWeight)op.Weight;
        var row = new double[weight.Columns];
        for (var n = 0; n < weight.Rows; n++)
        {
            weight.DecodeRow(n, row);
            for (var t = 0; t < op.Input.D0; t++)
                op.Output.F32(t)[n] = (float)Dot(row, HostRows.Row(op.Input, t));
        }
    }

    public static void Run(in GroupedLinear op)
    {
        var weight = (ReferenceWeight)op.Weight;
        int outputs = op.Output.D2, inputs = op.Input.D2;
        var row = new double[inputs];
        for (var n = 0; n < weight.Rows; n++)
        {
            weight.DecodeRow(n, row);
            for (var t = 0; t < op.Input.D0; t++) // row n of the weight belongs to group n / outputs, and [G, N] is flat in n
                op.Output.F32(t)[n] = (float)Dot(row, HostRows.Row(op.Input, t).Slice(n / outputs * inputs, inputs));
        }
    }

    public static void Run(in SwiGlu op)
    {
        for (var t = 0; t < op.Gate.D0; t++)
        {
            Span<float> gate = HostRows.Row(op.Gate, t), up = HostRows.Row(op.Up, t), output = HostRows.Row(op.Output, t);
            for (var i = 0; i < output.Length; i++)
                output[i] = (float)SwiGlu(gate[i], up[i], op.Limit);
        }
    }

    /// <summary>silu(min(gate, limit)) * clamp(up, -limit, limit).</summary>
    public static double SwiGlu(double gate, double up, double limit)
    {
        gate = Math.Min(gate, limit);
        return gate / (1 + Math.Exp(-gate)) * Math.Clamp(up, -limit, limit);
    }

    /// <summary>Sum of products, in the order of the index.</summary>
    public static double Dot(ReadOnlySpan<double> a, ReadOnlySpan<float> b)
    {
        var sum = 0.0;
        for (var i = 0; i < a.Length; i++)
            sum += a[i] * b[i];
        return sum;
    }

    /// <summary>1 / sqrt(mean(x^2) + epsilon).</summary>
    public static double InverseRms(ReadOnlySpan<float> x, float epsilon)
    {
        var sum = 0.0;
        foreach (double value in x)
            sum += value * value;
        return 1 / Math.Sqrt(sum / x.Length + epsilon);
    }
}

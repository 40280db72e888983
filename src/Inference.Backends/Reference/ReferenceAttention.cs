using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>Choosing rows and attending to them (Operators/Attention.cs; deepseek-v4 2.8, 2.9). Static; owns nothing.</summary>
internal static unsafe class ReferenceAttention
{
    public static void Run(in IndexTopK op, bool poison)
    {
        HostRows.CheckTokens("IndexTopK", op.Tokens, op.Rows.PageTable.D0);
        int heads = op.Queries.D1, width = op.Queries.D2;
        var vector = new double[width];
        for (var t = 0; t < op.Queries.D0; t++)
        {
            int sequence = op.Tokens.Sequence.I32()[t], position = op.Tokens.Position.I32()[t];
            var queries = HostRows.Row(op.Queries, t); // [H, D]
            for (var h = 0; h < heads; h++)
                FinishQuery(queries.Slice(h * width, width), position, op.Rope, op.Rounding, vector);

            var headWeights = HostRows.Row(op.HeadWeights, t);
            var scores = new double[(int)((position + 1L) / op.Ratio)];
            for (var b = 0; b < scores.Length; b++)
                scores[b] = IndexScore(queries, headWeights, op.Scale, HostRows.Read("IndexTopK.Rows", op.Rows, sequence, b));

            var selected = new Span<int>(op.Selected.I32(t), op.TopK);
            var count = Math.Min(op.TopK, scores.Length);
            Largest(scores, selected[..count]);
            selected[..count].Sort();
            selected[count..].Fill(-1);
            if (poison) queries.Fill(float.NaN);
        }
    }

    private static void FinishQuery(Span<float> query, int position, in Rope rope, RowRounding rounding, Span<double> scratch)
    {
        for (var i = 0; i < query.Length; i++)
            scratch[i] = query[i];
        ReferenceRows.Rotate(scratch, position, rope, inverse: false);
        for (var i = 0; i < query.Length; i++)
            query[i] = (float)scratch[i];
        ReferenceRows.Round(query, rope, rounding);
    }

    private static double IndexScore(ReadOnlySpan<float> queries, ReadOnlySpan<float> headWeights, float scale, ReadOnlySpan<float> row)
    {
        var score = 0.0;
        for (var h = 0; h < headWeights.Length; h++)
            score += (double)headWeights[h] * scale * Math.Max(Dot(queries.Slice(h * row.Length, row.Length), row), 0);
        return score;
    }

    /// <summary>Indices of the largest scores, in descending order; of equal ones the smaller index comes first. NaN counts as the
    /// smallest.</summary>
    public static void Largest(ReadOnlySpan<double> scores, Span<int> chosen)
    {
        var taken = new bool[scores.Length];
        for (var k = 0; k < chosen.Length; k++)
        {
            var best = -1;
            for (var i = 0; i < scores.Length; i++)
            {
                if (!taken[i] && (best < 0 || scores[i] > scores[best] || (double.IsNaN(scores[best]) && !double.IsNaN(scores[i]))))
                    best = i;
            }
            taken[best] = true;
            chosen[k] = best;
        }
    }

    public static void Run(in Attention op)
    {
        HostRows.CheckTokens("Attention", op.Tokens, op.Window.PageTable.D0);
        int heads = op.Queries.D1, width = op.Queries.D2;
        for (var t = 0; t < op.Queries.D0; t++)
        {
            var rows = RowsOf(op, t);
            for (var h = 0; h < heads; h++)
            {
                var query = HostRows.Row(op.Queries, t).Slice(h * width, width);
                Attend(query, rows, op.Scale, op.Sinks.F32()[h], HostRows.Row(op.Output, t).Slice(h * width, width));
            }
        }
    }

    /// <summary>Token t's row set, in the documented order.</summary>
    private static List<float[]> RowsOf(in Attention op, int t)
    {
        int sequence = op.Tokens.Sequence.I32()[t], position = op.Tokens.Position.I32()[t];
        var rows = new List<float[]>();
        for (var p = Math.Max(0, position - op.WindowSize + 1); p <= position; p++)
            rows.Add(HostRows.Read("Attention.Window", op.Window, sequence, p));
        if (!op.Compressed.IsPresent) return rows;

        var visible = (int)((position + 1L) / op.Ratio);
        if (!op.Selected.IsPresent)
        {
            for (var b = 0; b < visible; b++)
                rows.Add(HostRows.Read("Attention.Compressed", op.Compressed, sequence, b));
            return rows;
        }
        foreach (var b in new ReadOnlySpan<int>(op.Selected.I32(t), op.Selected.D1))
        {
            if (b == -1) break; // the list ends here
            if ((uint)b >= (uint)visible)
                throw HostRows.Wrong($"Attention.Selected: token {t} at position {position} selects row {b} of {visible} visible ones.");
            rows.Add(HostRows.Read("Attention.Compressed", op.Compressed, sequence, b));
        }
        return rows;
    }

    private static void Attend(ReadOnlySpan<float> query, List<float[]> rows, float scale, float sink, Span<float> output)
    {
        var weights = new double[rows.Count];
        double max = sink;
        for (var i = 0; i < weights.Length; i++)
        {
            weights[i] = Dot(query, rows[i]) * scale;
            max = Math.Max(max, weights[i]);
        }
        var denominator = Math.Exp(sink - max);
        for (var i = 0; i < weights.Length; i++)
        {
            weights[i] = Math.Exp(weights[i] - max);
            denominator += weights[i];
        }
        for (var channel = 0; channel < output.Length; channel++)
        {
            var sum = 0.0;
            for (var i = 0; i < weights.Length; i++)
                sum += weights[i] * rows[i][channel];
            output[channel] = (float)(sum / denominator);
        }
    }

    private static double Dot(ReadOnlySpan<float> a, ReadOnlySpan<float> b)
    {
        var sum = 0.0;
        for (var i = 0; i < a.Length; i++)
            sum += (double)a[i] * b[i];
        return sum;
    }
}

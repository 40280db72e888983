using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>
/// Whether a rounded row can have come from numbers that are known up to an error: rounding is monotone, so each element must lie between
/// the rounded ends of its interval, for one scale that the block's largest magnitude allows. This is as strict as a comparison can be:
/// an element changes its code only if its interval holds a boundary between two codes.
/// </summary>
internal static class RoundedRow
{
    public static void AssertPossible(Approx row, ReadOnlySpan<float> actual, RowRounding rounding, int rotary, string where)
    {
        switch (rounding)
        {
            case RowRounding.None:
                AssertPlain(row, actual, 0, row.Length, where);
                break;
            case RowRounding.Fp8Block64:
                var plain = row.Length - rotary;
                for (var start = 0; start < plain; start += 64) AssertBlock(row, actual, start, 64, fp8: true, where);
                AssertPlain(row, actual, plain, rotary, where);
                break;
            default:
                var transformed = Hadamard(row);
                for (var start = 0; start < row.Length; start += 32) AssertBlock(transformed, actual, start, 32, fp8: false, where);
                break;
        }
    }

    /// <summary>The codes' values if no other ones are possible; null if the errors leave a choice.</summary>
    public static double[]? Certain(Approx row, RowRounding rounding, int rotary)
    {
        if (rounding == RowRounding.None) return row.Values;
        var fp8 = rounding == RowRounding.Fp8Block64;
        var source = fp8 ? row : Hadamard(row);
        double[] values = [.. source.Values];
        int end = fp8 ? row.Length - rotary : row.Length, block = fp8 ? 64 : 32;
        for (var start = 0; start < end; start += block)
        {
            var scales = Scales(source, start, block, fp8);
            if (scales.Count > 1) return null;
            for (var i = start; i < start + block; i++)
            {
                values[i] = Quantise(source.Values[i] - source.Errors[i], scales[0], fp8);
                if (values[i] != Quantise(source.Values[i] + source.Errors[i], scales[0], fp8)) return null;
            }
        }
        return values;
    }

    private static void AssertPlain(Approx row, ReadOnlySpan<float> actual, int start, int count, string where)
    {
        for (var i = start; i < start + count; i++)
        {
            var bound = row.Errors[i] + Approx.Eps * Math.Abs(row.Values[i]) + Approx.Tiny;
            Assert.True(Math.Abs(actual[i] - row.Values[i]) <= bound, $"{where}[{i}]: {actual[i]:R}, expected {row.Values[i]:R} +- {bound:E2}");
        }
    }

    private static void AssertBlock(Approx row, ReadOnlySpan<float> actual, int start, int count, bool fp8, string where)
    {
        var complaint = "";
        foreach (var scale in Scales(row, start, count, fp8))
        {
            complaint = "";
            for (var i = start; i < start + count && complaint.Length == 0; i++)
            {
                double low = Quantise(row.Values[i] - row.Errors[i], scale, fp8), high = Quantise(row.Values[i] + row.Errors[i], scale, fp8);
                if (!(actual[i] >= low && actual[i] <= high))
                {
                    complaint = $"{where}[{i}]: {actual[i]:R}, expected {low:R}..{high:R} (scale {scale:R}) "
                        + $"from {row.Values[i]:R} +- {row.Errors[i]:E2}";
                }
            }
            if (complaint.Length == 0) return;
        }
        Assert.Fail(complaint);
    }

    /// <summary>Scales that the block may have had: those of the smallest and of the largest magnitude that its maximum may have had.</summary>
    private static List<double> Scales(Approx row, int start, int count, bool fp8)
    {
        double low = 0, high = 0;
        for (var i = start; i < start + count; i++)
        {
            low = Math.Max(low, Math.Abs(row.Values[i]) - row.Errors[i]);
            high = Math.Max(high, Math.Abs(row.Values[i]) + row.Errors[i]);
        }
        return [.. new[] { Scale(low, fp8), Scale(high, fp8) }.Distinct()];
    }

    private static double Scale(double magnitude, bool fp8)
    {
        var clamped = Math.Max((float)magnitude, fp8 ? 1e-4f : 6 * MathF.Pow(2, -126));
        float step = fp8 ? 1f / 448 : 1f / 6, product = clamped * step; // an F32 product, as the spec wants it
        return Math.Pow(2, Math.Ceiling(Math.Log2(product)));
    }

    private static double Quantise(double x, double scale, bool fp8) => scale
        * (fp8 ? Formats.Nearest(x / scale, 126, Formats.E4M3) : Formats.Nearest(x / scale, 7, Formats.E2M1));

    /// <summary>Multiplication by the matrix itself: element (i, j) is (-1) to the number of ones that i and j share.</summary>
    private static Approx Hadamard(Approx row)
    {
        int n = row.Length, levels = int.Log2(n);
        var root = Math.Sqrt(n);
        var result = new Approx(n);
        for (var i = 0; i < n; i++)
        {
            double sum = 0, error = 0;
            for (var j = 0; j < n; j++)
            {
                sum += int.PopCount(i & j) % 2 == 0 ? row.Values[j] : -row.Values[j];
                error += row.Errors[j] + (levels + 2) * Approx.Eps * Math.Abs(row.Values[j]);
            }
            result[i] = (sum / root, error / root);
        }
        return result;
    }
}

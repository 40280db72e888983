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
        var (source, parts) = Parts(row, rounding, rotary);
        foreach (var (start, count, code) in parts)
        {
            if (code == Code.Plain) AssertPlain(source, actual, start, count, where);
            else AssertBlock(source, actual, start, count, code, where);
        }
    }

    /// <summary>The codes' values if no other ones are possible; null if the errors leave a choice.</summary>
    public static double[]? Certain(Approx row, RowRounding rounding, int rotary)
    {
        var (source, parts) = Parts(row, rounding, rotary);
        double[] values = [.. source.Values];
        foreach (var (start, count, code) in parts)
        {
            if (code == Code.Plain) continue;
            var scales = Scales(source, start, count, code);
            if (scales.Count > 1) return null;
            for (var i = start; i < start + count; i++)
            {
                values[i] = Quantise(source.Values[i] - source.Errors[i], scales[0], code);
                if (values[i] != Quantise(source.Values[i] + source.Errors[i], scales[0], code)) return null;
            }
        }
        return values;
    }

    private enum Code { Plain, BF16, E4M3, E2M1 }

    /// <summary>What is rounded, and the blocks that it is rounded in.</summary>
    private static (Approx Source, List<(int Start, int Count, Code Code)> Parts) Parts(Approx row, RowRounding rounding, int rotary)
    {
        List<(int, int, Code)> Blocks(int end, int size, Code code) => [.. Enumerable.Range(0, end / size).Select(b => (b * size, size, code))];
        var plain = row.Length - rotary;
        return rounding switch
        {
            RowRounding.None => (row, [(0, row.Length, Code.Plain)]),
            RowRounding.BF16 => (row, [(0, row.Length, Code.BF16)]),
            RowRounding.Fp8Block64 => (row, [.. Blocks(plain, 64, Code.E4M3), (plain, rotary, Code.Plain)]),
            RowRounding.Fp8Row => (row, [.. Blocks(plain, 64, Code.E4M3), (plain, rotary, Code.BF16)]),
            RowRounding.HadamardFp4Block32 => (Hadamard(row), Blocks(row.Length, 32, Code.E2M1)),
            _ => (Hadamard(row), [(0, row.Length, Code.E4M3)]),
        };
    }

    private static void AssertPlain(Approx row, ReadOnlySpan<float> actual, int start, int count, string where)
    {
        for (var i = start; i < start + count; i++)
        {
            var bound = row.Errors[i] + Approx.Eps * Math.Abs(row.Values[i]) + Approx.Tiny;
            Assert.True(Math.Abs(actual[i] - row.Values[i]) <= bound, $"{where}[{i}]: {actual[i]:R}, expected {row.Values[i]:R} +- {bound:E2}");
        }
    }

    private static void AssertBlock(Approx row, ReadOnlySpan<float> actual, int start, int count, Code code, string where)
    {
        var complaint = "";
        foreach (var scale in Scales(row, start, count, code))
        {
            complaint = "";
            for (var i = start; i < start + count && complaint.Length == 0; i++)
            {
                double low = Quantise(row.Values[i] - row.Errors[i], scale, code), high = Quantise(row.Values[i] + row.Errors[i], scale, code);
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
    private static List<double> Scales(Approx row, int start, int count, Code code)
    {
        if (code == Code.BF16) return [1];
        double low = 0, high = 0;
        for (var i = start; i < start + count; i++)
        {
            low = Math.Max(low, Math.Abs(row.Values[i]) - row.Errors[i]);
            high = Math.Max(high, Math.Abs(row.Values[i]) + row.Errors[i]);
        }
        return [.. new[] { Scale(low, code), Scale(high, code) }.Distinct()];
    }

    private static double Scale(double magnitude, Code code)
    {
        var clamped = Math.Max((float)magnitude, code == Code.E4M3 ? 1e-4f : 6 * MathF.Pow(2, -126));
        float step = code == Code.E4M3 ? 1f / 448 : 1f / 6, product = clamped * step; // an F32 product, as the spec wants it
        return Math.Pow(2, Math.Ceiling(Math.Log2(product)));
    }

    private static double Quantise(double x, double scale, Code code) => code switch
    {
        Code.E4M3 => scale * Formats.Nearest(x / scale, 126, Formats.E4M3),
        Code.E2M1 => scale * Formats.Nearest(x / scale, 7, Formats.E2M1),
        _ => NearestBF16(x),
    };

    /// <summary>Eight binary digits, ties to even.</summary>
    private static double NearestBF16(double x)
    {
        if (x == 0) return 0;
        var step = Math.Pow(2, Math.Max(Math.ILogB(x), -126) - 7);
        return Math.Round(x / step, MidpointRounding.ToEven) * step;
    }

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

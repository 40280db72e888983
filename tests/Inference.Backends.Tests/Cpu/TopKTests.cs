using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed unsafe class TopKTests
{
    [Theory]
    [InlineData(1, 1, 0)]
    [InlineData(50, 7, 1)]
    [InlineData(5000, 512, 2)]
    [InlineData(5000, 4999, 3)]
    [InlineData(70000, 64, 4)]
    public void Selects_what_a_stable_sort_selects(int count, int k, int seed)
    {
        var random = new Random(seed);
        // Few different values, so that there are ties everywhere; both zeros, infinities and NaN among them.
        float[] values = [0f, -0f, 1f, -1f, 1e-40f, float.NaN, float.PositiveInfinity, float.NegativeInfinity, .. Enumerable.Range(0, 30).Select(_ => random.NextSingle() - 0.5f)];
        var scores = Enumerable.Range(0, count).Select(_ => values[random.Next(values.Length)]).ToArray();
        var expected = Enumerable.Range(0, count).OrderByDescending(i => float.IsNaN(scores[i]) ? double.NegativeInfinity : scores[i] == float.NegativeInfinity ? double.MinValue : scores[i])
            .ThenBy(i => i).Take(k).Order().ToArray();
        Assert.Equal(expected, Select(scores, k));
    }

    [Fact]
    public void Selects_the_first_of_equal_scores()
    {
        Assert.Equal([0, 1, 2], Select([0f, -0f, 0f, -0f, 0f], 3));
        Assert.Equal([1, 3, 4], Select([float.NaN, 2f, float.NaN, float.NegativeInfinity, 2f], 3));
        Assert.Equal([0, 1, 3], Select([float.NaN, 2f, float.NaN, 2f], 3));
    }

    private static int[] Select(float[] scores, int k)
    {
        var selected = new int[k];
        var histogram = stackalloc int[TopK.ScratchInts];
        fixed (float* s = scores)
        fixed (int* i = selected)
            TopK.Select(s, scores.Length, k, i, histogram);
        return selected;
    }
}

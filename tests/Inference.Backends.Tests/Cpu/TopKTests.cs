using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed unsafe class TopKTests
{
    [Theory]
    [InlineData(1, 1, 0)]
    [InlineData(7, 9, 0)]
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

    [Theory]
    [InlineData(20_000, 32)]
    [InlineData(20_000, 700)]
    [InlineData(20_011, 9_000)]
    public void The_order_of_the_scores_does_not_matter(int count, int k)
    {
        // Ascending, every score passes the bar and the list of candidates is cut again and again; descending, none does.
        float[] ascending = [.. Enumerable.Range(0, count).Select(i => (i - count / 2) * 0.25f)];
        Assert.Equal(Enumerable.Range(count - k, k), Select(ascending, k));
        Assert.Equal(Enumerable.Range(0, k), Select([.. ascending.Reverse()], k));
        Assert.Equal(Enumerable.Range(0, k), Select(new float[count], k));
        var shuffled = ascending.ToArray();
        new Random(5).Shuffle(shuffled);
        Assert.Equal(Enumerable.Range(0, count).Where(i => shuffled[i] >= ascending[count - k]), Select(shuffled, k));
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
        var whole = Select(scores, k, scores.Length);
        // In pieces whose lists are joined, the same.
        foreach (int piece in (int[])[32, 96, 1 << 13]) Assert.Equal(whole, Select(scores, k, piece));
        return whole;
    }

    private static int[] Select(float[] scores, int k, int piece)
    {
        int pieces = (scores.Length + piece - 1) / piece, ints = TopK.Ints(k);
        var memory = new int[(pieces + 1) * ints + TopK.ScratchInts + 1];
        memory[^1] = 17;
        float[] padded = [.. scores, .. Enumerable.Repeat(float.PositiveInfinity, 32)];
        fixed (float* s = padded)
        fixed (int* m = memory)
        {
            var scratch = m + (pieces + 1) * ints;
            var all = new TopK();
            all.Begin(k, m + pieces * ints, scratch);
            for (int p = 0; p < pieces; p++)
            {
                var list = new TopK();
                list.Begin(k, m + p * ints, scratch);
                int end = Math.Min((p + 1) * piece, scores.Length);
                for (int first = p * piece; first < end; first += 32) list.Add(s + first, first, Math.Min(32, end - first));
                all.Add(list);
            }
            var best = all.Best().ToArray();
            Assert.Equal(17, memory[^1]);
            return best;
        }
    }
}

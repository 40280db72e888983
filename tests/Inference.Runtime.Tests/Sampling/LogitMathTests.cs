using CsCheck;
using Inference.Runtime.Sampling;
using Xunit;

namespace Inference.Runtime.Tests.Sampling;

public sealed class LogitMathTests
{
    private static readonly Gen<float[]> Rows = Gen.Float[-30, 30].Select(x => MathF.Round(x * 4) / 4).Array[1, 300];

    [Fact]
    public void Top_ids_are_those_of_a_stable_sort() => Gen.Select(Rows, Gen.Int[0, 300]).Sample((row, count) =>
    {
        var ids = new int[Math.Min(count, row.Length)];
        LogitMath.TopIds(row, ids.Length, ids);
        Assert.Equal(Enumerable.Range(0, row.Length).OrderByDescending(i => row[i]).ThenBy(i => i).Take(ids.Length), ids);
    }, iter: 5000);

    [Fact]
    public void Arg_max_is_the_first_of_the_largest() => Rows.Sample(row =>
        Assert.Equal((Array.IndexOf(row, row.Max()), row.Max()), LogitMath.ArgMax(row)), iter: 5000);

    [Fact]
    public void Ranks_order_by_value_then_smaller_id()
    {
        float[] values = [float.NegativeInfinity, -1e30f, -1, -1e-40f, 0, 1e-40f, 1, 1e30f, float.PositiveInfinity];
        for (int i = 1; i < values.Length; i++) Assert.True(LogitMath.Rank(values[i], 9) > LogitMath.Rank(values[i - 1], 0));
        Assert.True(LogitMath.Rank(1, 3) > LogitMath.Rank(1, 4));
        Assert.Equal(LogitMath.Rank(0f, 3), LogitMath.Rank(-0f, 3));
        Assert.Equal(129_279, LogitMath.RankedId(LogitMath.Rank(-3, 129_279)));
    }

    [Fact]
    public void Logprobs_agree_with_float64_to_the_last_digits_of_a_float() => Rows.Sample(row =>
    {
        double logSum = Math.Log(row.Sum(x => Math.Exp((double)x - row.Max())));
        var logprobs = Logprobs.Of(row, row.Length / 2, 5);
        Assert.Equal(row[row.Length / 2] - row.Max() - logSum, logprobs.Logprob, 3e-6);
        foreach (var top in logprobs.Top) Assert.Equal(row[top.TokenId] - row.Max() - logSum, top.Logprob, 3e-6);
        Assert.Equal(Math.Min(5, row.Length), logprobs.Top.Count);
    }, iter: 3000);

    [Fact]
    public void Logprobs_of_a_real_vocabulary_sum_to_one()
    {
        var random = new Random(3);
        var row = Enumerable.Range(0, 129_280).Select(_ => random.NextSingle() * 20 - 10).ToArray();
        double sum = 0;
        for (int i = 0; i < row.Length; i += 997)
            Assert.Equal(row[i] - row[0], Logprobs.Of(row, i, 0).Logprob - Logprobs.Of(row, 0, 0).Logprob, 1e-5);
        float max = row.Max();
        double logSum = Math.Log(LogitMath.ExpSum(row, max));
        foreach (float x in row) sum += Math.Exp(x - max - logSum);
        Assert.Equal(1, sum, 1e-6);
    }
}

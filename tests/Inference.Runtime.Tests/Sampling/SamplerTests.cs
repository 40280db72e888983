using CsCheck;
using Inference.Runtime.Sampling;
using Xunit;

namespace Inference.Runtime.Tests.Sampling;

public sealed class SamplerTests
{
    private static readonly SamplingParams Plain = new(1, 0, 1, 0, 1, 0, 0, 1234);

    private static int Next(float[] logits, SamplingParams p, int index = 0) => new Sampler(logits.Length).Next(logits, p, index, null);

    private static float[] Normal(Random random, int count, float spread) =>
        [.. Enumerable.Range(0, count).Select(_ => spread * (float)(Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble())))];

    [Fact]
    public void Greedy_takes_the_largest_and_of_equals_the_smaller_id()
    {
        foreach (int count in (int[])[1, 2, 7, 8, 9, 64, 1000])
            for (int at = 0; at < count; at++)
            {
                var logits = new float[count];
                Array.Fill(logits, -3f);
                logits[at] = logits[count - 1] = 2;
                Assert.Equal(at, Next(logits, SamplingParams.Greedy));
                Assert.Equal(at, Next(logits, Plain with { TopK = 1, Temperature = 5 }));
            }
        Assert.Equal(0, Next([-0f, 0f], SamplingParams.Greedy));
        Assert.Equal(1, Next([float.NegativeInfinity, -1e30f], SamplingParams.Greedy));
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    public void Logits_that_are_not_numbers_are_refused_wherever_they_stand(float bad)
    {
        for (int count = 1; count < 40; count++)
            for (int at = 0; at < count; at++)
            {
                var logits = new float[count];
                logits[at] = bad;
                Assert.Throws<InvalidLogitsException>(() => Next(logits, SamplingParams.Greedy));
                Assert.Throws<InvalidLogitsException>(() => Next(logits, Plain));
            }
        Assert.Throws<InvalidLogitsException>(() => Next([float.NegativeInfinity, float.NegativeInfinity], Plain));
    }

    [Fact]
    public void Excluded_tokens_are_never_drawn()
    {
        var logits = new float[300];
        Array.Fill(logits, float.NegativeInfinity);
        logits[17] = 1;
        logits[200] = -40;
        foreach (var p in (SamplingParams[])[Plain, Plain with { TopK = 20 }, Plain with { TopK = 280 }, Plain with { TopP = 0.999999f }])
            for (int i = 0; i < 200; i++) Assert.Equal(17, Next(logits, p, i));
    }

    [Fact]
    public void Ids_that_must_never_be_drawn_are_not_whatever_the_request_says()
    {
        var sampler = new Sampler(30, 5, 29);
        var p = Plain with { LogitBias = new Dictionary<int, float> { [5] = 1000 }, PresencePenalty = -2 };
        var logits = new float[30];
        logits[29] = 50;
        Assert.Equal(0, sampler.Next(logits, SamplingParams.Greedy, 0, null));
        Assert.Equal(28, Enumerable.Range(0, 2000).Select(i => sampler.Next(logits, p, i, null)).Except([5, 29]).Distinct().Count());
        Assert.DoesNotContain(Enumerable.Range(0, 2000), i => sampler.Next(logits, p, i, null) is 5 or 29);
    }

    [Fact]
    public void A_very_small_temperature_is_greedy_and_a_very_large_one_uniform()
    {
        var logits = Normal(new(5), 100, 3);
        int best = Array.IndexOf(logits, logits.Max());
        foreach (float cold in (float[])[1e-3f, 1e-30f, float.Epsilon])
            for (int i = 0; i < 100; i++) Assert.Equal(best, Next(logits, Plain with { Temperature = cold }, i));
        MustFollow([.. Enumerable.Repeat(0.01, 100)], i => Next(logits, Plain with { Temperature = float.MaxValue }, i));
    }

    [Fact]
    public void A_draw_depends_on_seed_and_index_and_not_on_earlier_draws()
    {
        var logits = Normal(new(6), 500, 2);
        var one = new Sampler(500);
        var forwards = Enumerable.Range(0, 200).Select(i => one.Next(logits, Plain, i, null)).ToList();
        var backwards = Enumerable.Range(0, 200).Reverse().Select(i => Next(logits, Plain, i)).Reverse().ToList();
        Assert.Equal(forwards, backwards);
        Assert.NotEqual(forwards, Enumerable.Range(0, 200).Select(i => Next(logits, Plain with { Seed = 1235 }, i)));
    }

    [Theory]
    [InlineData(0, 1f, 0f, 1f)]
    [InlineData(0, 1f, 0f, 0.6f)]
    [InlineData(7, 1f, 0f, 1f)]
    [InlineData(0, 0.8f, 0f, 1.4f)]
    [InlineData(12, 0.9f, 0f, 1f)]
    [InlineData(0, 1f, 0.1f, 1f)]
    [InlineData(15, 0.95f, 0.05f, 0.9f)]
    public void Draws_follow_the_distribution_over_seeds_and_over_indexes(int topK, float topP, float minP, float temperature)
    {
        foreach (int vocab in (int[])[20, 400])
        {
            var logits = Normal(new(vocab), vocab, 2);
            var p = Plain with { TopK = topK, TopP = topP, MinP = minP, Temperature = temperature };
            var expected = NaiveSampler.Of([.. logits.Select(l => (double)l)], p).Probabilities;
            var sampler = new Sampler(vocab);
            MustFollow(expected, i => sampler.Next(logits, p, i, null));
            MustFollow(expected, i => sampler.Next(logits, p with { Seed = (ulong)i }, 3, null));
        }
    }

    // Chi-square with cells of at least 20 expected draws; the seeds are fixed, so this passes always or never.
    private static void MustFollow(double[] expected, Func<int, int> draw)
    {
        const int Draws = 40_000;
        var counts = new int[expected.Length];
        for (int i = 0; i < Draws; i++) counts[draw(i)]++;
        double statistic = 0, restExpected = 0, restCount = 0;
        int cells = 0;
        for (int i = 0; i < expected.Length; i++)
        {
            if (expected[i] == 0) Assert.Equal(0, counts[i]);
            if (expected[i] * Draws >= 20)
            {
                statistic += Math.Pow(counts[i] - expected[i] * Draws, 2) / (expected[i] * Draws);
                cells++;
                continue;
            }
            restExpected += expected[i] * Draws;
            restCount += counts[i];
        }
        if (restExpected >= 20)
        {
            statistic += Math.Pow(restCount - restExpected, 2) / restExpected;
            cells++;
        }
        int freedom = cells - 1;
        // Wilson and Hilferty's approximation of the 99.99 % quantile.
        double limit = freedom == 0 ? 1e-9 : freedom * Math.Pow(1 - 2.0 / (9 * freedom) + 3.719 * Math.Sqrt(2.0 / (9 * freedom)), 3);
        Assert.True(statistic <= limit, $"chi-square {statistic} with {freedom} degrees of freedom, limit {limit}");
    }

    [Fact]
    public void Every_token_is_the_one_the_definition_gives()
    {
        int compared = 0, close = 0;
        Gen.Select(Gen.Int[1, 700], Gen.Int[0, int.MaxValue]).Sample((vocab, seed) =>
        {
            if (Compare(vocab, new(seed))) Interlocked.Increment(ref compared);
            else Interlocked.Increment(ref close);
        }, iter: 3000);
        Assert.True(close * 20 < compared, $"{close} of {compared + close} cases were too close to call");
    }

    [Fact]
    public void Every_token_is_the_one_the_definition_gives_for_a_real_vocabulary()
    {
        int compared = Enumerable.Range(0, 25).Count(seed => Compare(129_280, new(seed)));
        Assert.True(compared > 15, $"only {compared} cases were clear");
    }

    // False if a decision is nearer to its border than float32 weights can tell.
    private static bool Compare(int vocab, Random random)
    {
        var logits = Normal(random, vocab, 1 + 4 * random.NextSingle());
        if (random.Next(3) == 0)
            for (int i = 0; i < vocab; i++) logits[i] = MathF.Round(logits[i]);  // ties
        if (random.Next(3) == 0)
            for (int i = 1; i < vocab; i += random.Next(1, 9)) logits[i] = float.NegativeInfinity;
        float Pick(params float[] values) => values[random.Next(values.Length)];
        var p = new SamplingParams(
            Pick(0.2f, 0.7f, 1, 1.8f), random.Next(3) switch { 0 => 0, 1 => random.Next(1, 40), _ => random.Next(1, vocab + 5) },
            Pick(1, 1, 0.3f, 0.9f, 0.97f), Pick(0, 0, 0.02f, 0.3f), Pick(1, 1, 1.3f, 0.8f), Pick(0, 0, 0.7f, -0.4f), Pick(0, 0, 0.3f),
            (ulong)random.NextInt64(), random.Next(3) == 0 ? new Dictionary<int, float> { [random.Next(vocab)] = Pick(-100, 3, 0.5f) } : null);
        int[] prompt = [.. Enumerable.Range(0, 6).Select(_ => random.Next(vocab))], output = [.. Enumerable.Range(0, 9).Select(_ => random.Next(vocab))];
        var history = TokenHistory.For(p, prompt);
        foreach (int token in output) history?.Add(token);

        var expected = NaiveSampler.Of(NaiveSampler.Adjusted(logits, p, prompt, output), p);
        var (token2, margin) = NaiveSampler.At(expected.Probabilities, Philox.Uniform(p.Seed, 9));
        if (Math.Min(margin, expected.Margin) < 2e-6) return false;
        Assert.Equal(token2, new Sampler(vocab).Next(logits, p, 9, history));
        return true;
    }

    [Fact]
    public void Of_equal_tokens_top_k_and_top_p_keep_the_smaller_ids()
    {
        foreach (int count in (int[])[50, 1000])
            foreach (var p in (SamplingParams[])[Plain with { TopK = 10 }, Plain with { TopP = 10f / count - 1e-4f }, Plain with { TopK = count - 1, TopP = 10f / (count - 1) - 1e-4f }])
            {
                var seen = Enumerable.Range(0, 2000).Select(i => Next(new float[count], p, i)).ToHashSet();
                Assert.Equal(Enumerable.Range(0, 10), seen.Order());
            }
    }

    [Fact]
    public void A_top_p_that_rounding_hides_keeps_everything()
    {
        foreach (int vocab in (int[])[2, 300, 5000, 70_000])
            foreach (float temperature in (float[])[0.3f, 3, 1e6f])
                for (int seed = 0; seed < 20; seed++)
                {
                    var logits = Normal(new(seed), vocab, 3);
                    var p = Plain with { Temperature = temperature, TopP = MathF.BitDecrement(1), Seed = (ulong)seed };
                    Assert.InRange(Next(logits, p), 0, vocab - 1);
                    Assert.InRange(Next(logits, p with { TopK = vocab - 1 }), 0, vocab - 1);
                }
    }

    [Fact]
    public void The_caller_s_logits_are_left_alone()
    {
        var logits = Normal(new(1), 300, 2);
        var copy = (float[])logits.Clone();
        var p = Plain with { RepetitionPenalty = 2, TopP = 0.5f, LogitBias = new Dictionary<int, float> { [3] = 5 } };
        new Sampler(300).Next(logits, p, 0, TokenHistory.For(p, [1, 2, 3]));
        Assert.Equal(copy, logits);
    }

    [Fact]
    public void Logits_of_another_vocabulary_are_refused() =>
        Assert.Throws<ArgumentException>(() => new Sampler(10).Next(new float[11], Plain, 0, null));
}

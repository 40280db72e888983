using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Operators;

/// <summary>The check values of spec deepseek-v4 2.1, and the properties they are samples of.</summary>
public sealed class RopeFrequenciesTests
{
    private static readonly float[] Yarn = RopeFrequencies.Yarn(160000, 64, 16, 32, 1, 65536);

    [Theory]
    [InlineData(0, 1.0f)]
    [InlineData(1, 0.687656045f)]
    [InlineData(15, 3.63553851e-3f)]
    [InlineData(16, 2.26562493e-3f)]
    [InlineData(17, 1.39680132e-3f)]
    [InlineData(20, 2.96977785e-4f)]
    [InlineData(24, 1.95312532e-5f)]
    [InlineData(25, 5.37231244e-6f)]
    [InlineData(31, 5.68052940e-7f)]
    public void Yarn_table_has_the_check_values_of_the_spec(int pair, float expected) => AssertWithinUlps(expected, Yarn[pair], 2);

    [Theory]
    [InlineData(0, 1.0f)]
    [InlineData(1, 0.749894202f)]
    [InlineData(31, 1.33352150e-4f)]
    public void Plain_table_has_the_check_values_of_the_spec(int pair, float expected) =>
        AssertWithinUlps(expected, RopeFrequencies.Plain(10000, 64)[pair], 2);

    [Fact]
    public void Yarn_leaves_the_fast_pairs_and_slows_the_slow_ones_by_the_factor()
    {
        var plain = RopeFrequencies.Plain(160000, 64);
        for (var i = 0; i <= 15; i++) Assert.Equal(plain[i], Yarn[i]);
        for (var i = 16; i < 25; i++) Assert.InRange(Yarn[i], plain[i] / 16, plain[i]);
        for (var i = 25; i < 32; i++) Assert.Equal(plain[i] / 16, Yarn[i]);
    }

    [Fact]
    public void Yarn_of_factor_one_is_plain() =>
        Assert.Equal(RopeFrequencies.Plain(10000, 128), RopeFrequencies.Yarn(10000, 128, 1, 32, 1, 4096));

    [Fact]
    public void A_ramp_of_no_width_is_a_step()
    {
        // Both turns fall before pair 0 (low is raised to 0, high is 0): everything behind pair 0 is slowed.
        var table = RopeFrequencies.Yarn(10000, 8, 4, 2, 1, 2);
        var plain = RopeFrequencies.Plain(10000, 8);
        Assert.Equal(plain[0], table[0]);
        for (var i = 1; i < 4; i++) Assert.Equal(plain[i] / 4, table[i]);
    }

    [Theory]
    [InlineData(1.0, 64)]
    [InlineData(double.NaN, 64)]
    [InlineData(10000.0, 0)]
    [InlineData(10000.0, 63)]
    public void Wrong_parameters_are_refused_by_name(double theta, int channels) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => RopeFrequencies.Plain(theta, channels));

    [Theory]
    [InlineData(0.5, 32, 1, 65536, "factor")]
    [InlineData(16, 1, 32, 65536, "betaFast")]
    [InlineData(16, 32, 0, 65536, "betaSlow")]
    [InlineData(16, 32, 1, 0, "originalContext")]
    public void Wrong_yarn_parameters_are_refused_by_name(double factor, double fast, double slow, int context, string name) =>
        Assert.Equal(name, Assert.Throws<ArgumentOutOfRangeException>(() => RopeFrequencies.Yarn(10000, 64, factor, fast, slow, context)).ParamName);

    private static void AssertWithinUlps(float expected, float actual, int ulps) =>
        Assert.InRange(Math.Abs((long)BitConverter.SingleToInt32Bits(expected) - BitConverter.SingleToInt32Bits(actual)), 0L, ulps);
}

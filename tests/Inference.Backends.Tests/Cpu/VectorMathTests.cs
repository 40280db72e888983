using System.Runtime.Intrinsics;
using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>Errors against the library's double functions, in units in the last place of the F32 result.</summary>
public sealed class VectorMathTests
{
    [Fact]
    public void Exp_is_within_one_ulp_everywhere_subnormal_results_included() =>
        AssertUlps(VectorMath.Exp, Math.Exp, Sweep(-104, 88.72f, 400_000), 1);

    [Theory]
    [InlineData(0f, 1f)]
    [InlineData(float.NegativeInfinity, 0f)]
    [InlineData(-1e30f, 0f)]
    [InlineData(89f, float.PositiveInfinity)]
    [InlineData(float.PositiveInfinity, float.PositiveInfinity)]
    [InlineData(float.NaN, float.NaN)]
    public void Exp_has_the_limits_of_the_exponential(float x, float expected) => Assert.Equal(expected, VectorMath.Exp(x));

    [Fact]
    public void Sigmoid_is_within_two_ulp_everywhere() =>
        AssertUlps(VectorMath.Sigmoid, x => x < 0 ? Math.Exp(x) / (1 + Math.Exp(x)) : 1 / (1 + Math.Exp(-x)), Sweep(-103, 40, 400_000), 2);

    [Fact]
    public void Log_is_within_one_ulp_for_normal_numbers()
    {
        AssertUlps(VectorMath.Log, Math.Log, Patterns(0x00800000, 0x7F7FFFFF, 300_000), 1);
        AssertUlps(VectorMath.Log, Math.Log, Sweep(0.5f, 2f, 300_000), 1);
    }

    [Fact]
    public void Log_of_one_plus_keeps_small_arguments() =>
        AssertUlps(x => VectorMath.LogOnePlus(Vector512.Create(x)).ToScalar(), LogOnePlus, Patterns(0x00000001, 0x3F800000, 300_000), 2);

    [Fact]
    public void Softplus_is_within_two_ulp_and_the_identity_above_twenty()
    {
        static double Softplus(double x) => x > 20 ? x : Math.Max(x, 0) + LogOnePlus(Math.Exp(-Math.Abs(x)));
        AssertUlps(x => VectorMath.Softplus(Vector512.Create(x)).ToScalar(), Softplus, Sweep(-100, 30, 400_000), 2);
    }

    [Fact]
    public void Sine_and_cosine_round_to_the_nearest_F32_also_far_from_zero()
    {
        foreach (var scale in new[] { 1f, 100f, 1e6f, 3e8f })
        {
            AssertUlps(x => (float)VectorMath.SineCosine(Vector512.Create((double)x)).Sine.ToScalar(), Math.Sin, Sweep(-scale, scale, 50_000), 0.5001);
            AssertUlps(x => (float)VectorMath.SineCosine(Vector512.Create((double)x)).Cosine.ToScalar(), Math.Cos, Sweep(-scale, scale, 50_000), 0.5001);
        }
    }

    [Fact]
    public void Exp_in_double_is_close_to_double()
    {
        for (var i = 0; i <= 100_000; i++)
        {
            var x = -700.0 * i / 100_000;
            var expected = Math.Exp(x);
            Assert.InRange(VectorMath.ExpOfNegative(Vector512.Create(x)).ToScalar(), expected * (1 - 1e-13), expected * (1 + 1e-13));
        }
        Assert.Equal(1, VectorMath.ExpOfNegative(Vector512<double>.Zero).ToScalar());
        Assert.Equal(0, VectorMath.ExpOfNegative(Vector512.Create(double.NegativeInfinity)).ToScalar());
    }

    [Fact]
    public void A_lane_gives_what_the_scalar_form_gives_whatever_stands_beside_it()
    {
        var random = new Random(1);
        for (var n = 0; n < 2000; n++)
        {
            var lanes = new float[16];
            for (var i = 0; i < lanes.Length; i++)
                lanes[i] = BitConverter.Int32BitsToSingle(random.Next(int.MinValue, int.MaxValue));
            var v = Vector512.Create(lanes);
            for (var i = 0; i < lanes.Length; i++)
            {
                AssertSameBits(VectorMath.Exp(lanes[i]), VectorMath.Exp(v)[i]);
                AssertSameBits(VectorMath.Sigmoid(lanes[i]), VectorMath.Sigmoid(v)[i]);
                AssertSameBits(VectorMath.Log(lanes[i]), VectorMath.Log(v)[i]);
            }
        }
    }

    private static void AssertSameBits(float a, float b) => Assert.Equal(BitConverter.SingleToInt32Bits(a), BitConverter.SingleToInt32Bits(b));

    private static double LogOnePlus(double y) => y < 1e-5 ? y - y * y / 2 + y * y * y / 3 : Math.Log(1 + y);

    private static IEnumerable<float> Sweep(float from, float to, int count)
    {
        for (var i = 0; i <= count; i++)
            yield return from + (to - from) * i / count;
    }

    /// <summary>Evenly spread bit patterns: every binade gets its share.</summary>
    private static IEnumerable<float> Patterns(int from, int to, int count)
    {
        for (long i = 0; i <= count; i++)
            yield return BitConverter.Int32BitsToSingle((int)(from + (to - (long)from) * i / count));
    }

    private static void AssertUlps(Func<float, float> actual, Func<double, double> expected, IEnumerable<float> arguments, double ulps)
    {
        foreach (var x in arguments)
        {
            double exact = expected(x), got = actual(x);
            var unit = Math.Max(Math.ScaleB(1, Math.ILogB(exact) - 23), float.Epsilon);
            Assert.True(Math.Abs(got - exact) <= ulps * unit || got == exact, $"f({x:R}) = {got:R}, exactly {exact:R}: {Math.Abs(got - exact) / unit:F2} ulp");
        }
    }
}

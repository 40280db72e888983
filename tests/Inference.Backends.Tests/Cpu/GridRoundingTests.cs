using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>The vector forms give the bits of the scalar definitions in <see cref="Numerics"/>, whatever the block holds.</summary>
public sealed unsafe class GridRoundingTests
{
    [Fact]
    public void Fp8_blocks_have_the_bits_of_the_definition() =>
        Compare(64, x => GridRounding.Fp8Block64(x), x => Numerics.QuantizeFp8Block(x));

    [Fact]
    public void Fp4_blocks_have_the_bits_of_the_definition() =>
        Compare(32, x => GridRounding.Fp4Block32(x), Numerics.QuantizeFp4Block32);

    [Theory]
    [InlineData(32)]
    [InlineData(64)]
    [InlineData(128)]
    [InlineData(512)]
    public void Hadamard_has_the_bits_of_the_definition(int width) =>
        Compare(width, x => GridRounding.Hadamard(x, width), Numerics.Hadamard);

    private delegate void InPlace(float* x);

    private delegate void InPlaceSpan(Span<float> x);

    private static void Compare(int width, InPlace actual, InPlaceSpan expected)
    {
        var random = new Random(width);
        var x = stackalloc float[width];
        var y = new float[width];
        for (var run = 0; run < 20_000; run++)
        {
            Fill(random, run % 8, y);
            y.CopyTo(new Span<float>(x, width));
            actual(x);
            var before = y.ToArray();
            expected(y);
            for (var i = 0; i < width; i++)
            {
                var same = BitConverter.SingleToInt32Bits(x[i]) == BitConverter.SingleToInt32Bits(y[i]) || (float.IsNaN(x[i]) && float.IsNaN(y[i]));
                Assert.True(same, $"run {run}, element {i}: {before[i]:R} became {x[i]:R}, by definition {y[i]:R}");
            }
        }
    }

    private static void Fill(Random random, int kind, float[] values)
    {
        var magnitude = MathF.Pow(2, random.Next(-30, 30));
        for (var i = 0; i < values.Length; i++)
        {
            values[i] = kind switch
            {
                0 => (random.NextSingle() - 0.5f) * magnitude,
                1 => random.Next(-64, 64) * magnitude / 8, // many ties
                2 => random.Next(-16, 16) / 4f * MathF.Pow(2, random.Next(-12, 2)),
                3 => (random.NextSingle() - 0.5f) * MathF.Pow(2, random.Next(-140, 120)), // anything, subnormals too
                4 => BitConverter.Int32BitsToSingle(random.Next() & 0x7EFFFFFF), // any positive finite pattern below 2^127
                5 => random.Next(3) == 0 ? -0f : 0f,
                6 => MathF.BitIncrement(448 * magnitude) * (random.Next(4) == 0 ? 1 : random.NextSingle()),
                _ => 6 * magnitude * (random.Next(4) == 0 ? 1 : -random.NextSingle()),
            };
        }
        if (kind is 0 or 3 && random.Next(10) == 0)
            values[random.Next(values.Length)] = random.Next(3) switch { 0 => float.NaN, 1 => float.PositiveInfinity, _ => float.NegativeInfinity };
    }
}

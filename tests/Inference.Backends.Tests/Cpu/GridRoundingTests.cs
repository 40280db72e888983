using Inference.Backends.Cpu;
using Inference.Backends.Tests.Operators;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>The vector forms give the bits of the scalar definitions in <see cref="Numerics"/>, whatever the block holds.</summary>
public sealed unsafe class GridRoundingTests
{
    [Fact]
    public void Fp8_blocks_have_the_bits_of_the_definition() =>
        Compare(64, x => GridRounding.Fp8Block(x, 64), x => Numerics.QuantizeFp8Block(x));

    [Fact]
    public void Whole_rows_of_E4M3_have_the_bits_of_the_definition() =>
        Compare(128, x => GridRounding.Fp8Block(x, 128), x => Numerics.QuantizeFp8Block(x));

    [Fact]
    public void BF16_has_the_bits_of_the_definition() => Compare(37, x => GridRounding.BF16(x, 37), x =>
    {
        foreach (ref var v in x) v = Numerics.RoundToBFloat16(v);
    });

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
            RandomRows.Fill(random, run % RandomRows.Kinds, y);
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
}

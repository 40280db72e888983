using Xunit;

namespace Inference.Backends.Tests;

/// <summary>Every code of every format, against formulas in double precision written here, and the unit checks of the spec (2.1).</summary>
public sealed class NumericsTests
{
    // The formats by their definitions, not by the code under test.
    private static double E4M3(int code)
    {
        int e = (code >> 3) & 15, m = code & 7;
        var v = e == 0 ? m / 8.0 * Math.Pow(2, -6) : (1 + m / 8.0) * Math.Pow(2, e - 7);
        return code >= 128 ? -v : v;
    }

    private static double E2M1(int code)
    {
        int e = (code >> 1) & 3, m = code & 1;
        var v = e == 0 ? m * 0.5 : (1 + m * 0.5) * Math.Pow(2, e - 1);
        return code >= 8 ? -v : v;
    }

    /// <summary>Nearest of the codes 0..last (magnitudes, ascending), ties to the even code, by exhaustive search.</summary>
    private static int Nearest(double magnitude, int last, Func<int, double> value)
    {
        var best = 0;
        for (var code = 1; code <= last; code++)
        {
            double d = Math.Abs(value(code) - magnitude), b = Math.Abs(value(best) - magnitude);
            if (d < b || (d == b && code % 2 == 0))
                best = code;
        }
        return best;
    }

    [Fact]
    public void All_256_e4m3_codes_have_the_value_of_the_formula_and_round_trip()
    {
        for (var code = 0; code < 256; code++)
        {
            var value = Numerics.E4M3ToSingle((byte)code);
            if ((code & 0x7F) == 0x7F)
            {
                Assert.True(float.IsNaN(value));
                continue;
            }
            Assert.Equal(E4M3(code), value);
            Assert.Equal(code, Numerics.SingleToE4M3(value));
        }
        Assert.Equal(0x7F, Numerics.SingleToE4M3(float.NaN));
    }

    [Fact]
    public void Every_bfloat16_value_gets_the_nearest_e4m3_code()
    {
        for (var code = 0; code < 65536; code++)
        {
            var x = Numerics.BFloat16ToSingle((ushort)code);
            if (float.IsNaN(x))
                continue;
            var expected = Nearest(Math.Min(Math.Abs((double)x), 1e9), 0x7E, E4M3) | (float.IsNegative(x) ? 0x80 : 0);
            Assert.Equal(expected, Numerics.SingleToE4M3(x));
        }
    }

    [Fact]
    public void E4m3_ties_go_to_the_even_code_and_a_hair_beside_them_does_not()
    {
        for (var code = 0; code < 0x7E; code++)
        {
            var middle = (float)((E4M3(code) + E4M3(code + 1)) / 2);
            Assert.Equal(code % 2 == 0 ? code : code + 1, Numerics.SingleToE4M3(middle));
            Assert.Equal(code, Numerics.SingleToE4M3(MathF.BitDecrement(middle)));
            Assert.Equal(code + 1, Numerics.SingleToE4M3(MathF.BitIncrement(middle)));
            Assert.Equal((code % 2 == 0 ? code : code + 1) | 0x80, Numerics.SingleToE4M3(-middle));
        }
    }

    [Theory]
    [InlineData(448f, 0x7E)]
    [InlineData(464f, 0x7E)]
    [InlineData(1e30f, 0x7E)]
    [InlineData(float.PositiveInfinity, 0x7E)]
    [InlineData(float.NegativeInfinity, 0xFE)]
    [InlineData(-0f, 0x80)]
    public void E4m3_saturates_and_keeps_the_sign(float x, int code) => Assert.Equal(code, Numerics.SingleToE4M3(x));

    [Fact]
    public void All_256_e8m0_codes_are_powers_of_two()
    {
        for (var code = 0; code < 255; code++)
            Assert.Equal(Math.Pow(2, code - 127), Numerics.E8M0ToSingle((byte)code));
        Assert.Equal(1f, Numerics.E8M0ToSingle(127));
        Assert.True(float.IsNaN(Numerics.E8M0ToSingle(255)));
    }

    [Fact]
    public void All_16_e2m1_codes_have_the_value_of_the_formula_and_round_trip()
    {
        for (var code = 0; code < 16; code++)
        {
            Assert.Equal(E2M1(code), Numerics.E2M1ToSingle(code));
            Assert.Equal(code, Numerics.SingleToE2M1(Numerics.E2M1ToSingle(code)));
            Assert.Equal(Numerics.E2M1ToSingle(code), Numerics.E2M1ToSingle(code | 0xA0));
        }
    }

    [Fact]
    public void Every_bfloat16_value_gets_the_nearest_e2m1_code()
    {
        for (var code = 0; code < 65536; code++)
        {
            var x = Numerics.BFloat16ToSingle((ushort)code);
            if (float.IsNaN(x))
                continue;
            var expected = Nearest(Math.Min(Math.Abs((double)x), 1e9), 7, E2M1) | (float.IsNegative(x) ? 8 : 0);
            Assert.Equal(expected, Numerics.SingleToE2M1(x));
        }
    }

    [Theory]
    [InlineData(0.25f, 0f)]
    [InlineData(0.75f, 1f)]
    [InlineData(1.25f, 1f)]
    [InlineData(1.75f, 2f)]
    [InlineData(2.5f, 2f)]
    [InlineData(3.5f, 4f)]
    [InlineData(5f, 4f)]
    public void E2m1_ties_go_to_the_even_code(float tie, float expected)
    {
        Assert.Equal(expected, Numerics.E2M1ToSingle(Numerics.SingleToE2M1(tie)));
        Assert.Equal(-expected, Numerics.E2M1ToSingle(Numerics.SingleToE2M1(-tie)));
    }

    [Fact]
    public void The_example_byte_of_the_spec_holds_minus_one_then_six()
    {
        const int packed = 0x7A;
        Assert.Equal(-1f, Numerics.E2M1ToSingle(packed & 15));
        Assert.Equal(6f, Numerics.E2M1ToSingle(packed >> 4));
    }

    [Fact]
    public void All_65536_bfloat16_codes_round_trip_and_ties_go_to_even()
    {
        for (var code = 0; code < 65536; code++)
        {
            var x = Numerics.BFloat16ToSingle((ushort)code);
            if (float.IsNaN(x))
            {
                Assert.True(float.IsNaN(Numerics.BFloat16ToSingle(Numerics.SingleToBFloat16(x))));
                continue;
            }
            Assert.Equal(code, Numerics.SingleToBFloat16(x));
            if (float.IsInfinity(x))
                continue;
            // The tie to the next code away from zero; past the largest value that is infinity.
            var tie = BitConverter.UInt32BitsToSingle(((uint)code << 16) | 0x8000);
            Assert.Equal(code % 2 == 0 ? code : code + 1, Numerics.SingleToBFloat16(tie));
            Assert.Equal(code, Numerics.SingleToBFloat16(BitConverter.UInt32BitsToSingle(((uint)code << 16) | 0x7FFF)));
            Assert.Equal(code + 1, Numerics.SingleToBFloat16(BitConverter.UInt32BitsToSingle(((uint)code << 16) | 0x8001)));
        }
    }

    [Fact]
    public void A_nan_with_a_low_payload_does_not_round_to_infinity()
    {
        foreach (var bits in (uint[])[0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
            Assert.True(float.IsNaN(Numerics.RoundToBFloat16(BitConverter.UInt32BitsToSingle(bits))));
    }

    [Fact]
    public void All_65536_half_codes_have_the_value_of_the_formula_and_round_trip()
    {
        for (var code = 0; code < 65536; code++)
        {
            int e = (code >> 10) & 31, m = code & 1023;
            var x = Numerics.HalfToSingle((ushort)code);
            if (e == 31 && m != 0)
            {
                Assert.True(float.IsNaN(x));
                continue;
            }
            var magnitude = e switch
            {
                31 => double.PositiveInfinity,
                0 => m * Math.Pow(2, -24),
                _ => (1 + m / 1024.0) * Math.Pow(2, e - 15),
            };
            Assert.Equal(code >= 0x8000 ? -magnitude : magnitude, x);
            Assert.Equal(code, Numerics.SingleToHalf(x));
        }
    }

    [Fact]
    public void The_fp8_block_of_the_spec()
    {
        float[] block = [3f, 0.1f, 0.01f, 1e-5f, 0f, -3f];
        Assert.Equal(MathF.ScaleB(1, -7), Numerics.QuantizeFp8Block(block));
        Assert.Equal([3f, 0.1015625f, 0.009765625f, 1.52587890625e-5f, 0f, -3f], block);
    }

    [Fact]
    public void An_fp8_absmax_of_448_times_a_power_of_two_gets_that_power_as_its_scale()
    {
        for (var k = -22; k <= 100; k++)
        {
            var top = MathF.ScaleB(448, k);
            Assert.Equal(MathF.ScaleB(1, k), Numerics.QuantizeFp8Block([top, -top / 2]));
            Assert.Equal(MathF.ScaleB(1, k + 1), Numerics.QuantizeFp8Block([top * 1.01f]));
        }
    }

    [Fact]
    public void An_fp8_block_of_zeros_stays_zero_with_the_scale_of_the_floor()
    {
        var block = new float[64];
        Assert.Equal(MathF.ScaleB(1, -22), Numerics.QuantizeFp8Block(block)); // 1e-4 / 448 = 2.2e-7, between 2^-23 and 2^-22
        Assert.All(block, x => Assert.Equal(0f, x));
    }

    [Fact]
    public void Fp8_block_quantisation_is_idempotent_close_and_equal_to_its_stored_form()
    {
        var random = new Random(1);
        var codes = new byte[64];
        for (var round = 0; round < 2000; round++)
        {
            var magnitude = Math.Pow(2, random.Next(-12, 12));
            var source = Enumerable.Range(0, 64).Select(_ => (float)((random.NextDouble() - 0.5) * magnitude)).ToArray();
            var quantised = (float[])source.Clone();
            var scale = Numerics.QuantizeFp8Block(quantised);

            var scaleCode = Numerics.EncodeFp8Block(source, codes);
            Assert.Equal(scale, Numerics.E8M0ToSingle(scaleCode));
            Assert.Equal(quantised, codes.Select(c => Numerics.E4M3ToSingle(c) * scale));

            for (var i = 0; i < 64; i++) // half a step: 2^-4 relative, or half a subnormal step
                Assert.True(Math.Abs(quantised[i] - source[i]) <= Math.Max(Math.Abs(source[i]) / 16, scale / 1024));
            var again = (float[])quantised.Clone();
            Numerics.QuantizeFp8Block(again);
            Assert.Equal(quantised, again);
        }
    }

    [Theory]
    [InlineData(5f, 4f, 1f)]
    [InlineData(6f, 6f, 1f)]
    [InlineData(6.1f, 6f, 2f)]
    public void The_fp4_blocks_of_the_spec(float max, float expected, float scale)
    {
        var block = new float[32];
        block[7] = -max;
        block[8] = scale / 2;
        Assert.Equal(scale, Numerics.E8M0ToSingle(Numerics.Fp4BlockScale(block)));
        Numerics.QuantizeFp4Block32(block);
        Assert.Equal(-expected, block[7]);
        Assert.Equal(scale / 2, block[8]);
    }

    [Fact]
    public void An_fp4_block_of_zeros_stays_zero_with_the_smallest_normal_scale()
    {
        var block = new float[32];
        Assert.Equal(1, Numerics.Fp4BlockScale(block));
        Numerics.QuantizeFp4Block32(block);
        Assert.All(block, x => Assert.Equal(0f, x));
    }

    [Fact]
    public void Fp4_groups_are_independent_and_equal_to_their_stored_form()
    {
        var random = new Random(2);
        var packed = new byte[48];
        var scales = new byte[3];
        for (var round = 0; round < 2000; round++)
        {
            var source = Enumerable.Range(0, 96).Select(i => (float)((random.NextDouble() - 0.5) * Math.Pow(10, i / 32))).ToArray();
            var quantised = (float[])source.Clone();
            Numerics.QuantizeFp4Block32(quantised);
            Numerics.EncodeFp4Block32(source, packed, scales);
            for (var i = 0; i < 96; i++)
            {
                var nibble = packed[i / 2] >> (i % 2 * 4);
                Assert.Equal(Numerics.E2M1ToSingle(nibble) * Numerics.E8M0ToSingle(scales[i / 32]), quantised[i]);
            }
            var alone = source[32..64];
            Numerics.QuantizeFp4Block32(alone);
            Assert.Equal(quantised[32..64], alone);
        }
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(float.PositiveInfinity)]
    [InlineData(float.NegativeInfinity)]
    public void A_value_that_is_not_finite_makes_its_whole_group_nan(float bad)
    {
        var fp8 = Enumerable.Repeat(1f, 64).ToArray();
        fp8[63] = bad;
        Assert.True(float.IsNaN(Numerics.QuantizeFp8Block(fp8)));
        Assert.All(fp8, x => Assert.True(float.IsNaN(x)));

        var fp4 = Enumerable.Repeat(1f, 64).ToArray();
        fp4[32] = bad;
        Numerics.QuantizeFp4Block32(fp4);
        Assert.All(fp4[..32], x => Assert.Equal(1f, x));
        Assert.All(fp4[32..], x => Assert.True(float.IsNaN(x)));
    }

    [Fact]
    public void Fp4_wants_whole_groups()
    {
        Assert.Throws<ArgumentException>(() => Numerics.QuantizeFp4Block32(new float[33]));
        Assert.Throws<ArgumentException>(() => Numerics.EncodeFp4Block32(new float[32], new byte[15], new byte[1]));
        Assert.Throws<ArgumentException>(() => Numerics.EncodeFp8Block(new float[2], new byte[3]));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(32)]
    [InlineData(128)]
    public void Hadamard_is_the_sylvester_matrix_scaled_to_be_orthogonal(int n)
    {
        for (var column = 0; column < n; column++)
        {
            var y = new float[n];
            y[column] = 1;
            Numerics.Hadamard(y);
            for (var row = 0; row < n; row++) // Sylvester: the sign is the parity of the common bits
            {
                var sign = System.Numerics.BitOperations.PopCount((uint)(row & column)) % 2 == 0 ? 1 : -1;
                Assert.Equal((float)(sign / Math.Sqrt(n)), y[row]);
            }
        }
    }

    [Fact]
    public void Hadamard_twice_gives_the_input_back()
    {
        var random = new Random(3);
        var x = Enumerable.Range(0, 128).Select(_ => (float)random.NextDouble() - 0.5f).ToArray();
        var y = (float[])x.Clone();
        Numerics.Hadamard(y);
        Numerics.Hadamard(y);
        for (var i = 0; i < x.Length; i++)
            Assert.Equal(x[i], y[i], 1e-6f);
        Assert.Throws<ArgumentException>(() => Numerics.Hadamard(new float[24]));
        Assert.Throws<ArgumentException>(() => Numerics.Hadamard([]));
    }

    [Fact]
    public void Dtype_sizes_are_checked()
    {
        Assert.Equal(4, DType.F4E2M1.BitsPerElement());
        Assert.Equal(16, DType.F4E2M1.ByteLength(32));
        Assert.Equal(8, DType.I64.ByteLength(1));
        Assert.Equal(6, DType.BF16.ByteLength(3));
        Assert.Equal(3, DType.F8E8M0.ByteLength(3));
        Assert.Equal(0, DType.F32.ByteLength(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => DType.F4E2M1.ByteLength(3));
        Assert.Throws<ArgumentOutOfRangeException>(() => DType.F32.ByteLength(-1));
        Assert.Throws<OverflowException>(() => DType.I64.ByteLength(long.MaxValue / 4));
        Assert.Throws<ArgumentOutOfRangeException>(() => ((DType)99).BitsPerElement());
        Assert.Equal(6, Enum.GetValues<DType>().Count(d => d.IsFloat()));
    }
}

using System.Runtime.Intrinsics;
using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>Every code of every format against the scalar definition, and the packing order that goes with it.</summary>
public sealed unsafe class WeightDecoderTests
{
    [Fact]
    public void Every_BF16_and_F16_code_decodes_to_its_value()
    {
        var codes = stackalloc ushort[16];
        for (var first = 0; first < 65536; first += 16)
        {
            for (var i = 0; i < 16; i++)
                codes[i] = (ushort)(first + i);
            Vector512<float> bf16 = BF16Format.Load((byte*)codes), f16 = F16Format.Load((byte*)codes);
            for (var i = 0; i < 16; i++)
            {
                AssertSame(Numerics.BFloat16ToSingle(codes[i]), bf16[i]);
                AssertSame(Numerics.HalfToSingle(codes[i]), f16[i]);
            }
        }
    }

    [Fact]
    public void Every_FP8_code_decodes_to_its_value_in_the_order_of_the_packed_activations()
    {
        var codes = stackalloc byte[64];
        float* decoded = stackalloc float[64], columns = stackalloc float[64], packed = stackalloc float[64];
        var view = new WeightView { Format = WeightFormat.Fp8, Columns = 64 };
        var tables = new WeightDecoders.Fp8Tables();
        for (var first = 0; first < 256; first++)
        {
            for (var i = 0; i < 64; i++)
            {
                codes[i] = (byte)(first + 5 * i);
                columns[i] = Numerics.E4M3ToSingle(codes[i]);
            }
            WeightDecoders.Fp8(codes, tables, out var v0, out var v1, out var v2, out var v3);
            v0.Store(decoded);
            v1.Store(decoded + 16);
            v2.Store(decoded + 32);
            v3.Store(decoded + 48);
            WeightDecoders.Pack(view, columns, packed, 16); // packed values of the columns must be the decoded values of their codes
            for (var i = 0; i < 64; i++)
                AssertSame(packed[i], decoded[i]);
        }
    }

    [Fact]
    public void Every_FP4_code_decodes_to_its_value_in_the_order_of_the_packed_activations()
    {
        var codes = stackalloc byte[64];
        float* columns = stackalloc float[128], packed = stackalloc float[128];
        var view = new WeightView { Format = WeightFormat.Fp4, Columns = 128 };
        for (var first = 0; first < 256; first++)
        {
            for (var i = 0; i < 64; i++)
            {
                codes[i] = (byte)(first + 7 * i);
                columns[2 * i] = Numerics.E2M1ToSingle(codes[i]);
                columns[2 * i + 1] = Numerics.E2M1ToSingle(codes[i] >> 4);
            }
            WeightDecoders.Pack(view, columns, packed, 16);
            for (var j = 0; j < 8; j++)
            {
                var decoded = WeightDecoders.Fp4(WeightDecoders.Fp4Table, Vector512.Load((uint*)codes) >>> (4 * j));
                for (var i = 0; i < 16; i++)
                    AssertSame(packed[16 * j + i], decoded[i]);
            }
        }
    }

    [Fact]
    public void Every_E8M0_code_becomes_the_scale_of_its_quarter()
    {
        var codes = stackalloc byte[4];
        for (var code = 0; code < 256; code++)
        {
            for (var i = 0; i < 4; i++)
                codes[i] = (byte)(code + 50 * i);
            var any = WeightDecoders.AnyFp4Scales(codes, 4);
            var fast = WeightDecoders.Fp4Scales(codes);
            for (var i = 0; i < 16; i++)
            {
                var expected = Numerics.E8M0ToSingle(codes[i / 4]);
                AssertSame(expected, any[i]);
                if (codes[i / 4] is not (0 or 255)) AssertSame(expected, fast[i]);
            }
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(31)]
    [InlineData(32)]
    [InlineData(100)]
    public void A_special_scale_is_found_wherever_it_stands(int count)
    {
        var codes = stackalloc byte[128];
        new Span<byte>(codes, 128).Fill(127);
        Assert.False(WeightDecoders.AnySpecialScale(codes, count));
        foreach (var special in new byte[] { 0, 255 })
        {
            for (var i = 0; i < 128; i++)
            {
                codes[i] = special;
                Assert.Equal(i < count, WeightDecoders.AnySpecialScale(codes, count));
                codes[i] = 127;
            }
        }
    }

    private static void AssertSame(float expected, float actual)
    {
        if (float.IsNaN(expected)) Assert.True(float.IsNaN(actual), $"{actual} instead of NaN");
        else Assert.Equal(BitConverter.SingleToInt32Bits(expected), BitConverter.SingleToInt32Bits(actual));
    }
}

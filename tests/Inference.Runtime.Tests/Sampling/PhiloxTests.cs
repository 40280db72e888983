using Inference.Runtime.Sampling;
using Xunit;

namespace Inference.Runtime.Tests.Sampling;

public sealed class PhiloxTests
{
    /// <summary>Known answers of philox4x32 with 10 rounds from the authors' Random123 distribution (kat_vectors).</summary>
    [Theory]
    [InlineData(0u, 0u, 0u, 0u, 0u, 0u, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u)]
    [InlineData(0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu)]
    [InlineData(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u, 0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u)]
    public void Blocks_are_the_published_ones(uint x0, uint x1, uint x2, uint x3, uint k0, uint k1, uint y0, uint y1, uint y2, uint y3) =>
        Assert.Equal((y0, y1, y2, y3), Philox.Block(x0, x1, x2, x3, k0, k1));

    [Fact]
    public void Uniforms_lie_in_the_unit_interval_and_differ_in_seed_and_index()
    {
        var seen = new HashSet<double>();
        for (ulong seed = 0; seed < 100; seed++)
            for (long index = 0; index < 100; index++)
            {
                double u = Philox.Uniform(seed, index);
                Assert.True(u is >= 0 and < 1 && seen.Add(u));
            }
        Assert.NotEqual(Philox.Uniform(1, 0), Philox.Uniform(1UL << 32, 0));
        Assert.NotEqual(Philox.Uniform(0, 1), Philox.Uniform(0, 1L << 32));
    }
}

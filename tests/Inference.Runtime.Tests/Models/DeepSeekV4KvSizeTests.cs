using Inference.Runtime.Models;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

/// <summary>The table of the specification, section 3.3.</summary>
public sealed class DeepSeekV4KvSizeTests
{
    private const double GiB = 1L << 30, MiB = 1 << 20;
    private const long Million = 1_048_576;

    private static readonly DeepSeekV4Config Flash = PublishedConfigs.Parsed(PublishedConfigs.Flash());
    private static readonly DeepSeekV4Config Pro = PublishedConfigs.Parsed(PublishedConfigs.Pro());

    [Theory]
    [InlineData(KvRowFormat.Fp8WithFp4Index, 584, 68)]
    [InlineData(KvRowFormat.Fp8WithFp8Index, 584, 132)]
    [InlineData(KvRowFormat.BF16, 1024, 256)]
    [InlineData(KvRowFormat.F32, 2048, 512)]
    public void Rows_have_the_sizes_that_engines_use(KvRowFormat format, long row, long index)
    {
        Assert.Equal(row, DeepSeekV4KvSize.Row(Flash, format).Bytes);
        Assert.Equal(index, DeepSeekV4KvSize.IndexRow(Flash, format).Bytes);
    }

    [Theory]
    [InlineData(KvRowFormat.Fp8WithFp4Index, 3514.25, 5031.4375, 3.43, 4.91)]
    [InlineData(KvRowFormat.Fp8WithFp8Index, 3850.25, 5511.4375, 3.76, 5.38)]
    [InlineData(KvRowFormat.BF16, 6880, 9848, 6.72, 9.62)]
    [InlineData(KvRowFormat.F32, 13760, 19696, 13.44, 19.23)]
    public void Bytes_per_token_and_per_million_tokens(KvRowFormat format, double flash, double pro, double flashGiB, double proGiB)
    {
        var (f, p) = (DeepSeekV4KvSize.Of(Flash, format), DeepSeekV4KvSize.Of(Pro, format));
        Assert.Equal(flash, f.BytesPerToken);
        Assert.Equal(pro, p.BytesPerToken);
        Assert.Equal(flashGiB, f.BytesPerToken * Million / GiB, 0.005);
        Assert.Equal(proGiB, p.BytesPerToken * Million / GiB, 0.005);
    }

    [Fact]
    public void Windows_and_states_do_not_grow()
    {
        var f = DeepSeekV4KvSize.Of(Flash, KvRowFormat.Fp8WithFp4Index, draftBlocks: 3);
        var p = DeepSeekV4KvSize.Of(Pro, KvRowFormat.Fp8WithFp4Index);
        Assert.Equal(43 * 74_752, f.WindowBytes);
        Assert.Equal(3.07, f.WindowBytes / MiB, 0.005);
        Assert.Equal(4.35, p.WindowBytes / MiB, 0.005);
        Assert.Equal(12_206_080, f.StateBytes);
        Assert.Equal(18_710_528, p.StateBytes);
        Assert.Equal(3 * 74_752, f.DraftBytes);
        Assert.Equal(0, p.DraftBytes);
        Assert.Equal(f.FixedBytes + (long)(3514.25 * Million), f.TotalBytes(Million));
    }

    [Fact]
    public void The_embedded_models_small_widths_are_sized_too()
    {
        var pebble = DeepSeekV4Config.Read(ModelFolder.Open(Testing.RepositoryPaths.Pebble));
        Assert.Equal(576, DeepSeekV4KvSize.Row(pebble, KvRowFormat.F32).Bytes);
        Assert.Equal(128 + 32 + 2 + 6, DeepSeekV4KvSize.Row(pebble, KvRowFormat.Fp8WithFp4Index).Bytes); // 2 scales, padded to 8
        Assert.Equal(16 + 1, DeepSeekV4KvSize.IndexRow(pebble, KvRowFormat.Fp8WithFp4Index).Bytes);
        // Ratios 4, 128, 4, 128, 4: three layers with rows of 576 + 128 bytes per 4 tokens, two with 576 per 128.
        Assert.Equal(3 * (576 + 128) / 4d + 2 * 576 / 128d, DeepSeekV4KvSize.Of(pebble, KvRowFormat.F32).BytesPerToken);
    }
}

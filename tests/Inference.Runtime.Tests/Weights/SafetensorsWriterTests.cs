using Inference.Backends;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Weights;

/// <summary>What the test writer writes, the loader reads back.</summary>
public sealed class SafetensorsWriterTests
{
    [Theory]
    [InlineData(DType.F8E8M0)]
    [InlineData(DType.F32)]
    public void Fp8_tiles_at_the_edge_have_their_own_scale_and_come_back_close(DType scaleDType)
    {
        const int rows = 130, columns = 200;
        var random = new Random(4);
        var values = Enumerable.Range(0, rows * columns).Select(i => (float)((random.NextDouble() - 0.5) * (i / columns < 128 ? 1 : 64))).ToArray();
        using var checkpoint = Checkpoint.FromImage("x", new SafetensorsWriter().AddFp8Tiles("m", rows, columns, values, scaleDType).ToArray());
        var codes = checkpoint["m.weight"].Bytes;
        Assert.Equal([2L, 2L], checkpoint["m.scale"].Shape);
        var scales = scaleDType == DType.F32
            ? checkpoint["m.scale"].AsSpan<float>().ToArray()
            : Array.ConvertAll(checkpoint["m.scale"].Bytes.ToArray(), Numerics.E8M0ToSingle);
        Assert.True(scales[0] < scales[2] && scales[1] < scales[3]);
        for (var i = 0; i < values.Length; i++)
        {
            var scale = scales[i / columns / 128 * 2 + i % columns / 128];
            Assert.True(Math.Abs(Numerics.E4M3ToSingle(codes[i]) * scale - values[i]) <= Math.Max(Math.Abs(values[i]) / 16, scale / 1024));
        }
    }

    [Fact]
    public void Fp4_is_packed_low_nibble_first_with_a_scale_per_32_columns()
    {
        var values = new float[64];
        values[0] = -1;
        values[1] = 6;
        values[32] = 12;
        using var checkpoint = Checkpoint.FromImage("x", new SafetensorsWriter().AddFp4("m", 1, 64, values).ToArray());
        Assert.Equal([1L, 32L], checkpoint["m.weight"].Shape);
        Assert.Equal(DType.I8, checkpoint["m.weight"].DType);
        Assert.Equal(0x7A, checkpoint["m.weight"].Bytes[0]);
        Assert.Equal(0x07, checkpoint["m.weight"].Bytes[16]);
        Assert.Equal([127, 128], checkpoint["m.scale"].Bytes.ToArray());
    }

    [Fact]
    public void The_data_area_starts_aligned_and_a_wrong_producer_is_named()
    {
        var image = new SafetensorsWriter().AddF32("a", [1], [1f]).ToArray();
        Assert.Equal(0, BitConverter.ToInt64(image) % 8);
        var error = Assert.Throws<InvalidOperationException>(() =>
            new SafetensorsWriter().Add("bad", DType.F32, [2], stream => stream.Write(new byte[7])).ToArray());
        Assert.Contains("bad", error.Message, StringComparison.Ordinal);
    }
}

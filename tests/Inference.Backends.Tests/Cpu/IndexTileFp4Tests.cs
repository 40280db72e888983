using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>Scores of FP4 rows in integers are, to the bit, those of the documented order in F32: a chain of FMAs per 32 channels, the chains added.</summary>
public sealed unsafe class IndexTileFp4Tests
{
    private const int Rows = RowTile.Rows;

    [Theory]
    [InlineData(32, 4, 3)]
    [InlineData(64, 7, 30)]
    [InlineData(128, 64, 3)]
    [InlineData(128, 5, 30)]
    [InlineData(256, 1, 3)]
    public void Scores_have_the_bits_of_the_order_in_F32(int width, int heads, int scaleSpread)
    {
        var random = new Random(width + heads);
        var format = RowFormat.Fp4(width);
        var codec = new RowCodec(format);
        var addresses = stackalloc byte*[Rows];
        for (var run = 0; run < 40; run++)
        {
            var rows = Enumerable.Range(0, Rows).Select(_ => Row(random, format, scaleSpread, run == 39)).ToArray();
            var queries = Enumerable.Range(0, heads).Select(_ => Row(random, format, scaleSpread, false)).ToArray();
            float[] weights = [.. Enumerable.Range(0, heads).Select(_ => random.NextSingle() - 0.5f)];

            using var memory = new HostBuffer(13L * width * sizeof(float) + 64);
            using var packed = new HostBuffer((long)heads * width * sizeof(float));
            using var stored = new HostBuffer((long)Rows * format.Bytes);
            for (var r = 0; r < Rows; r++)
            {
                addresses[r] = stored.Data + r * format.Bytes;
                format.Encode(rows[r], new(addresses[r], format.Bytes));
            }
            for (var h = 0; h < heads; h++)
            {
                var query = (float*)packed.Data + (long)h * width;
                queries[h].CopyTo(new Span<float>(query, width));
                IndexTileFp4.PackQuery(query, width, codec);
            }
            var tile = new IndexTileFp4((float*)memory.Data, width);
            tile.Fill(addresses);
            var actual = new float[Rows];
            fixed (float* w = weights)
            fixed (float* to = actual)
                tile.Score(packed.Data, heads, w, 0.3f, to);

            for (var r = 0; r < Rows; r++)
            {
                var expected = Score(rows[r], queries, weights, 0.3f);
                Assert.True(BitConverter.SingleToInt32Bits(expected) == BitConverter.SingleToInt32Bits(actual[r]) || (float.IsNaN(expected) && float.IsNaN(actual[r])),
                    $"run {run}, row {r}: {actual[r]:R}, in F32 {expected:R}");
            }
        }
    }

    private static float[] Row(Random random, RowFormat format, int scaleSpread, bool notFinite)
    {
        var row = new float[format.Width];
        for (var i = 0; i < row.Length; i += RowFormat.Fp4Block)
        {
            var scale = MathF.Pow(2, random.Next(-scaleSpread, scaleSpread));
            for (var j = 0; j < RowFormat.Fp4Block; j++) row[i + j] = Numerics.E2M1ToSingle(random.Next(16)) * scale;
        }
        if (notFinite && random.Next(4) == 0) row[random.Next(row.Length)] = float.NaN;
        Numerics.QuantizeFp4Block32(row);
        return row;
    }

    private static float Score(float[] row, float[][] queries, float[] weights, float scale)
    {
        var score = 0f;
        for (var h = 0; h < queries.Length; h++)
        {
            var dot = 0f;
            for (var start = 0; start < row.Length; start += RowFormat.Fp4Block)
            {
                var chain = 0f;
                for (var d = start; d < start + RowFormat.Fp4Block; d++) chain = MathF.FusedMultiplyAdd(row[d], queries[h][d], chain);
                dot += chain;
            }
            score = MathF.FusedMultiplyAdd(weights[h] * scale, MathF.Max(dot, 0), score);
        }
        return score;
    }
}

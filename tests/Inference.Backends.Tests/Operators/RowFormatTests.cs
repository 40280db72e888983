using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Xunit;

namespace Inference.Backends.Tests.Operators;

/// <summary>The stored forms of rows: their sizes (deepseek-v4 3.2), their bytes, and that they lose nothing of what their rounding gives.</summary>
public sealed class RowFormatTests
{
    public static IEnumerable<RowFormat> Formats =>
    [
        RowFormat.F32(37), RowFormat.BF16(37), RowFormat.BF16(128), RowFormat.Fp8(72, 8), RowFormat.Fp8(144, 16), RowFormat.Fp8(512, 64),
        RowFormat.Fp4(32), RowFormat.Fp4(128), RowFormat.Fp8OneScale(32), RowFormat.Fp8OneScale(128),
    ];

    public static TheoryData<string> Names => [.. Formats.Select(f => f.ToString())];

    public static RowFormat Named(string name) => Formats.First(f => f.ToString() == name);

    [Fact]
    public void Rows_have_the_sizes_of_the_description()
    {
        Assert.Equal(2048, RowFormat.F32(512).Bytes);
        Assert.Equal(1024, RowFormat.BF16(512).Bytes);
        Assert.Equal(584, RowFormat.Fp8(512, 64).Bytes); // 448 codes, 64 BF16, 7 scales, 1 pad
        Assert.Equal(68, RowFormat.Fp4(128).Bytes);
        Assert.Equal(132, RowFormat.Fp8OneScale(128).Bytes);
        Assert.Equal(168, RowFormat.Fp8(144, 16).Bytes); // 128 codes, 16 BF16, 2 scales, 6 pad
        Assert.Equal((DType.U8, 584), (RowFormat.Fp8(512, 64).DType, RowFormat.Fp8(512, 64).StoredElements));
        Assert.Equal((DType.BF16, 512), (RowFormat.BF16(512).DType, RowFormat.BF16(512).StoredElements));
    }

    [Fact]
    public void Bytes_lie_where_the_description_says()
    {
        var row = new float[66];
        (row[0], row[1], row[2], row[64], row[65]) = (3, -0.1f, 1e-5f, 1, -2); // check values of 2.1: scale 2^-7
        var stored = new byte[RowFormat.Fp8(66, 2).Bytes];
        RowFormat.Fp8(66, 2).Encode(row, stored);
        Assert.Equal(72, stored.Length);
        Assert.Equal([0x7C, 0x80 | 0x55, 0x01, 0], stored[..4]); // 384, -13, 2^-9 in steps of 2^-7
        Assert.Equal([0x80, 0x3F, 0x00, 0xC0, 120, 0, 0, 0], stored[64..]); // two BF16, one scale, pad

        row = new float[32];
        (row[0], row[1], row[31]) = (5, -1, 0.5f);
        stored = new byte[RowFormat.Fp4(32).Bytes];
        RowFormat.Fp4(32).Encode(row, stored);
        Assert.Equal(0x6 | (0xA << 4), stored[0]); // 4, -1: the even channel in the low nibble
        Assert.Equal(0x1 << 4, stored[15]);
        Assert.Equal(127, stored[16]);

        stored = new byte[RowFormat.Fp8OneScale(32).Bytes];
        RowFormat.Fp8OneScale(32).Encode(row, stored);
        Assert.Equal(0.015625f, BitConverter.ToSingle(stored, 32)); // 5 / 448, up to a power of two
    }

    [Theory, MemberData(nameof(Names))]
    public void What_the_rounding_gives_is_stored_without_loss(string name)
    {
        var format = Named(name);
        var random = new Random(1);
        var row = new float[format.Width];
        var again = new float[format.Width];
        var stored = new byte[format.Bytes];
        for (var run = 0; run < 3000; run++)
        {
            RandomRows.Fill(random, run % RandomRows.Kinds, row);
            RandomRows.Round(row, format);
            format.Encode(row, stored);
            format.Decode(stored, again);
            RandomRows.AssertSame(row, again, $"run {run}");
        }
    }
}

/// <summary>Rows of every kind that a format may meet.</summary>
internal static class RandomRows
{
    public const int Kinds = 8;

    /// <summary>As the reference rounds it.</summary>
    public static void Round(Span<float> row, RowFormat format)
    {
        using var buffer = new HostBuffer(Math.Max(4, format.RotaryChannels * 2));
        ReferenceRows.Round(row, new Rope(Tensor.Create(buffer, DType.F32, format.RotaryChannels / 2)), format.Rounding);
    }

    public static void Fill(Random random, int kind, Span<float> values)
    {
        var magnitude = MathF.Pow(2, random.Next(-30, 30));
        foreach (ref var value in values)
        {
            value = kind switch
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

    public static void AssertSame(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, string where)
    {
        for (var i = 0; i < expected.Length; i++)
        {
            var same = BitConverter.SingleToInt32Bits(expected[i]) == BitConverter.SingleToInt32Bits(actual[i])
                || (float.IsNaN(expected[i]) && float.IsNaN(actual[i]));
            Assert.True(same, $"{where}, element {i}: {actual[i]:R} instead of {expected[i]:R}");
        }
    }
}

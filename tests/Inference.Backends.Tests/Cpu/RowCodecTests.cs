using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Inference.Backends.Tests.Operators;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

/// <summary>The vector forms give the bits and bytes of the scalar definitions in <see cref="RowFormat"/>, whatever the row holds.</summary>
public sealed unsafe class RowCodecTests
{
    private const int Stride = RowCodec.Block + 16; // a place of its own for each block

    public static TheoryData<string> Names => RowFormatTests.Names;

    [Theory, MemberData(nameof(Names))]
    public void Rows_are_stored_in_the_bytes_of_the_definition(string name)
    {
        var format = RowFormatTests.Named(name);
        var random = new Random(2);
        var row = new float[format.Width];
        byte[] expected = new byte[format.Bytes], actual = new byte[format.Bytes];
        for (var run = 0; run < 2000; run++)
        {
            RandomRows.Fill(random, run % RandomRows.Kinds, row);
            RandomRows.Round(row, format);
            format.Encode(row, expected);
            Array.Fill(actual, (byte)0xAB);
            fixed (float* from = row)
            fixed (byte* to = actual)
                new RowCodec(format).Encode(from, to);
            if (Array.Exists(row, x => !float.IsFinite(x))) RandomRows.AssertSame(Decoded(format, expected), Decoded(format, actual), $"run {run}");
            else Assert.Equal(expected, actual);
        }
    }

    [Theory, MemberData(nameof(Names))]
    public void Any_bytes_are_read_as_the_definition_reads_them(string name)
    {
        var format = RowFormatTests.Named(name);
        var random = new Random(3);
        var stored = new byte[format.Bytes];
        var expected = new float[format.Width];
        int blocks = (format.Width + RowCodec.Block - 1) / RowCodec.Block, padded = (format.Width + 15) / 16 * 16;
        var actual = new float[blocks * Stride];
        for (var run = 0; run < 1000; run++)
        {
            random.NextBytes(stored);
            if (format.Encoding == RowEncoding.Fp8OneScale) BitConverter.TryWriteBytes(stored.AsSpan(format.ScaleOffset), 1f);
            format.Decode(stored, expected);
            Array.Fill(actual, 77);
            fixed (byte* from = stored)
            fixed (float* to = actual)
                new RowCodec(format).Decode(from, to, Stride);
            for (var i = 0; i < blocks * Stride; i++)
            {
                int channel = i / Stride * RowCodec.Block + i % Stride;
                var inside = i % Stride < RowCodec.Block && channel < padded;
                RandomRows.AssertSame([!inside ? 77 : channel < format.Width ? expected[channel] : 0], [actual[i]], $"run {run}, place {i}");
            }
        }
    }

    private static float[] Decoded(RowFormat format, byte[] stored)
    {
        var row = new float[format.Width];
        format.Decode(stored, row);
        return row;
    }
}

// Weights of every scheme with known values: random codes and scales in native memory, as if mapped from a checkpoint, and what they
// mean, worked out from the formats' definitions and not with the code under test.
using System.Runtime.InteropServices;

namespace Inference.Backends.Tests.Conformance;

/// <summary>A stored weight in native memory; it must outlive the prepared weights made of it. NaN surrounds the data.</summary>
internal sealed unsafe class StoredWeight : IDisposable
{
    private const int Margin = 64;
    private readonly HostBuffer _data, _scales;

    /// <param name="shift">Bytes by which data and scales miss the alignment of the buffer.</param>
    public StoredWeight(WeightScheme scheme, int rows, int columns, ReadOnlySpan<byte> data, ReadOnlySpan<byte> scales, int shift = 0)
    {
        _data = Copy(data, shift);
        _scales = Copy(scales, shift);
        Data = new WeightData("test.weight", scheme, rows, columns, (nint)_data.Data + Margin + shift, data.Length,
            scheme.IsQuantised ? (nint)_scales.Data + Margin + shift : 0, scales.Length);
    }

    public WeightData Data { get; }

    public void Dispose()
    {
        _data.Dispose();
        _scales.Dispose();
    }

    private static HostBuffer Copy(ReadOnlySpan<byte> bytes, int shift)
    {
        var buffer = new HostBuffer(bytes.Length + 2 * Margin + shift, poison: true);
        bytes.CopyTo(new Span<byte>(buffer.Data + Margin + shift, bytes.Length));
        return buffer;
    }
}

/// <summary>The bytes of a random weight and its values [rows, columns].</summary>
internal sealed class RandomWeight
{
    private readonly byte[] _data, _scales;

    public RandomWeight(Random random, WeightScheme scheme, int rows, int columns, double magnitude = 1)
    {
        Scheme = scheme;
        Rows = rows;
        Columns = columns;
        Values = new double[rows * columns];
        double[] scales = [1];
        var scaleColumns = 0;
        if (scheme.IsQuantised)
        {
            scaleColumns = (columns + scheme.TileColumns - 1) / scheme.TileColumns;
            scales = new double[(rows + scheme.TileRows - 1) / scheme.TileRows * scaleColumns];
        }
        _scales = scheme.Scale is { } scale ? Codes(random, scale, scales, magnitude) : [];
        _data = Codes(random, scheme.Element, Values, scheme.IsQuantised ? 1 : magnitude);
        for (var i = 0; i < Values.Length && scheme.IsQuantised; i++)
            Values[i] *= scales[i / columns / scheme.TileRows * scaleColumns + i % columns / scheme.TileColumns];
    }

    public WeightScheme Scheme { get; }
    public int Rows { get; }
    public int Columns { get; }
    public double[] Values { get; }

    public ReadOnlySpan<double> Row(int row) => Values.AsSpan(row * Columns, Columns);

    /// <summary>With a placement the bytes lie where a mapped file may have them: aligned to their element and no better.</summary>
    public StoredWeight Store(Random? placement)
    {
        var shift = placement is null ? 0 : 4 * placement.Next(8);
        return new StoredWeight(Scheme, Rows, Columns, _data, _scales, shift);
    }

    private static byte[] Codes(Random random, DType dtype, double[] values, double magnitude)
    {
        var bytes = new byte[dtype.ByteLength(values.Length)];
        for (var i = 0; i < values.Length; i++)
        {
            var x = (float)(magnitude * Draws.Normal(random));
            switch (dtype)
            {
                case DType.F32:
                    MemoryMarshal.Cast<byte, float>(bytes.AsSpan())[i] = x;
                    values[i] = x;
                    break;
                case DType.BF16:
                    MemoryMarshal.Cast<byte, ushort>(bytes.AsSpan())[i] = (ushort)(BitConverter.SingleToUInt32Bits(x) >> 16);
                    values[i] = BitConverter.UInt32BitsToSingle(BitConverter.SingleToUInt32Bits(x) & 0xFFFF0000);
                    break;
                case DType.F16:
                    MemoryMarshal.Cast<byte, Half>(bytes.AsSpan())[i] = (Half)x;
                    values[i] = (double)(Half)x;
                    break;
                case DType.F8E4M3:
                    bytes[i] = (byte)(random.Next(127) | random.Next(2) << 7); // every code but the two NaN
                    values[i] = Formats.E4M3(bytes[i]);
                    break;
                case DType.F8E8M0:
                    var exponent = (int)Math.Round(Math.Log2(magnitude)) + random.Next(-6, 3);
                    bytes[i] = (byte)(127 + exponent);
                    values[i] = Math.Pow(2, exponent);
                    break;
                case DType.F4E2M1:
                    var code = random.Next(16);
                    bytes[i / 2] |= (byte)(i % 2 == 0 ? code : code << 4);
                    values[i] = Formats.E2M1(code);
                    break;
                case DType.I8:
                    bytes[i] = (byte)random.Next(256);
                    values[i] = bytes[i] < 128 ? bytes[i] : bytes[i] - 256;
                    break;
                default: throw new ArgumentOutOfRangeException(nameof(dtype), dtype, "no weights of it");
            }
        }
        return bytes;
    }
}

/// <summary>The small formats by their definitions (deepseek-v4 2.1).</summary>
internal static class Formats
{
    public static double E4M3(int code)
    {
        int e = (code >> 3) & 15, m = code & 7;
        var v = e == 0 ? m / 8.0 * Math.Pow(2, -6) : (1 + m / 8.0) * Math.Pow(2, e - 7);
        return code >= 128 ? -v : v;
    }

    public static double E2M1(int code)
    {
        int e = (code >> 1) & 3, m = code & 1;
        var v = e == 0 ? m * 0.5 : (1 + m * 0.5) * Math.Pow(2, e - 1);
        return code >= 8 ? -v : v;
    }

    /// <summary>The value nearest to x among those of the codes 0..last and their negatives; ties to the even code.</summary>
    public static double Nearest(double x, int last, Func<int, double> value)
    {
        var best = 0;
        for (var code = 1; code <= last; code++)
        {
            double d = Math.Abs(value(code) - Math.Abs(x)), b = Math.Abs(value(best) - Math.Abs(x));
            if (d < b || (d == b && code % 2 == 0)) best = code;
        }
        return Math.Sign(x) * value(best);
    }
}

/// <summary>Random numbers, the same in every run.</summary>
internal static class Draws
{
    /// <summary>A generator for a name: FNV-1a, since string hash codes differ from run to run.</summary>
    public static Random For(string name)
    {
        var hash = 2166136261u;
        foreach (var c in name) hash = (hash ^ c) * 16777619;
        return new Random((int)(hash & 0x7FFFFFFF));
    }

    public static double Normal(Random random) =>
        Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());

    /// <summary>Normal numbers of the given magnitude, one in sixteen exactly zero.</summary>
    public static float[] Floats(Random random, int count, double magnitude = 1)
    {
        var values = new float[count];
        for (var i = 0; i < count; i++)
            values[i] = random.Next(16) == 0 ? 0 : (float)(magnitude * Normal(random));
        return values;
    }

    public static int[] Permutation(Random random, int count)
    {
        var order = Enumerable.Range(0, count).ToArray();
        random.Shuffle(order);
        return order;
    }
}

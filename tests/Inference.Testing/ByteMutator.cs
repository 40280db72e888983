using System.Text;

namespace Inference.Testing;

/// <summary>Damages JSON-like input in small ways, reproducibly: what a fuzzer without feedback does.</summary>
public static class ByteMutator
{
    private static readonly byte[][] Nasty = Array.ConvertAll<string, byte[]>(
    [
        "-1", "0", "-0", "1e3", "1.5", "9223372036854775807", "9223372036854775808", "18446744073709551615", "4611686018427387904",
        "4294967296", "99999999999999999999999999", "1e999", "NaN", "null", "true", "{}", "[]", "[[[[[[[[", "{\"a\":{\"a\":{\"a\":{", "\"\"",
        "\"\\ud800\"", "\"\\u0000\"", "\\", "\"", ",", ":", "}", "]", "//x", "/*", "../", "..\\", "C:", "/etc/passwd", "\u00e9", "\ud83d\ude42", "\u202e",
        "__metadata__", "dtype", "shape", "data_offsets", "weight_map", "F64", "F4", "BF16", "I8",
    ], Encoding.UTF8.GetBytes);

    private static readonly byte[] Structure = "{}[],:\"0123456789 -.eE\\\0\n"u8.ToArray();

    /// <summary>A copy of the input with one to four changes.</summary>
    public static byte[] Mutate(ReadOnlySpan<byte> input, Random random)
    {
        var bytes = new List<byte>(input.Length + 64);
        bytes.AddRange(input);
        for (var changes = random.Next(1, 5); changes > 0; changes--)
            Change(bytes, random);
        return [.. bytes];
    }

    private static void Change(List<byte> bytes, Random random)
    {
        var at = random.Next(bytes.Count + 1);
        var length = Math.Min(bytes.Count - at, random.Next(1, random.Next(4) == 0 ? 64 : 8));
        switch (random.Next(9))
        {
            case 0 when at < bytes.Count:
                bytes[at] ^= (byte)(1 << random.Next(8));
                break;
            case 1 when at < bytes.Count:
                bytes[at] = Structure[random.Next(Structure.Length)];
                break;
            case 2:
                bytes.RemoveRange(at, length);
                break;
            case 3:
                bytes.InsertRange(random.Next(bytes.Count + 1), bytes.GetRange(at, length));
                break;
            case 4:
                bytes.InsertRange(at, Nasty[random.Next(Nasty.Length)]);
                break;
            case 5:
                ReplaceNumber(bytes, at, random);
                break;
            case 6:
                ReplaceNumber(bytes, at, random);
                break;
            case 7 when random.Next(4) == 0:
                bytes.RemoveRange(at, bytes.Count - at);
                break;
            default:
                bytes.Insert(at, (byte)random.Next(256));
                break;
        }
    }

    /// <summary>Replaces the next run of digits after a position: the change that passes the JSON parser most often.</summary>
    private static void ReplaceNumber(List<byte> bytes, int at, Random random)
    {
        var start = bytes.FindIndex(at, b => b is >= (byte)'0' and <= (byte)'9');
        if (start < 0)
            return;
        var end = start;
        while (end < bytes.Count && bytes[end] is >= (byte)'0' and <= (byte)'9')
            end++;
        bytes.RemoveRange(start, end - start);
        bytes.InsertRange(start, random.Next(2) == 0
            ? Nasty[random.Next(12)]
            : Encoding.ASCII.GetBytes(random.Next(0, 200).ToString(System.Globalization.CultureInfo.InvariantCulture)));
    }
}

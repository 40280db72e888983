namespace Inference.Runtime.Tokenization.Loading;

/// <summary>
/// How byte-level files spell bytes as visible characters: printable Latin-1 characters stand for themselves, the other 68
/// bytes, in order, for U+0100 and onwards.
/// </summary>
internal static class ByteLevelAlphabet
{
    private const int FirstShifted = 0x100;

    private static readonly short[] ByteOf = Build();

    /// <summary>The bytes a spelling stands for; false when a character of it is none of the alphabet.</summary>
    public static bool TryDecode(string spelling, out byte[] bytes)
    {
        bytes = new byte[spelling.Length];
        for (var i = 0; i < spelling.Length; i++)
        {
            if (spelling[i] >= ByteOf.Length || ByteOf[spelling[i]] < 0)
                return false;
            bytes[i] = (byte)ByteOf[spelling[i]];
        }
        return true;
    }

    private static short[] Build()
    {
        var byteOf = new short[FirstShifted + 68];
        Array.Fill(byteOf, (short)-1);
        var shifted = FirstShifted;
        for (var value = 0; value < 256; value++)
        {
            var visible = value is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or >= 0xAE;
            byteOf[visible ? value : shifted++] = (short)value;
        }
        return byteOf;
    }
}

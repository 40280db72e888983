// How a cached row lies in memory (deepseek-v4 3.2), and the scalar definition of reading and writing one.
//
// A format stores without loss exactly the values that its Rounding gives: rounding is a step of the operators that make rows, storing is not.
// So the bits of whatever reads a row are the same whether the row is stored narrow or as the F32 numbers it stands for.
// Rows are self-contained (codes, rotary channels, scales, in this order), so a page is a plain sequence of rows in every format. Kernels decode
// rows on their own; this is what they are compared with. Plain data; owns nothing.
using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Inference.Backends.Operators;

/// <summary>How the elements of a row are stored.</summary>
public enum RowEncoding
{
    F32,
    BF16,
    /// <summary>E4M3 codes of the channels before the rotary ones, the rotary channels as BF16, an E8M0 scale per 64 codes, filled up to 8 bytes.</summary>
    Fp8,
    /// <summary>E2M1 codes, the even channel in the low nibble, then an E8M0 scale per 32 channels.</summary>
    Fp4,
    /// <summary>E4M3 codes, then one scale (a power of two) as F32.</summary>
    Fp8OneScale,
}

/// <summary>Encoding and widths of one kind of row. A number alone means F32 rows of that width.</summary>
public readonly record struct RowFormat
{
    /// <summary>Channels that share a scale: of <see cref="RowEncoding.Fp8"/>, and of <see cref="RowEncoding.Fp4"/>.</summary>
    public const int Fp8Block = 64, Fp4Block = Numerics.Fp4BlockSize;

    private const int Fp8Alignment = 8;

    private RowFormat(RowEncoding encoding, int width, int rotaryChannels = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(width);
        ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)rotaryChannels, (uint)width);
        (Encoding, Width, RotaryChannels) = (encoding, width, rotaryChannels);
    }

    public static RowFormat F32(int width) => new(RowEncoding.F32, width);

    public static RowFormat BF16(int width) => new(RowEncoding.BF16, width);

    /// <param name="rotaryChannels">The last channels, stored as BF16.</param>
    public static RowFormat Fp8(int width, int rotaryChannels) => new(RowEncoding.Fp8, width, rotaryChannels);

    public static RowFormat Fp4(int width) => new(RowEncoding.Fp4, width);

    public static RowFormat Fp8OneScale(int width) => new(RowEncoding.Fp8OneScale, width);

    public static implicit operator RowFormat(int width) => F32(width);

    public RowEncoding Encoding { get; }

    /// <summary>Elements per row.</summary>
    public int Width { get; }

    /// <summary>Of these, the last ones that <see cref="RowEncoding.Fp8"/> stores as BF16; 0 for other encodings.</summary>
    public int RotaryChannels { get; }

    /// <summary>Channels before the rotary ones.</summary>
    public int PlainChannels => Width - RotaryChannels;

    /// <summary>Element type of a pool of such rows: that of the elements if they are stored one by one, else bytes.</summary>
    public DType DType => Encoding switch { RowEncoding.F32 => DType.F32, RowEncoding.BF16 => DType.BF16, _ => DType.U8 };

    /// <summary>Elements of <see cref="DType"/> per row.</summary>
    public int StoredElements => DType == DType.U8 ? Bytes : Width;

    /// <summary>Bytes per row.</summary>
    public int Bytes => checked(Encoding switch
    {
        RowEncoding.F32 => sizeof(float) * Width,
        RowEncoding.BF16 => sizeof(ushort) * Width,
        RowEncoding.Fp8 => (ScaleOffset + Groups(PlainChannels, Fp8Block) + Fp8Alignment - 1) / Fp8Alignment * Fp8Alignment,
        RowEncoding.Fp4 => ScaleOffset + Groups(Width, Fp4Block),
        _ => ScaleOffset + sizeof(float),
    });

    /// <summary>Byte of a row at which its scales begin; for encodings that have some.</summary>
    public int ScaleOffset => Encoding switch
    {
        RowEncoding.Fp8 => checked(PlainChannels + sizeof(ushort) * RotaryChannels),
        RowEncoding.Fp4 => Groups(Width, 2),
        _ => Width,
    };

    /// <summary>The rounding whose values this format stores without loss; F32 stores any.</summary>
    public RowRounding Rounding => Encoding switch
    {
        RowEncoding.F32 => RowRounding.None,
        RowEncoding.BF16 => RowRounding.BF16,
        RowEncoding.Fp8 => RowRounding.Fp8Row,
        RowEncoding.Fp4 => RowRounding.HadamardFp4Block32,
        _ => RowRounding.HadamardFp8,
    };

    /// <summary>Stores a row that was rounded by <see cref="Rounding"/>; a block that holds a value that is not finite reads back as NaN.</summary>
    /// <param name="stored"><see cref="Bytes"/> bytes.</param>
    public void Encode(ReadOnlySpan<float> row, Span<byte> stored)
    {
        Check(row.Length, stored.Length);
        switch (Encoding)
        {
            case RowEncoding.F32:
                MemoryMarshal.AsBytes(row).CopyTo(stored);
                break;
            case RowEncoding.BF16:
                EncodeBF16(row, stored);
                break;
            case RowEncoding.Fp8:
                stored.Clear();
                for (int start = 0, block = 0; start < PlainChannels; start += Fp8Block, block++)
                {
                    var length = Math.Min(Fp8Block, PlainChannels - start);
                    stored[ScaleOffset + block] = Numerics.EncodeFp8Block(row.Slice(start, length), stored.Slice(start, length));
                }
                EncodeBF16(row[PlainChannels..], stored[PlainChannels..ScaleOffset]);
                break;
            case RowEncoding.Fp4:
                Numerics.EncodeFp4Block32(row, stored[..ScaleOffset], stored[ScaleOffset..]);
                break;
            default:
                var scale = Numerics.EncodeFp8Block(row, stored[..Width]);
                BinaryPrimitives.WriteSingleLittleEndian(stored[Width..], Numerics.E8M0ToSingle(scale));
                break;
        }
    }

    /// <summary>Reads a stored row.</summary>
    public void Decode(ReadOnlySpan<byte> stored, Span<float> row)
    {
        Check(row.Length, stored.Length);
        switch (Encoding)
        {
            case RowEncoding.F32:
                stored.CopyTo(MemoryMarshal.AsBytes(row));
                break;
            case RowEncoding.BF16:
                DecodeBF16(stored, row);
                break;
            case RowEncoding.Fp8:
                for (var i = 0; i < PlainChannels; i++)
                    row[i] = Numerics.E4M3ToSingle(stored[i]) * Numerics.E8M0ToSingle(stored[ScaleOffset + i / Fp8Block]);
                DecodeBF16(stored[PlainChannels..ScaleOffset], row[PlainChannels..]);
                break;
            case RowEncoding.Fp4:
                for (var i = 0; i < Width; i++)
                    row[i] = Numerics.E2M1ToSingle(stored[i / 2] >> 4 * (i % 2)) * Numerics.E8M0ToSingle(stored[ScaleOffset + i / Fp4Block]);
                break;
            default:
                var scale = BinaryPrimitives.ReadSingleLittleEndian(stored[Width..]);
                for (var i = 0; i < Width; i++)
                    row[i] = Numerics.E4M3ToSingle(stored[i]) * scale;
                break;
        }
    }

    private static void EncodeBF16(ReadOnlySpan<float> values, Span<byte> stored)
    {
        for (var i = 0; i < values.Length; i++)
            BinaryPrimitives.WriteUInt16LittleEndian(stored[(2 * i)..], Numerics.SingleToBFloat16(values[i]));
    }

    private static void DecodeBF16(ReadOnlySpan<byte> stored, Span<float> values)
    {
        for (var i = 0; i < values.Length; i++)
            values[i] = Numerics.BFloat16ToSingle(BinaryPrimitives.ReadUInt16LittleEndian(stored[(2 * i)..]));
    }

    private void Check(int elements, int bytes)
    {
        if (elements != Width || bytes != Bytes) throw new ArgumentException($"{elements} elements and {bytes} bytes for a row of {this}.");
    }

    private static int Groups(int count, int size) => (count + size - 1) / size;

    public override string ToString() => RotaryChannels > 0 ? $"{Encoding}[{PlainChannels}+{RotaryChannels}]" : $"{Encoding}[{Width}]";
}

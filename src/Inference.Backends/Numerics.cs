// The number formats of checkpoints and caches, one scalar at a time: what each code means, and which code a value gets.
//
// This is the definition that every faster kernel is compared with (spec deepseek-v4 2.1); it is written to be read.
// It never touches a device, a tensor or a thread, and owns no state beside one table of 256 constants.
// Invariant: decode(encode(x)) is the value of the format nearest to x, ties to the even code, out of range to the
// largest finite value; and encode(decode(c)) = c for every code c that is not NaN.
using System.Numerics;

namespace Inference.Backends;

/// <summary>Scalar reference conversions and block quantisations of the stored number formats.</summary>
public static class Numerics
{
    /// <summary>Largest finite E4M3 value.</summary>
    public const float E4M3Max = 448f;

    /// <summary>Largest E2M1 value.</summary>
    public const float E2M1Max = 6f;

    /// <summary>Elements that share one scale in <see cref="QuantizeFp4Block32"/>.</summary>
    public const int Fp4BlockSize = 32;

    private const float E4M3MinNormal = 1f / 64f;
    private const byte E4M3MaxCode = 0x7E;
    private const byte E4M3NaN = 0x7F;
    private const byte E8M0NaN = 0xFF;

    // Smallest block maxima (spec 2.1): they keep the scale of an all-zero block a normal number.
    private const float Fp8AbsMaxFloor = 1e-4f;
    private const float Fp4AbsMaxFloor = 6f * 1.17549435e-38f; // 6 * 2^-126

    private static readonly float[] E4M3Values = BuildE4M3Values();

    /// <summary>Value of a bfloat16 code; exact.</summary>
    public static float BFloat16ToSingle(ushort code) => BitConverter.UInt32BitsToSingle((uint)code << 16);

    /// <summary>Nearest bfloat16, ties to even. Overflow gives infinity; a NaN stays a (quiet) NaN.</summary>
    public static ushort SingleToBFloat16(float value)
    {
        var bits = BitConverter.SingleToUInt32Bits(value);
        if (float.IsNaN(value))
            return (ushort)((bits >> 16) | 0x40); // keep a payload bit, or rounding could turn NaN into infinity
        return (ushort)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }

    /// <summary>Rounds to the nearest bfloat16 and back: the value a BF16 tensor would hold.</summary>
    public static float RoundToBFloat16(float value) => BFloat16ToSingle(SingleToBFloat16(value));

    /// <summary>Value of an IEEE binary16 code; exact.</summary>
    public static float HalfToSingle(ushort code) => (float)BitConverter.UInt16BitsToHalf(code);

    /// <summary>Nearest binary16, ties to even. Overflow gives infinity.</summary>
    public static ushort SingleToHalf(float value) => BitConverter.HalfToUInt16Bits((Half)value);

    /// <summary>Value of an E4M3FN code (bias 7, subnormal step 2^-9); 0x7F and 0xFF are NaN.</summary>
    public static float E4M3ToSingle(byte code) => E4M3Values[code];

    /// <summary>Nearest E4M3FN code, ties to even, saturating at +-448 (infinities too). NaN gives 0x7F.</summary>
    public static byte SingleToE4M3(float value)
    {
        if (float.IsNaN(value))
            return E4M3NaN;
        var bits = BitConverter.SingleToUInt32Bits(value);
        var sign = (byte)((bits >> 24) & 0x80);
        var magnitude = MathF.Abs(value);
        if (magnitude >= E4M3Max)
            return (byte)(sign | E4M3MaxCode);
        if (magnitude < E4M3MinNormal)
            return (byte)(sign | (int)MathF.Round(magnitude * 512f, MidpointRounding.ToEven)); // steps of 2^-9; 8 is the first normal
        bits &= 0x7FFFFFFF;
        bits += 0x7FFFF + ((bits >> 20) & 1); // 23 mantissa bits to 3; a carry walks into the exponent, as it should
        return (byte)(sign | (int)((bits >> 20) - ((127 - 7) << 3)));
    }

    /// <summary>Value of an E8M0 code: 2^(code - 127), so 0 is the subnormal 2^-127; 255 is NaN.</summary>
    public static float E8M0ToSingle(byte code) => code switch
    {
        0 => BitConverter.UInt32BitsToSingle(0x00400000),
        E8M0NaN => float.NaN,
        _ => BitConverter.UInt32BitsToSingle((uint)code << 23),
    };

    /// <summary>Value of an E2M1 code: bit 3 is the sign, the low three bits pick from 0, .5, 1, 1.5, 2, 3, 4, 6.</summary>
    /// <param name="code">0..15; higher bits are ignored, so a nibble may be passed unmasked.</param>
    public static float E2M1ToSingle(int code)
    {
        ReadOnlySpan<float> values = [0f, 0.5f, 1f, 1.5f, 2f, 3f, 4f, 6f, -0f, -0.5f, -1f, -1.5f, -2f, -3f, -4f, -6f];
        return values[code & 15];
    }

    /// <summary>Nearest E2M1 code 0..15, ties to the even code, saturating at +-6. NaN, which has no code, gives +6.</summary>
    public static int SingleToE2M1(float value)
    {
        if (float.IsNaN(value))
            return 7;
        var sign = (int)((BitConverter.SingleToUInt32Bits(value) >> 28) & 8);
        var magnitude = MathF.Abs(value);
        // Midpoints between neighbours; a tie belongs to the even one of the two codes.
        var code = magnitude switch
        {
            <= 0.25f => 0,
            < 0.75f => 1,
            <= 1.25f => 2,
            < 1.75f => 3,
            <= 2.5f => 4,
            < 3.5f => 5,
            <= 5f => 6,
            _ => 7,
        };
        return sign | code;
    }

    /// <summary>
    /// Replaces the values of one block by what FP8 (E4M3) codes with one power-of-two scale would give back
    /// (spec deepseek-v4 2.1). The block may have any length; the model uses 64 for cache rows and 128 for activations.
    /// </summary>
    /// <returns>The scale, 2^ceil(log2(absmax / 448)); NaN (and a block of NaN) when a value is not finite.</returns>
    public static float QuantizeFp8Block(Span<float> block)
    {
        var scale = E8M0ToSingle(Fp8BlockScale(block));
        foreach (ref var x in block)
            x = E4M3ToSingle(SingleToE4M3(x / scale)) * scale;
        return scale;
    }

    /// <summary>The stored form of <see cref="QuantizeFp8Block"/>: E4M3 codes and the E8M0 code of their scale.</summary>
    /// <exception cref="ArgumentException">The two lengths differ.</exception>
    public static byte EncodeFp8Block(ReadOnlySpan<float> block, Span<byte> codes)
    {
        if (codes.Length != block.Length)
            throw new ArgumentException($"{codes.Length} codes for {block.Length} values", nameof(codes));
        var scaleCode = Fp8BlockScale(block);
        var scale = E8M0ToSingle(scaleCode);
        for (var i = 0; i < block.Length; i++)
            codes[i] = SingleToE4M3(block[i] / scale);
        return scaleCode;
    }

    /// <summary>E8M0 code of the scale that <see cref="QuantizeFp8Block"/> gives a block; 255 when a value is not finite.</summary>
    public static byte Fp8BlockScale(ReadOnlySpan<float> block) => PowerOfTwoScale(AbsMax(block, Fp8AbsMaxFloor), 1f / 448f);

    /// <summary>
    /// Replaces the values by what FP4 (E2M1) codes with one power-of-two scale per 32 values would give back
    /// (spec deepseek-v4 2.1). A group that holds a value that is not finite becomes NaN.
    /// </summary>
    /// <exception cref="ArgumentException">The length is not a multiple of 32.</exception>
    public static void QuantizeFp4Block32(Span<float> values)
    {
        RequireFp4Blocks(values.Length, nameof(values));
        for (; !values.IsEmpty; values = values[Fp4BlockSize..])
        {
            var block = values[..Fp4BlockSize];
            var scale = E8M0ToSingle(Fp4BlockScale(block));
            foreach (ref var x in block)
                x = E2M1ToSingle(SingleToE2M1(x / scale)) * scale;
        }
    }

    /// <summary>The stored form of <see cref="QuantizeFp4Block32"/>: packed codes, the even index in the low nibble, and one
    /// E8M0 scale code per 32 values.</summary>
    /// <exception cref="ArgumentException">The lengths are not n*32 values, n*16 bytes and n scales.</exception>
    public static void EncodeFp4Block32(ReadOnlySpan<float> values, Span<byte> packed, Span<byte> scales)
    {
        RequireFp4Blocks(values.Length, nameof(values));
        if (packed.Length != values.Length / 2 || scales.Length != values.Length / Fp4BlockSize)
            throw new ArgumentException($"{packed.Length} bytes and {scales.Length} scales for {values.Length} values", nameof(packed));
        for (var block = 0; block < scales.Length; block++)
        {
            var x = values.Slice(block * Fp4BlockSize, Fp4BlockSize);
            scales[block] = Fp4BlockScale(x);
            var scale = E8M0ToSingle(scales[block]);
            for (var i = 0; i < Fp4BlockSize; i += 2)
                packed[(block * Fp4BlockSize + i) / 2] = (byte)(SingleToE2M1(x[i] / scale) | SingleToE2M1(x[i + 1] / scale) << 4);
        }
    }

    /// <summary>E8M0 code of the scale that <see cref="QuantizeFp4Block32"/> gives one group; 255 when a value is not finite.</summary>
    public static byte Fp4BlockScale(ReadOnlySpan<float> block) => PowerOfTwoScale(AbsMax(block, Fp4AbsMaxFloor), 1f / 6f);

    /// <summary>
    /// In place: y = H x / sqrt(n), H in Sylvester order (orthogonal and its own inverse). Butterflies run from stride 1
    /// upward in FP32, then one multiplication by n^-0.5: other implementations must keep this order to agree in bits.
    /// </summary>
    /// <exception cref="ArgumentException">The length is not a power of two.</exception>
    public static void Hadamard(Span<float> values)
    {
        if (!BitOperations.IsPow2(values.Length))
            throw new ArgumentException($"Hadamard needs a power of two, not {values.Length} values", nameof(values));
        for (var stride = 1; stride < values.Length; stride *= 2)
        {
            for (var start = 0; start < values.Length; start += 2 * stride)
            {
                for (var i = start; i < start + stride; i++)
                    (values[i], values[i + stride]) = (values[i] + values[i + stride], values[i] - values[i + stride]);
            }
        }
        var scale = (float)(1.0 / Math.Sqrt(values.Length));
        foreach (ref var x in values)
            x *= scale;
    }

    /// <summary>E8M0 code of 2^ceil(log2(absMax * step)), by bit inspection of the FP32 product (a double product would
    /// sometimes pick another power: spec 2.1).</summary>
    private static byte PowerOfTwoScale(float absMax, float step)
    {
        var bits = BitConverter.SingleToUInt32Bits(absMax * step);
        var exponent = (int)(bits >> 23) & 0xFF; // never 0: the floors keep the product normal
        return (byte)(exponent == 0xFF ? E8M0NaN : exponent + ((bits & 0x7FFFFF) != 0 ? 1 : 0));
    }

    /// <summary>Largest magnitude, at least <paramref name="floor"/>; NaN when a value is not finite.</summary>
    private static float AbsMax(ReadOnlySpan<float> block, float floor)
    {
        var max = floor;
        foreach (var x in block)
        {
            if (!float.IsFinite(x))
                return float.NaN;
            max = MathF.Max(max, MathF.Abs(x));
        }
        return max;
    }

    private static void RequireFp4Blocks(int length, string name)
    {
        if (length % Fp4BlockSize != 0)
            throw new ArgumentException($"FP4 groups hold {Fp4BlockSize} values; {length} is no multiple of it", name);
    }

    private static float[] BuildE4M3Values()
    {
        var values = new float[256];
        for (var code = 0; code < values.Length; code++)
        {
            int exponent = (code >> 3) & 15, mantissa = code & 7;
            var magnitude = (exponent, mantissa) switch
            {
                (15, 7) => float.NaN,
                (0, _) => MathF.ScaleB(mantissa, -9),
                _ => MathF.ScaleB(8 + mantissa, exponent - 10), // 2^(e-7) * (1 + m/8)
            };
            values[code] = code < 128 ? magnitude : -magnitude;
        }
        return values;
    }
}

// Stored rows to F32 and back, with vectors: the bits of RowFormat.Decode and RowFormat.Encode (RowCodecTests).
//
// Decoding gives channels in their natural order, for a row is met by sums whose lanes are fixed by the channel (Lanes). A code times its
// power-of-two scale is exact, so it does not matter when the scale is applied. Encoding meets values that are already on the grid (the kernels round
// first): it only has to find the code, and the scale that it recomputes from them stores them exactly, though it may be a smaller one than they were
// rounded with. Plain data; a row is read and written by one thread.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal readonly unsafe struct RowCodec(RowFormat format)
{
    /// <summary>Channels that <see cref="Decode"/> writes together.</summary>
    public const int Block = 64;

    private readonly RowEncoding _encoding = format.Encoding;
    private readonly int _width = format.Width, _plain = format.PlainChannels, _scales = format.ScaleOffset, _bytes = format.Bytes;

    public bool IsF32 => _encoding == RowEncoding.F32;

    public bool IsFp4 => _encoding == RowEncoding.Fp4;

    /// <summary>Brings a row that will be decoded soon into the cache.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Prefetch(byte* stored)
    {
        if (!Sse.IsSupported) return;
        for (var i = 0; i < _bytes; i += 64)
            Sse.Prefetch0(stored + i);
    }

    /// <summary>Channels 64 b .. 64 b + 63 to <paramref name="row"/> + b * <paramref name="stride"/>; the last ones filled up with zeros to a whole
    /// vector of sixteen.</summary>
    public void Decode(byte* stored, float* row, int stride)
    {
        switch (_encoding)
        {
            case RowEncoding.F32:
                DecodeNatural<F32Format>(stored, _width, row, stride);
                break;
            case RowEncoding.BF16:
                DecodeNatural<BF16Format>(stored, _width, row, stride);
                break;
            case RowEncoding.Fp8:
                DecodeFp8(stored, stored + _scales, _plain / Block, row, stride);
                DecodeNatural<BF16Format>(stored + _plain, _width - _plain, row + (long)(_plain / Block) * stride, stride);
                break;
            case RowEncoding.Fp4:
                DecodeFp4(stored, row, stride);
                break;
            default:
                DecodeFp8OneScale(stored, row, stride);
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void DecodeNatural<TFormat>(byte* stored, int count, float* row, int stride) where TFormat : INaturalFormat
    {
        for (; count >= Block; count -= Block, stored += Block * TFormat.BytesPerElement, row += stride)
        {
            TFormat.Load(stored).Store(row);
            TFormat.Load(stored + 16 * TFormat.BytesPerElement).Store(row + 16);
            TFormat.Load(stored + 32 * TFormat.BytesPerElement).Store(row + 32);
            TFormat.Load(stored + 48 * TFormat.BytesPerElement).Store(row + 48);
        }
        for (; count >= 16; count -= 16, stored += 16 * TFormat.BytesPerElement, row += 16)
            TFormat.Load(stored).Store(row);
        if (count == 0) return;
        var rest = stackalloc byte[64]; // read no further than the row
        new Span<byte>(rest, 64).Clear();
        Buffer.MemoryCopy(stored, rest, 64, count * TFormat.BytesPerElement);
        TFormat.Load(rest).Store(row);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void DecodeFp8(byte* codes, byte* scales, int blocks, float* row, int stride)
    {
        var tables = new WeightDecoders.Fp8Tables();
        for (; blocks > 0; blocks--, codes += Block, scales++, row += stride)
            DecodeFp8Block(codes, tables, Vector512.Create(Scale(*scales)), row);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void DecodeFp8OneScale(byte* stored, float* row, int stride)
    {
        var tables = new WeightDecoders.Fp8Tables();
        var scale = Vector512.Create(*(float*)(stored + _scales));
        var done = 0;
        for (; done + Block <= _width; done += Block, row += stride)
            DecodeFp8Block(stored + done, tables, scale, row);
        for (; done + 16 <= _width; done += 16, row += 16)
            (E4M3(stored + done) * scale).Store(row);
        if (done == _width) return;
        var rest = stackalloc byte[16];
        new Span<byte>(rest, 16).Clear();
        Buffer.MemoryCopy(stored + done, rest, 16, _width - done);
        (E4M3(rest) * scale).Store(row);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void DecodeFp8Block(byte* codes, in WeightDecoders.Fp8Tables tables, Vector512<float> scale, float* row)
    {
        if (Avx512Vbmi.IsSupported)
        {
            // As WeightDecoders.Fp8, after an exchange of codes that makes its order the natural one.
            var c = Avx512Vbmi.PermuteVar64x8(Vector512.Load(codes), NaturalOrder);
            var high = Avx512Vbmi.PermuteVar64x8x2(tables.High0, c, tables.High1) | (c & Vector512.Create((byte)0x80));
            var low = Avx512Vbmi.PermuteVar64x8x2(tables.Low0, c, tables.Low1);
            var a = Avx512BW.UnpackLow(low, high).AsUInt32();
            var b = Avx512BW.UnpackHigh(low, high).AsUInt32();
            ((a << 16).AsSingle() * scale).Store(row);
            ((a & Vector512.Create(0xFFFF0000u)).AsSingle() * scale).Store(row + 16);
            ((b << 16).AsSingle() * scale).Store(row + 32);
            ((b & Vector512.Create(0xFFFF0000u)).AsSingle() * scale).Store(row + 48);
            return;
        }
        for (var i = 0; i < Block; i += 16)
            (E4M3(codes + i) * scale).Store(row + i);
    }

    /// <summary>Byte 16 q + 2 r + h + 8 v holds channel 16 (2 v + h) + 4 q + r.</summary>
    private static Vector512<byte> NaturalOrder => Vector512.Create((byte)
        0, 16, 1, 17, 2, 18, 3, 19, 32, 48, 33, 49, 34, 50, 35, 51, 4, 20, 5, 21, 6, 22, 7, 23, 36, 52, 37, 53, 38, 54, 39, 55,
        8, 24, 9, 25, 10, 26, 11, 27, 40, 56, 41, 57, 42, 58, 43, 59, 12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63);

    /// <summary>Sixteen E4M3 codes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<float> E4M3(byte* codes)
    {
        var c = Widen(codes);
        var magnitude = c & Vector512.Create(0x7Fu);
        var bits = magnitude << 20;
        // Exponent 0: 2^-6 (1 + m) - 2^-6, which meets no subnormal number.
        var first = Vector512.Create(121u << 23);
        var tiny = ((bits + first).AsSingle() - first.AsSingle()).AsUInt32();
        var value = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(8u)), tiny, bits + Vector512.Create(120u << 23));
        value = Vector512.ConditionalSelect(Vector512.Equals(magnitude, Vector512.Create(0x7Fu)), Vector512.Create(0x7FC00000u), value);
        return (value | (c & Vector512.Create(0x80u)) << 24).AsSingle();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Widen(byte* sixteen)
    {
        var v = Vector128.Load(sixteen);
        if (Avx512F.IsSupported) return Avx512F.ConvertToVector512UInt32(v);
        var (low, high) = Vector128.Widen(v);
        var (a, b) = Vector128.Widen(low);
        var (c, d) = Vector128.Widen(high);
        return Vector512.Create(Vector256.Create(a, b), Vector256.Create(c, d));
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private void DecodeFp4(byte* stored, float* row, int stride)
    {
        var table = WeightDecoders.Fp4Table;
        var scales = stored + _scales;
        for (var done = 0; done < _width; done += RowFormat.Fp4Block, scales++)
        {
            var scale = Vector512.Create(Scale(*scales));
            var destination = row + (long)(done / Block) * stride + done % Block;
            (WeightDecoders.Fp4(table, Nibbles(stored + done / 2)) * scale).Store(destination);
            (WeightDecoders.Fp4(table, Nibbles(stored + done / 2 + 8)) * scale).Store(destination + 16);
        }
    }

    /// <summary>Sixteen 4-bit codes, each in the low bits of its lane; what stands above them is undefined.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Nibbles(byte* eight)
    {
        Vector256<uint> low = Vector256.Create(*(uint*)eight), high = Vector256.Create(*(uint*)(eight + 4));
        if (Avx512F.IsSupported)
            return Avx512F.ShiftRightLogicalVariable(Vector512.Create(low, high), Vector512.Create(0u, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
        if (Avx2.IsSupported)
        {
            var shifts = Vector256.Create(0u, 4, 8, 12, 16, 20, 24, 28);
            return Vector512.Create(Avx2.ShiftRightLogicalVariable(low, shifts), Avx2.ShiftRightLogicalVariable(high, shifts));
        }
        var lanes = stackalloc uint[16];
        for (var i = 0; i < 16; i++)
            lanes[i] = (uint)eight[i / 2] >> 4 * (i % 2);
        return Vector512.Load(lanes);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Scale(byte code) => code is 0 or 255 ? Numerics.E8M0ToSingle(code) : BitConverter.UInt32BitsToSingle((uint)code << 23);

    /// <summary>Stores a row that was rounded as the format wants it.</summary>
    public void Encode(float* row, byte* stored)
    {
        switch (_encoding)
        {
            case RowEncoding.F32:
                Buffer.MemoryCopy(row, stored, _bytes, _bytes);
                break;
            case RowEncoding.BF16:
                EncodeBF16(row, _width, (ushort*)stored);
                break;
            case RowEncoding.Fp8:
                for (var start = 0; start < _plain; start += Block)
                    stored[_scales + start / Block] = (byte)EncodeFp8(row + start, Block, stored + start);
                EncodeBF16(row + _plain, _width - _plain, (ushort*)(stored + _plain));
                for (var i = _scales + _plain / Block; i < _bytes; i++)
                    stored[i] = 0;
                break;
            case RowEncoding.Fp4:
                for (var start = 0; start < _width; start += RowFormat.Fp4Block)
                    stored[_scales + start / RowFormat.Fp4Block] = (byte)EncodeFp4(row + start, stored + start / 2);
                break;
            default:
                *(float*)(stored + _scales) = Scale((byte)EncodeFp8(row, _width, stored));
                break;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void EncodeBF16(float* row, int count, ushort* stored)
    {
        var i = 0;
        for (; i + 16 <= count; i += 16)
        {
            var bits = Vector512.Load(row + i).AsUInt32() >> 16;
            Vector256.Narrow(bits.GetLower(), bits.GetUpper()).Store(stored + i);
        }
        for (; i < count; i++)
            stored[i] = (ushort)(BitConverter.SingleToUInt32Bits(row[i]) >> 16);
    }

    /// <summary>Codes of a block, whose length is a multiple of 16; returns the code of its scale.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static uint EncodeFp8(float* x, int count, byte* codes)
    {
        var scale = GridRounding.Fp8ScaleCode(x, count);
        var (_, inverse) = GridRounding.Scales(scale);
        for (var i = 0; i < count; i += 16)
        {
            var bits = (Vector512.Load(x + i) * inverse).AsUInt32();
            var magnitude = bits & Vector512.Create(0x7FFFFFFFu);
            var magic = Vector512.Create(24576f); // its last digit is 2^-9, the step below 2^-6
            var small = (magnitude.AsSingle() + magic).AsUInt32() - magic.AsUInt32();
            var code = (magnitude >> 20) - Vector512.Create(120u << 3);
            code = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(0x3C800000u)), small, code);
            code = Vector512.ConditionalSelect(Vector512.GreaterThan(magnitude, Vector512.Create(0x7F800000u)), Vector512.Create(0x7Fu), code);
            Narrow(code | ((bits >> 24) & Vector512.Create(0x80u))).Store(codes + i);
        }
        return scale;
    }

    /// <summary>Codes of 32 values; returns the code of their scale.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static uint EncodeFp4(float* x, byte* codes)
    {
        var scale = GridRounding.Fp4ScaleCode(x);
        var (_, inverse) = GridRounding.Scales(scale);
        var pairs = Vector256.Create(Narrow(E2M1Codes(Vector512.Load(x) * inverse)), Narrow(E2M1Codes(Vector512.Load(x + 16) * inverse))).AsUInt16();
        pairs = (pairs | pairs >> 4) & Vector256.Create((ushort)0xFF);
        Vector128.Narrow(pairs.GetLower(), pairs.GetUpper()).Store(codes);
        return scale;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> E2M1Codes(Vector512<float> v)
    {
        var bits = v.AsUInt32();
        var magnitude = bits & Vector512.Create(0x7FFFFFFFu);
        var small = Vector512.Equals(magnitude, Vector512.Create(0x3F000000u)) & Vector512<uint>.One; // 0 or 1/2
        var code = (magnitude >> 22) - Vector512.Create(252u);
        code = Vector512.ConditionalSelect(Vector512.LessThan(magnitude, Vector512.Create(0x3F800000u)), small, code);
        code = Vector512.ConditionalSelect(Vector512.GreaterThan(magnitude, Vector512.Create(0x7F800000u)), Vector512.Create(7u), code);
        return code | ((bits >> 28) & Vector512.Create(8u));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<byte> Narrow(Vector512<uint> v)
    {
        if (Avx512F.IsSupported) return Avx512F.ConvertToVector128Byte(v);
        var half = Vector256.Narrow(v.GetLower(), v.GetUpper());
        return Vector128.Narrow(half.GetLower(), half.GetUpper());
    }
}

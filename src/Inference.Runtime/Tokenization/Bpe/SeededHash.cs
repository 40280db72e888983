// Hashing with secrets drawn at process start, so that no file can be made whose entries all collide.
// The result never leaves a lookup: ids do not depend on the secrets.
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace Inference.Runtime.Tokenization.Bpe;

internal static class SeededHash
{
    private static readonly ulong Secret0 = Draw();
    private static readonly ulong Secret1 = Draw();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Of(ulong value) => Fold(value ^ Secret0, Secret1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static uint Of(ReadOnlySpan<byte> bytes)
    {
        ref var first = ref MemoryMarshal.GetReference(bytes);
        var length = bytes.Length;
        if (length <= 8)
            return Fold(UpToEight(ref first, length) ^ Secret0, Secret1 + (ulong)length);
        return OfLong(ref first, length);
    }

    private static uint OfLong(ref byte first, int length)
    {
        var state = Secret0 ^ (ulong)length;
        var at = 0;
        for (; at + 8 < length; at += 8)
        {
            var high = Math.BigMul(state ^ Read(ref first, at), Secret1, out var low);
            state = high ^ low;
        }
        return Fold(state ^ Read(ref first, length - 8), Secret1);
    }

    // Two overlapping reads cover any length without a loop.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong UpToEight(ref byte first, int length)
    {
        if (length >= 4)
        {
            var head = Unsafe.ReadUnaligned<uint>(ref first);
            var tail = Unsafe.ReadUnaligned<uint>(ref Unsafe.Add(ref first, length - 4));
            return ((ulong)tail << 32) | head;
        }
        if (length == 0)
            return 0;
        return (uint)(first | (Unsafe.Add(ref first, length >> 1) << 8) | (Unsafe.Add(ref first, length - 1) << 16));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Read(ref byte first, int at) => Unsafe.ReadUnaligned<ulong>(ref Unsafe.Add(ref first, at));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint Fold(ulong a, ulong b)
    {
        var high = Math.BigMul(a, b, out var low);
        var mixed = high ^ low;
        return (uint)(mixed ^ (mixed >> 32));
    }

    // Odd and dense, so that multiplying keeps all bits in play.
    private static ulong Draw()
    {
        Span<byte> bytes = stackalloc byte[8];
        RandomNumberGenerator.Fill(bytes);
        return BitConverter.ToUInt64(bytes) | 0x8000_0000_0000_0001UL;
    }
}

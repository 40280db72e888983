// Sixteen lanes: how this backend adds up. Every long sum keeps sixteen partial sums, lane i taking elements i, i + 16, i + 32 ...,
// and joins them at the end in one fixed tree: halves first (i with i + 8), then quarters (i + 4), then i + 2, then i + 1.
//
// The order depends on the length of the sum only: not on the address, the number of threads or the instruction set (with 256-bit or
// 128-bit registers a vector is two or four of them, the lanes are the same). Tails are filled up with zeros.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class Lanes
{
    public const int Count = 16;

    /// <summary>The sum of sixteen lanes, in the order of the header. (Vector512.Sum leaves its order open.)</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(Vector512<float> v)
    {
        var half = v.GetLower() + v.GetUpper();
        var quarter = half.GetLower() + half.GetUpper();
        quarter += Vector128.Shuffle(quarter, Vector128.Create(2, 3, 2, 3));
        return quarter.ToScalar() + quarter.GetElement(1);
    }

    /// <summary>Four sums at once, each in the order of <see cref="Sum(Vector512{float})"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<float> Sum4(Vector512<float> v0, Vector512<float> v1, Vector512<float> v2, Vector512<float> v3)
    {
        Vector128<float> q0 = Quarter(v0), q1 = Quarter(v1), q2 = Quarter(v2), q3 = Quarter(v3);
        if (Sse.IsSupported)
        {
            // [a0 b0 a1 b1] + [c0 d0 c1 d1], then the even lanes of two such vectors plus the odd ones.
            var u = Sse.MoveLowToHigh(q0, q1) + Sse.MoveHighToLow(q1, q0);
            var w = Sse.MoveLowToHigh(q2, q3) + Sse.MoveHighToLow(q3, q2);
            return Sse.Shuffle(u, w, 0b10_00_10_00) + Sse.Shuffle(u, w, 0b11_01_11_01);
        }
        return Vector128.Create(q0[0] + q0[2], q1[0] + q1[2], q2[0] + q2[2], q3[0] + q3[2])
            + Vector128.Create(q0[1] + q0[3], q1[1] + q1[3], q2[1] + q2[3], q3[1] + q3[3]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<float> Quarter(Vector512<float> v)
    {
        var half = v.GetLower() + v.GetUpper();
        return half.GetLower() + half.GetUpper();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static double Sum(Vector512<double> v)
    {
        var half = v.GetLower() + v.GetUpper();
        var quarter = half.GetLower() + half.GetUpper();
        return quarter.ToScalar() + quarter.GetElement(1);
    }

    /// <summary>The first <paramref name="count"/> (1..15) elements at <paramref name="source"/>, the other lanes zero. Reads no further.</summary>
    public static Vector512<float> LoadPartial(float* source, int count)
    {
        var lanes = stackalloc float[Count];
        Vector512<float>.Zero.Store(lanes);
        for (var i = 0; i < count; i++)
            lanes[i] = source[i];
        return Vector512.Load(lanes);
    }

    /// <summary>Writes the first <paramref name="count"/> lanes.</summary>
    public static void StorePartial(Vector512<float> v, float* destination, int count)
    {
        var lanes = stackalloc float[Count];
        v.Store(lanes);
        for (var i = 0; i < count; i++)
            destination[i] = lanes[i];
    }

    /// <summary>Sum of x[i]^2 in double: eight lanes of two accumulators, joined as in the header.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static double SumOfSquares(float* x, long count)
    {
        Vector512<double> a = Vector512<double>.Zero, b = a;
        long i = 0;
        for (; i + Count <= count; i += Count)
            Accumulate(Vector512.Load(x + i), ref a, ref b);
        if (i < count)
            Accumulate(LoadPartial(x + i, (int)(count - i)), ref a, ref b);
        return Sum(a + b);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Accumulate(Vector512<float> v, ref Vector512<double> a, ref Vector512<double> b)
    {
        var (low, high) = Vector512.Widen(v);
        a = Vector512.FusedMultiplyAdd(low, low, a);
        b = Vector512.FusedMultiplyAdd(high, high, b);
    }

    /// <summary>1 / sqrt(mean(x^2) + epsilon), in double.</summary>
    public static double InverseRms(float* x, long count, float epsilon) => 1 / Math.Sqrt(SumOfSquares(x, count) / count + epsilon);
}

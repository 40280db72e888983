// Exact selection of the largest scores: of equal ones the smaller index, NaN below everything, indices in ascending order.
//
// Scores become unsigned keys of the same order; three histogram passes of 11, 11 and 10 bits find the key of the last one chosen; one more pass
// writes every index above it and the first few equal to it. Linear in the number of scores, and the choice depends on the scores only.
using System.Runtime.CompilerServices;

namespace Inference.Backends.Cpu;

internal static unsafe class TopK
{
    /// <summary>Ints of scratch that <see cref="Select"/> wants.</summary>
    public const int ScratchInts = 2048;

    /// <summary>Writes the indices of the <paramref name="k"/> largest of <paramref name="count"/> scores, k &lt;= count.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Select(float* scores, int count, int k, int* indices, int* histogram)
    {
        if (k == count)
        {
            for (var i = 0; i < count; i++)
                indices[i] = i;
            return;
        }
        uint prefix = 0; // key bits that are settled
        var wanted = k; // how many to take among the keys with this prefix
        prefix = Narrow(scores, count, prefix, 32, 21, ref wanted, histogram);
        prefix = Narrow(scores, count, prefix, 21, 10, ref wanted, histogram);
        var threshold = Narrow(scores, count, prefix, 10, 0, ref wanted, histogram);
        for (int i = 0, taken = 0; taken < k; i++)
        {
            var key = Key(scores[i]);
            if (key < threshold || (key == threshold && wanted-- <= 0)) continue;
            indices[taken++] = i;
        }
    }

    /// <summary>Settles bits [low, high) of the threshold: the value of these bits at which the wanted number is reached from above.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static uint Narrow(float* scores, int count, uint prefix, int high, int low, ref int wanted, int* histogram)
    {
        var mask = (1u << (high - low)) - 1;
        new Span<int>(histogram, (int)mask + 1).Clear();
        for (var i = 0; i < count; i++)
        {
            var key = Key(scores[i]);
            if (high == 32 || key >> high == prefix >> high) histogram[key >> low & mask]++;
        }
        var bin = mask;
        while (histogram[bin] < wanted)
            wanted -= histogram[bin--];
        return prefix | bin << low;
    }

    /// <summary>Larger floats have larger keys; both zeros the same one; NaN has key 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint Key(float score)
    {
        var bits = BitConverter.SingleToUInt32Bits(score + 0f); // -0 becomes +0
        if (float.IsNaN(score)) return 0;
        return bits ^ ((uint)((int)bits >> 31) | 0x80000000);
    }
}

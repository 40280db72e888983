using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Inference.Runtime.Sampling;

/// <summary>
/// The passes over a row of logits that sampling needs. Every result is a function of the row alone: the order of each sum is fixed by the
/// index, on every machine in lanes of eight.
/// </summary>
internal static class LogitMath
{
    /// <summary>Index and value of the largest; ties to the smaller index.</summary>
    /// <exception cref="InvalidLogitsException">A NaN, a positive infinity, or nothing above negative infinity.</exception>
    public static (int Index, float Value) ArgMax(ReadOnlySpan<float> x)
    {
        float max = Max(x);
        if (!float.IsFinite(max)) throw new InvalidLogitsException(max);
        var wanted = Vector256.Create(max);
        int i = 0;
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        for (int v = 0; v < lanes.Length; v++, i += Vector256<float>.Count)
        {
            uint hits = Vector256.Equals(lanes[v], wanted).ExtractMostSignificantBits();
            if (hits != 0) return (i + int.TrailingZeroCount((int)hits), max);
        }
        while (x[i] != max) i++;
        return (i, max);
    }

    // NaN if any element is.
    private static float Max(ReadOnlySpan<float> x)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        var best = Vector256.Create(float.NegativeInfinity);
        foreach (var v in lanes) best = Vector256.Max(best, v);  // carries NaN along
        float max = float.NegativeInfinity;
        for (int lane = 0; lane < Vector256<float>.Count; lane++) max = MathF.Max(max, best[lane]);
        foreach (float value in x[(lanes.Length * Vector256<float>.Count)..]) max = MathF.Max(max, value);
        return max;
    }

    /// <summary>The sum of exp(x - max).</summary>
    public static double ExpSum(ReadOnlySpan<float> x, float max)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        var shift = Vector256.Create(max);
        Vector256<double> low = default, high = default;
        foreach (var v in lanes)
        {
            var (a, b) = Vector256.Widen(Vector256.Exp(v - shift));
            low += a;
            high += b;
        }
        double sum = Vector256.Sum(low + high);
        foreach (float value in x[(lanes.Length * Vector256<float>.Count)..]) sum += Math.Exp((double)value - max);
        return sum;
    }

    /// <summary>weights[i] = exp((x[i] - max) / temperature).</summary>
    public static void Weights(ReadOnlySpan<float> x, float max, float temperature, Span<float> weights)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        var outLanes = MemoryMarshal.Cast<float, Vector256<float>>(weights);
        var (shift, divisor) = (Vector256.Create(max), Vector256.Create(temperature));
        for (int v = 0; v < lanes.Length; v++) outLanes[v] = Vector256.Exp((lanes[v] - shift) / divisor);
        for (int i = lanes.Length * Vector256<float>.Count; i < x.Length; i++) weights[i] = Weight(x[i], max, temperature);
    }

    public static float Weight(float x, float max, float temperature) => (float)Math.Exp((x - max) / temperature);

    /// <summary>bins[i] = the distance (max - x[i]) / temperature in units of 1 / perUnit, rounded down, at most last. Falls as x grows.</summary>
    public static void Bins(ReadOnlySpan<float> x, float max, float temperature, float perUnit, int last, Span<int> bins)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        var outLanes = MemoryMarshal.Cast<int, Vector256<int>>(bins);
        var (top, divisor, scale, limit) =
            (Vector256.Create(max), Vector256.Create(temperature), Vector256.Create(perUnit), Vector256.Create((float)last));
        for (int v = 0; v < lanes.Length; v++)
            outLanes[v] = Vector256.ConvertToInt32(Vector256.Min((top - lanes[v]) / divisor * scale, limit));
        for (int i = lanes.Length * Vector256<float>.Count; i < x.Length; i++)
            bins[i] = (int)MathF.Min((max - x[i]) / temperature * perUnit, last);
    }

    /// <summary>Sets to 0 the weights of all that rank behind (value, id).</summary>
    public static void DropBehind(ReadOnlySpan<float> x, float value, int id, Span<float> weights)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        var outLanes = MemoryMarshal.Cast<float, Vector256<float>>(weights);
        var (border, borderId) = (Vector256.Create(value), Vector256.Create(id));
        for (int v = 0; v < lanes.Length; v++)
        {
            var ids = Vector256.CreateSequence(v * Vector256<int>.Count, 1);
            var ahead = Vector256.GreaterThan(lanes[v], border)
                | (Vector256.Equals(lanes[v], border) & Vector256.LessThanOrEqual(ids, borderId).AsSingle());
            outLanes[v] &= ahead;
        }
        for (int i = lanes.Length * Vector256<float>.Count; i < x.Length; i++)
            if (x[i] < value || (x[i] == value && i > id)) weights[i] = 0;
    }

    /// <summary>Sets to 0 the weights below a limit.</summary>
    public static void DropBelow(float limit, Span<float> weights)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(weights);
        foreach (ref var v in lanes) v &= Vector256.GreaterThanOrEqual(v, Vector256.Create(limit));
        foreach (ref float weight in weights[(lanes.Length * Vector256<float>.Count)..])
            if (weight < limit) weight = 0;
    }

    public static double Sum(ReadOnlySpan<float> x)
    {
        var lanes = MemoryMarshal.Cast<float, Vector256<float>>(x);
        Vector256<double> low = default, high = default;
        foreach (var v in lanes)
        {
            var (a, b) = Vector256.Widen(v);
            low += a;
            high += b;
        }
        double sum = Vector256.Sum(low + high);
        foreach (float value in x[(lanes.Length * Vector256<float>.Count)..]) sum += value;
        return sum;
    }

    /// <summary>
    /// Ids of the <paramref name="count"/> largest into <paramref name="ids"/>, largest first, ties by the smaller id. Meant for small counts:
    /// one pass that compares with the smallest kept so far.
    /// </summary>
    public static void TopIds(ReadOnlySpan<float> x, int count, Span<int> ids)
    {
        Span<ulong> heap = count <= 256 ? stackalloc ulong[count] : new ulong[count];  // smallest rank at the root
        for (int i = 0; i < count; i++) heap[i] = Rank(x[i], i);
        for (int i = count / 2 - 1; i >= 0; i--) SiftDown(heap, i);
        // A later id that equals the smallest kept loses to it, so only strictly larger ones matter.
        int at = count;
        float floor = count == 0 ? float.PositiveInfinity : x[RankedId(heap[0])];
        while (at < x.Length)
        {
            at += FirstAbove(x[at..], floor);
            if (at == x.Length) break;
            heap[0] = Rank(x[at], at);
            SiftDown(heap, 0);
            floor = x[RankedId(heap[0])];
            at++;
        }
        heap.Sort();
        for (int i = 0; i < count; i++) ids[i] = RankedId(heap[count - 1 - i]);
    }

    private static int FirstAbove(ReadOnlySpan<float> x, float floor)
    {
        int i = 0;
        var limit = Vector256.Create(floor);
        foreach (var v in MemoryMarshal.Cast<float, Vector256<float>>(x))
        {
            uint hits = Vector256.GreaterThan(v, limit).ExtractMostSignificantBits();
            if (hits != 0) return i + int.TrailingZeroCount((int)hits);
            i += Vector256<float>.Count;
        }
        while (i < x.Length && !(x[i] > floor)) i++;
        return i;
    }

    /// <summary>A number that orders first by value, then by smaller id. No NaN.</summary>
    public static ulong Rank(float value, int id)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value + 0f);  // -0 becomes +0: they are equal
        uint ordered = (bits & 0x8000_0000) != 0 ? ~bits : bits | 0x8000_0000;
        return (ulong)ordered << 32 | ~(uint)id;
    }

    public static int RankedId(ulong rank) => (int)~(uint)rank;

    private static void SiftDown(Span<ulong> heap, int i)
    {
        while (true)
        {
            int child = 2 * i + 1;
            if (child >= heap.Length) return;
            if (child + 1 < heap.Length && heap[child + 1] < heap[child]) child++;
            if (heap[i] <= heap[child]) return;
            (heap[i], heap[child]) = (heap[child], heap[i]);
            i = child;
        }
    }
}

/// <summary>A row of logits has no largest finite value: the model's numbers went wrong for this sequence.</summary>
internal sealed class InvalidLogitsException(float max)
    : Exception(float.IsNaN(max) ? "The model's logits hold a NaN." : $"The largest of the model's logits is {max}.");

// Exact selection of the largest scores: of equal ones the smaller index, NaN below everything, indices in ascending order.
//
// Scores come in ascending order of index and become unsigned keys of the same order, sixteen at a time; only those above the bar enter a list of
// candidates. When the list is full it is cut to its k best, and the last of these is the new bar: a later score that equals it has a larger index and
// loses. Of n scores in random order about k ln(n / k) ever enter, so that a score costs a comparison; in the worst order (ascending) every score enters
// once and is cut once. Lists of pieces that follow each other are joined the same way. The choice depends on the scores only, not on the pieces.
// A list is memory of its user; nothing is owned here.
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Inference.Backends.Cpu;

/// <summary>The k best scores of those seen so far, and some more. Plain data; <see cref="Begin"/> first.</summary>
internal unsafe struct TopK
{
    private const int Bins = 256, Lanes = 16;

    private uint* _keys;
    private int* _indices, _histogram;
    private uint _bar;
    private int _k, _full;
    private bool _open; // nothing has been cut: everything enters

    /// <summary>Candidates in the list.</summary>
    public int Count { get; private set; }

    /// <summary>Ints that a list takes.</summary>
    public static int Ints(int k) => 2 * Capacity(k);

    /// <summary>Ints of scratch that any number of lists share, on one thread.</summary>
    public const int ScratchInts = Bins;

    // As many again as are kept enter between two cuts, at least; room for those that come together on top.
    private static int Capacity(int k) => (Math.Max(checked(2 * k), 256) + 2 * Lanes + Lanes - 1) / Lanes * Lanes;

    /// <param name="k">How many are wanted.</param>
    /// <param name="memory">Of <see cref="Ints"/>, kept until the last use.</param>
    /// <param name="scratch">Of <see cref="ScratchInts"/>.</param>
    public void Begin(int k, int* memory, int* scratch)
    {
        _keys = (uint*)memory;
        _indices = memory + Capacity(k);
        _histogram = scratch;
        (_k, _full, _bar, _open, Count) = (k, Capacity(k) - 2 * Lanes, 0, true, 0);
    }

    /// <summary>Sees the scores of up to thirty-two indices, larger than all before.</summary>
    /// <param name="scores">Thirty-two; those behind <paramref name="count"/> mean nothing.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Add(float* scores, int first, int count)
    {
        Vector512<uint> low = Key(Vector512.Load(scores)), high = Key(Vector512.Load(scores + Lanes)), bar = Vector512.Create(_bar);
        var above = _open ? ulong.MaxValue
            : Vector512.GreaterThan(low, bar).ExtractMostSignificantBits() | Vector512.GreaterThan(high, bar).ExtractMostSignificantBits() << Lanes;
        if (count < 2 * Lanes) above &= (1UL << count) - 1;
        if (above != 0) Enter(low, high, (uint)above, first);
    }

    private void Enter(Vector512<uint> low, Vector512<uint> high, uint above, int first)
    {
        var keys = stackalloc uint[2 * Lanes];
        low.Store(keys);
        high.Store(keys + Lanes);
        for (; above != 0; above &= above - 1)
        {
            var i = BitOperations.TrailingZeroCount(above);
            (_keys[Count], _indices[Count++]) = (keys[i], first + i);
        }
        if (Count >= _full) Cut();
    }

    /// <summary>Sees what another list kept, whose indices are larger than all before.</summary>
    public void Add(in TopK list)
    {
        for (var i = 0; i < list.Count; i++)
        {
            if (!_open && list._keys[i] <= _bar) continue;
            (_keys[Count], _indices[Count++]) = (list._keys[i], list._indices[i]);
            if (Count >= _full) Cut();
        }
    }

    /// <summary>The indices of the k best, ascending; as many as were seen if those are fewer. Ends the list.</summary>
    public ReadOnlySpan<int> Best()
    {
        Cut();
        return new ReadOnlySpan<int>(_indices, Count);
    }

    /// <summary>Keeps the k best.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public void Cut()
    {
        if (Count <= _k) return;
        uint bar = 0; // key bits that are settled
        var wanted = _k; // how many to take among the keys with these bits
        for (var low = 24; low >= 0; low -= 8)
            bar |= Bin(bar, low, ref wanted) << low;
        var kept = 0;
        for (var i = 0; kept < _k; i++)
        {
            if (_keys[i] < bar || (_keys[i] == bar && wanted-- <= 0)) continue;
            (_keys[kept], _indices[kept++]) = (_keys[i], _indices[i]);
        }
        (Count, _bar, _open) = (_k, bar, false);
    }

    /// <summary>The value of the eight bits from <paramref name="low"/> on at which the wanted number is reached from above.</summary>
    private readonly uint Bin(uint prefix, int low, ref int wanted)
    {
        new Span<int>(_histogram, Bins).Clear();
        var mask = low == 24 ? 0u : uint.MaxValue << (low + 8);
        for (var i = 0; i < Count; i++)
        {
            if ((_keys[i] & mask) == prefix) _histogram[_keys[i] >> low & (Bins - 1)]++;
        }
        var bin = Bins - 1;
        while (_histogram[bin] < wanted)
            wanted -= _histogram[bin--];
        return (uint)bin;
    }

    /// <summary>Larger floats have larger keys; both zeros the same one; NaN has key 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<uint> Key(Vector512<float> scores)
    {
        var bits = (scores + Vector512<float>.Zero).AsInt32(); // -0 becomes +0
        var keys = bits ^ (Vector512.ShiftRightArithmetic(bits, 31) | Vector512.Create(int.MinValue));
        return keys.AsUInt32() & Vector512.Equals(scores, scores).AsUInt32();
    }
}

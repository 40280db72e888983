// Pair of ids to the merge they make: rank and resulting id, packed as (rank << 32) | id so that the smaller value merges first.
// Open addressing, at most half full; filled while loading, read only afterwards.
using System.Numerics;
using System.Runtime.CompilerServices;

namespace Inference.Runtime.Tokenization.Bpe;

internal sealed class MergeTable
{
    /// <summary>The value of a pair that does not merge; larger than any merge.</summary>
    public const ulong None = ulong.MaxValue;

    private ulong[] _keys; // pair + 1; 0: free
    private ulong[] _merges;
    private int _mask;

    public MergeTable(int expected)
    {
        var capacity = (int)BitOperations.RoundUpToPowerOf2((uint)Math.Max(16, expected * 2L));
        (_keys, _merges, _mask) = (new ulong[capacity], new ulong[capacity], capacity - 1);
    }

    public int Count { get; private set; }

    /// <summary>Adds a merge; false when the pair has one already.</summary>
    public bool TryAdd(int left, int right, int rank, int id)
    {
        if (Count * 2 >= _keys.Length)
            Grow();
        if (!Insert(Key(left, right), ((ulong)(uint)rank << 32) | (uint)id))
            return false;
        Count++;
        return true;
    }

    /// <summary>The merge of a pair, or <see cref="None"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ulong Find(int left, int right)
    {
        var key = Key(left, right);
        for (var slot = (int)SeededHash.Of(key) & _mask; ; slot = (slot + 1) & _mask)
        {
            var found = _keys[slot];
            if (found == key)
                return _merges[slot];
            if (found == 0)
                return None;
        }
    }

    private static ulong Key(int left, int right) => (((ulong)(uint)left << 32) | (uint)right) + 1;

    private bool Insert(ulong key, ulong merge)
    {
        var slot = (int)SeededHash.Of(key) & _mask;
        while (_keys[slot] != 0)
        {
            if (_keys[slot] == key)
                return false;
            slot = (slot + 1) & _mask;
        }
        (_keys[slot], _merges[slot]) = (key, merge);
        return true;
    }

    private void Grow()
    {
        var (keys, merges) = (_keys, _merges);
        (_keys, _merges, _mask) = (new ulong[keys.Length * 2], new ulong[keys.Length * 2], (keys.Length * 2) - 1);
        for (var i = 0; i < keys.Length; i++)
        {
            if (keys[i] != 0)
                Insert(keys[i], merges[i]);
        }
    }
}

// Byte string to id, for whole pieces: an open-addressing table over a ByteStore. Immutable after building; lookups from any
// thread. Invariant: at most half full, so a miss ends after a few probes.
using System.Numerics;

namespace Inference.Runtime.Tokenization.Bpe;

internal sealed class PieceTable
{
    private readonly ByteStore _store;
    private readonly uint[] _hashes;
    private readonly int[] _idsPlusOne; // 0: free
    private readonly int _mask;

    /// <summary>Enters all ids whose string is not empty. Of equal strings the first one found wins.</summary>
    public PieceTable(ByteStore store)
    {
        _store = store;
        var capacity = (int)BitOperations.RoundUpToPowerOf2((uint)Math.Max(16, store.Count * 2));
        _hashes = new uint[capacity];
        _idsPlusOne = new int[capacity];
        _mask = capacity - 1;
        for (var id = 0; id < store.Count; id++)
        {
            if (store[id].Length == 0)
                continue;
            LongestPiece = Math.Max(LongestPiece, store[id].Length);
            Add(id);
        }
    }

    /// <summary>Length in bytes of the longest entry.</summary>
    public int LongestPiece { get; }

    /// <summary>The id of this byte string, or -1.</summary>
    public int Find(ReadOnlySpan<byte> piece)
    {
        if (piece.Length > LongestPiece)
            return -1;
        var hash = SeededHash.Of(piece);
        for (var slot = (int)hash & _mask; ; slot = (slot + 1) & _mask)
        {
            var id = _idsPlusOne[slot] - 1;
            if (id < 0)
                return -1;
            if (_hashes[slot] == hash && _store[id].SequenceEqual(piece))
                return id;
        }
    }

    private void Add(int id)
    {
        var hash = SeededHash.Of(_store[id]);
        var slot = (int)hash & _mask;
        while (_idsPlusOne[slot] != 0)
        {
            if (_hashes[slot] == hash && _store[_idsPlusOne[slot] - 1].SequenceEqual(_store[id]))
                return;
            slot = (slot + 1) & _mask;
        }
        _hashes[slot] = hash;
        _idsPlusOne[slot] = id + 1;
    }
}

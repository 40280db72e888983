// Byte-pair merging of one piece: always the merge of lowest rank, of equal ranks the leftmost, until none is left.
//
// Short pieces scan for the lowest rank (a few dozen symbols at most); longer ones keep the candidates in a heap, so that a
// megabyte of one letter costs n log n. A piece that is an entry of the vocabulary and would merge into exactly that entry
// is looked up whole. It never decides where pieces begin, holds no state between calls and no cache.
// Invariant: the ids say the piece again, byte by byte.
using System.Buffers;
using System.Runtime.CompilerServices;

namespace Inference.Runtime.Tokenization.Bpe;

/// <summary>Turns pieces into ids. Immutable once built; safe from any thread.</summary>
internal sealed class BytePairEncoder
{
    private const int ScanLimit = 40; // symbols; beyond, scanning costs more than the heap

    private readonly PieceTable _pieces;
    private readonly MergeTable _merges;
    private readonly SymbolAlphabet _alphabet;
    private readonly bool[] _whole;

    /// <param name="pieces">All vocabulary entries by the bytes they match.</param>
    /// <param name="merges">The merges.</param>
    /// <param name="alphabet">How a piece falls into first symbols.</param>
    /// <param name="wholeBeforeMerges"><c>ignore_merges</c>: an entry equal to the piece is taken even if no merge makes it.</param>
    /// <param name="neverWhole">Ids that text must never become as a whole piece: the added tokens.</param>
    /// <param name="store">The strings behind <paramref name="pieces"/>.</param>
    public BytePairEncoder(
        PieceTable pieces, MergeTable merges, SymbolAlphabet alphabet, bool wholeBeforeMerges, IReadOnlySet<int> neverWhole, ByteStore store)
    {
        (_pieces, _merges, _alphabet) = (pieces, merges, alphabet);
        _whole = new bool[store.Count];
        using var sink = new TokenSink(64, withStarts: false);
        for (var id = 0; id < store.Count; id++)
        {
            if (store[id].Length != 0 && !neverWhole.Contains(id))
                _whole[id] = wholeBeforeMerges || MergesIntoItself(id, store[id], sink);
        }
    }

    /// <summary>Appends the ids of one piece. Starts are offsets into <paramref name="text"/>.</summary>
    public void Encode(ReadOnlySpan<byte> text, int start, int end, TokenSink sink)
    {
        var piece = text[start..end];
        var id = _pieces.Find(piece);
        if (id >= 0 && _whole[id])
            sink.Add(id, start);
        else
            Merge(piece, start, sink);
    }

    private bool MergesIntoItself(int id, ReadOnlySpan<byte> piece, TokenSink sink)
    {
        sink.Clear();
        Merge(piece, 0, sink);
        return sink.Count == 1 && sink.Ids[0] == id;
    }

    private void Merge(ReadOnlySpan<byte> piece, int start, TokenSink sink)
    {
        if (_alphabet.MostSymbols(piece) <= ScanLimit)
            MergeByScan(piece, start, sink);
        else
            MergeByHeap(piece, start, sink);
    }

    [SkipLocalsInit]
    private void MergeByScan(ReadOnlySpan<byte> piece, int start, TokenSink sink)
    {
        Span<int> ids = stackalloc int[ScanLimit];
        Span<int> starts = stackalloc int[ScanLimit];
        Span<ulong> merges = stackalloc ulong[ScanLimit]; // merges[i]: of symbols i and i + 1
        var count = _alphabet.Split(piece, ids, starts);
        for (var i = 0; i + 1 < count; i++)
            merges[i] = _merges.Find(ids[i], ids[i + 1]);
        while (count > 1)
        {
            var at = IndexOfLowest(merges[..(count - 1)]);
            if (at < 0)
                break;
            ids[at] = (int)(uint)merges[at];
            count--;
            ids[(at + 2)..(count + 1)].CopyTo(ids[(at + 1)..]);
            starts[(at + 2)..(count + 1)].CopyTo(starts[(at + 1)..]);
            if (at + 1 < count)
                merges[(at + 1)..count].CopyTo(merges[at..]);
            if (at > 0)
                merges[at - 1] = _merges.Find(ids[at - 1], ids[at]);
            if (at + 1 < count)
                merges[at] = _merges.Find(ids[at], ids[at + 1]);
        }
        for (var i = 0; i < count; i++)
            sink.Add(ids[i], start + starts[i]);
    }

    private static int IndexOfLowest(ReadOnlySpan<ulong> merges)
    {
        var (lowest, at) = (MergeTable.None, -1);
        for (var i = 0; i < merges.Length; i++)
        {
            if (merges[i] < lowest)
                (lowest, at) = (merges[i], i);
        }
        return at;
    }

    private void MergeByHeap(ReadOnlySpan<byte> piece, int start, TokenSink sink)
    {
        var most = _alphabet.MostSymbols(piece);
        var pool = ArrayPool<int>.Shared;
        var (ids, starts, next, previous) = (pool.Rent(most), pool.Rent(most), pool.Rent(most), pool.Rent(most));
        var merges = ArrayPool<ulong>.Shared.Rent(most);
        var heap = new MergeHeap(most);
        try
        {
            var count = _alphabet.Split(piece, ids, starts);
            for (var i = 0; i < count; i++)
            {
                (previous[i], next[i]) = (i - 1, i + 1);
                merges[i] = i + 1 < count ? _merges.Find(ids[i], ids[i + 1]) : MergeTable.None;
                if (merges[i] != MergeTable.None)
                    heap.Append(merges[i], i);
            }
            heap.Order();
            while (heap.TryPop(out var rank, out var at))
            {
                // An entry is stale when its symbol was swallowed or has another neighbour by now.
                if (merges[at] == MergeTable.None || (uint)(merges[at] >> 32) != rank)
                    continue;
                ids[at] = (int)(uint)merges[at];
                var swallowed = next[at];
                merges[swallowed] = MergeTable.None;
                next[at] = next[swallowed];
                if (next[at] < count)
                    previous[next[at]] = at;
                merges[at] = next[at] < count ? _merges.Find(ids[at], ids[next[at]]) : MergeTable.None;
                if (merges[at] != MergeTable.None)
                    heap.Push(merges[at], at);
                if (previous[at] is >= 0 and var left)
                {
                    merges[left] = _merges.Find(ids[left], ids[at]);
                    if (merges[left] != MergeTable.None)
                        heap.Push(merges[left], left);
                }
            }
            for (var i = 0; i < count; i = next[i])
                sink.Add(ids[i], start + starts[i]);
        }
        finally
        {
            heap.Dispose();
            ArrayPool<ulong>.Shared.Return(merges);
            pool.Return(ids);
            pool.Return(starts);
            pool.Return(next);
            pool.Return(previous);
        }
    }
}

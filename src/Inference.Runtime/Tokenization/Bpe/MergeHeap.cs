// Candidates of one long piece, lowest rank first, of equal ranks the leftmost: a heap of four children per node over packed
// (rank << 32) | position. Owned by one call; its array is pooled.
using System.Buffers;

namespace Inference.Runtime.Tokenization.Bpe;

internal struct MergeHeap(int expected) : IDisposable
{
    private ulong[] _items = ArrayPool<ulong>.Shared.Rent(Math.Max(16, expected));
    private int _count;

    /// <summary>Adds without keeping the order; call <see cref="Order"/> before the first pop.</summary>
    public void Append(ulong merge, int position)
    {
        if (_count == _items.Length)
            Grow();
        _items[_count++] = Pack(merge, position);
    }

    public readonly void Order()
    {
        for (var i = (_count - 2) >> 2; i >= 0; i--)
            SiftDown(i, _items[i]);
    }

    public void Push(ulong merge, int position)
    {
        Append(merge, position);
        var item = _items[_count - 1];
        var at = _count - 1;
        while (at > 0)
        {
            var parent = (at - 1) >> 2;
            if (_items[parent] <= item)
                break;
            _items[at] = _items[parent];
            at = parent;
        }
        _items[at] = item;
    }

    public bool TryPop(out uint rank, out int position)
    {
        if (_count == 0)
        {
            (rank, position) = (0, 0);
            return false;
        }
        var top = _items[0];
        (rank, position) = ((uint)(top >> 32), (int)(uint)top);
        if (--_count > 0)
            SiftDown(0, _items[_count]);
        return true;
    }

    public void Dispose()
    {
        ArrayPool<ulong>.Shared.Return(_items);
        (_items, _count) = ([], 0);
    }

    private static ulong Pack(ulong merge, int position) => (merge & 0xFFFF_FFFF_0000_0000UL) | (uint)position;

    private readonly void SiftDown(int at, ulong item)
    {
        var items = _items;
        while (true)
        {
            var child = (at << 2) + 1;
            if (child >= _count)
                break;
            var end = Math.Min(child + 4, _count);
            var smallest = child;
            for (var i = child + 1; i < end; i++)
            {
                if (items[i] < items[smallest])
                    smallest = i;
            }
            if (items[smallest] >= item)
                break;
            items[at] = items[smallest];
            at = smallest;
        }
        items[at] = item;
    }

    private void Grow()
    {
        var larger = ArrayPool<ulong>.Shared.Rent(_count * 2);
        _items.AsSpan(0, _count).CopyTo(larger);
        ArrayPool<ulong>.Shared.Return(_items);
        _items = larger;
    }
}

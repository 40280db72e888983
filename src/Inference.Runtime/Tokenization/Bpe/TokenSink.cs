// Collects the ids of one encoding, and where asked for, where each token starts. Owned by one call; its arrays are pooled.
using System.Buffers;

namespace Inference.Runtime.Tokenization.Bpe;

internal sealed class TokenSink : IDisposable
{
    private int[] _ids;
    private int[]? _starts;

    public TokenSink(int expected, bool withStarts)
    {
        _ids = ArrayPool<int>.Shared.Rent(Math.Max(16, expected));
        if (withStarts)
            _starts = ArrayPool<int>.Shared.Rent(_ids.Length);
    }

    public int Count { get; private set; }

    public ReadOnlySpan<int> Ids => _ids.AsSpan(0, Count);

    /// <summary>Start of each token in the piece's text, as given to <see cref="Add"/>; empty unless asked for.</summary>
    public ReadOnlySpan<int> Starts => _starts is null ? default : _starts.AsSpan(0, Count);

    public void Add(int id, int start)
    {
        if (Count == _ids.Length)
            Grow();
        _ids[Count] = id;
        if (_starts is not null)
            _starts[Count] = start;
        Count++;
    }

    public void Clear() => Count = 0;

    public void Dispose()
    {
        ArrayPool<int>.Shared.Return(_ids);
        if (_starts is not null)
            ArrayPool<int>.Shared.Return(_starts);
        (_ids, _starts, Count) = ([], null, 0);
    }

    private void Grow()
    {
        _ids = Larger(_ids, Count * 2);
        if (_starts is not null)
            _starts = Larger(_starts, _ids.Length);
    }

    private int[] Larger(int[] old, int size)
    {
        var larger = ArrayPool<int>.Shared.Rent(size);
        old.AsSpan(0, Count).CopyTo(larger);
        ArrayPool<int>.Shared.Return(old);
        return larger;
    }
}

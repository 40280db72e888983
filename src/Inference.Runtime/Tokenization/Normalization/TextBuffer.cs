// Text on its way from the prompt to the splitter, and where each of its bytes comes from.
//
// Origins exist only when someone asked for offsets (or trust must be followed through a normaliser): origin[i] is the byte
// offset, in the prompt, of the character that byte i stems from; the array never decreases. Owned by one call; pooled.
using System.Buffers;

namespace Inference.Runtime.Tokenization.Normalization;

/// <summary>A text and its origins; empty <see cref="Origins"/> when they are not followed.</summary>
internal readonly ref struct TracedText(ReadOnlySpan<byte> text, ReadOnlySpan<int> origins)
{
    public ReadOnlySpan<byte> Text { get; } = text;

    public ReadOnlySpan<int> Origins { get; } = origins;

    public bool IsTraced => !Origins.IsEmpty;

    public TracedText Slice(int start, int end) =>
        new(Text[start..end], IsTraced ? Origins[start..end] : default);
}

/// <summary>A growing text that a transform writes.</summary>
internal sealed class TextBuffer : IDisposable
{
    private byte[] _bytes = [];
    private int[] _origins = [];
    private int _count;
    private bool _traced;

    public TracedText Written => new(_bytes.AsSpan(0, _count), _traced ? _origins.AsSpan(0, _count) : default);

    /// <summary>Empties it for a new text of about <paramref name="expected"/> bytes.</summary>
    public void Start(int expected, bool traced)
    {
        _count = 0;
        _traced = traced;
        Reserve(expected);
    }

    /// <summary>Appends unchanged text.</summary>
    public void Append(TracedText text)
    {
        Reserve(text.Text.Length);
        text.Text.CopyTo(_bytes.AsSpan(_count));
        if (_traced)
            text.Origins.CopyTo(_origins.AsSpan(_count));
        _count += text.Text.Length;
    }

    /// <summary>Appends new text that stems from the character at <paramref name="origin"/>.</summary>
    public void Append(ReadOnlySpan<byte> text, int origin)
    {
        Reserve(text.Length);
        text.CopyTo(_bytes.AsSpan(_count));
        if (_traced)
            _origins.AsSpan(_count, text.Length).Fill(origin);
        _count += text.Length;
    }

    /// <summary>Appends one character that stems from the character at <paramref name="origin"/>.</summary>
    public void Append(int codePoint, int origin)
    {
        Span<byte> encoded = stackalloc byte[4];
        Append(encoded[..new System.Text.Rune(codePoint).EncodeToUtf8(encoded)], origin);
    }

    public void Dispose()
    {
        if (_bytes.Length > 0)
            ArrayPool<byte>.Shared.Return(_bytes);
        if (_origins.Length > 0)
            ArrayPool<int>.Shared.Return(_origins);
        (_bytes, _origins, _count) = ([], [], 0);
    }

    private void Reserve(int more)
    {
        var needed = checked(_count + more);
        if (needed > _bytes.Length)
            _bytes = Larger(_bytes, needed);
        if (_traced && needed > _origins.Length)
            _origins = Larger(_origins, needed);
    }

    private T[] Larger<T>(T[] old, int needed)
    {
        var larger = ArrayPool<T>.Shared.Rent(Math.Max(needed, (int)Math.Min((long)old.Length * 2, Array.MaxLength)));
        old.AsSpan(0, Math.Min(_count, old.Length)).CopyTo(larger);
        if (old.Length > 0)
            ArrayPool<T>.Shared.Return(old);
        return larger;
    }
}

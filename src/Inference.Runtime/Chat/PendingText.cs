namespace Inference.Runtime.Chat;

/// <summary>
/// Text that a streaming parser has received and not yet consumed. Remembers how far it was searched, so a tag that
/// comes one character at a time costs no more than one that comes whole.
/// </summary>
internal sealed class PendingText
{
    private char[] _buffer = new char[256];
    private int _start;
    private int _end;

    // Characters after _start that hold no beginning of a stop any more; used by FindHeadEnd only.
    private int _searched;

    /// <summary>What is pending; valid until the next <see cref="Append"/>.</summary>
    public ReadOnlySpan<char> Text => _buffer.AsSpan(_start, _end - _start);

    /// <summary>Characters consumed since the beginning.</summary>
    public long Position { get; private set; }

    public void Append(ReadOnlySpan<char> delta)
    {
        if (_buffer.Length - _end < delta.Length)
            MakeRoom(delta.Length);
        delta.CopyTo(_buffer.AsSpan(_end));
        _end += delta.Length;
    }

    public ReadOnlySpan<char> Take(int length)
    {
        var taken = Text[..length];
        _start += length;
        Position += length;
        _searched = 0;
        return taken;
    }

    /// <summary>How much text is settled: up to a whole stop, or up to what may become one.</summary>
    /// <param name="final">No text will follow, so nothing is held back.</param>
    /// <returns>True when a stop stands after <paramref name="length"/> characters.</returns>
    public bool FindStop(StopSet stops, bool final, out int length, out string stop)
    {
        var text = Text;
        int found = stops.IndexIn(text, out stop);
        int held = final ? text.Length : stops.UnfinishedStart(text);
        // An unfinished stop that began earlier may still turn out to contain the one that was found.
        if (found >= 0 && found < held)
        {
            length = found;
            return true;
        }
        if (!final && held == text.Length && held > 0 && char.IsHighSurrogate(text[held - 1]))
            held--;
        length = held;
        return false;
    }

    /// <summary>Looks for the stop that ends an opening tag; nothing is settled before it is found.</summary>
    public bool FindHeadEnd(StopSet stops, out int length, out string stop)
    {
        var text = Text;
        int found = stops.IndexIn(text[_searched..], out stop);
        length = found < 0 ? text.Length : _searched + found;
        if (found < 0)
            _searched = Math.Max(_searched, text.Length - stops.LengthMax + 1);
        return found >= 0;
    }

    // Moves the pending text to the front, into a larger buffer where it is needed.
    private void MakeRoom(int more)
    {
        int length = _end - _start;
        int needed = checked(length + more);
        var target = needed <= _buffer.Length / 2 ? _buffer : new char[Math.Max(_buffer.Length, checked(needed * 2))];
        Text.CopyTo(target);
        _buffer = target;
        _start = 0;
        _end = length;
    }
}

// Token by token to text that is safe to send.
//
// It never emits half a character, never emits what may yet be (part of) a stop string, and never looks at more than the new
// token. One per stream, owned by the thread that reads the stream; not thread-safe. Allocates nothing per token in the long
// run: the text it returns lies in its own buffer until the next call.
// Invariant: all returned texts in a row are the whole decoding, up to the stop. Only in byte-fallback families, where a run of
// byte tokens is invalid as a whole, whole decoding also blots out valid characters of the run that were sent long before.
using System.Buffers;
using System.Text;

namespace Inference.Runtime.Tokenization;

/// <summary>How a stream of tokens is to be read.</summary>
/// <param name="SkipSpecial">Leave out tokens flagged special.</param>
/// <param name="Stops">Stop strings, or null.</param>
/// <param name="IncludeStop">Whether the stop string itself is emitted.</param>
/// <param name="ContinuesText">The stream continues a text: the space that some families drop at the start of a text is kept.</param>
public sealed record DetokenizerOptions(
    bool SkipSpecial = false, StopMatcher? Stops = null, bool IncludeStop = false, bool ContinuesText = false);

/// <summary>Turns a stream of token ids into text, one id at a time. Create it with <see cref="ModelTokenizer.CreateDetokenizer"/>.</summary>
public sealed class IncrementalDetokenizer
{
    private const int LongestCharacter = 4;
    private const char Replacement = '\uFFFD';

    private readonly DecodingTable _table;
    private readonly DetokenizerOptions _options;
    private readonly byte[] _pending = new byte[LongestCharacter]; // the bytes of a character not yet complete
    private int _pendingCount;
    private bool _pendingFromByteTokens;
    private bool _dropSpace;

    // _text: [0, _returned) what the last call returned, [_returned, _written) held back; the automaton has read all of it.
    private char[] _text = new char[64];
    private int _returned;
    private int _written;
    private int _state;
    private int _lastId = -1;

    internal IncrementalDetokenizer(DecodingTable table, DetokenizerOptions options)
    {
        (_table, _options) = (table, options);
        _dropSpace = table.DropsFirstSpace && !options.ContinuesText;
    }

    /// <summary>Whether a stop string was found; from then on nothing is emitted.</summary>
    public bool IsStopped => StopIndex >= 0;

    /// <summary>Index of the stop string that was found, or -1.</summary>
    public int StopIndex { get; private set; } = -1;

    /// <summary>The stop string that was found, or null.</summary>
    public string? StopString => IsStopped ? _options.Stops!.Stops[StopIndex] : null;

    /// <summary>The bytes the last token stands for: possibly a part of a character, and empty for a token that is not shown.</summary>
    public ReadOnlySpan<byte> LastTokenBytes => _table.Shows(_lastId, _options.SkipSpecial) ? _table.Bytes[_lastId] : default;

    /// <summary>Bytes of a character that is not complete yet.</summary>
    public ReadOnlySpan<byte> PendingBytes => _pending.AsSpan(0, _pendingCount);

    /// <summary>Whether all that the tokens so far say has been returned.</summary>
    public bool IsDrained => _pendingCount == 0 && _written == _returned;

    /// <summary>Reads the next token.</summary>
    /// <returns>The text that can be sent now, possibly empty; valid until the next call.</returns>
    public ReadOnlySpan<char> Append(int id)
    {
        _lastId = id;
        var held = MoveHeldToFront();
        if (IsStopped || !_table.Shows(id, _options.SkipSpecial))
            return default;
        var isByte = _table.ByteTokens is not null && _table.ByteTokens[id];
        if (_table.ByteTokens is not null && !isByte)
            EndCharacter(); // another token ends a run of byte tokens
        _pendingFromByteTokens = isByte;
        Decode(_table.Bytes[id]);
        return Emit(held, isLast: false);
    }

    /// <summary>Ends the stream: what was held back, and U+FFFD for a character that never got complete.</summary>
    /// <returns>The rest of the text; valid until the next call.</returns>
    public ReadOnlySpan<char> Flush()
    {
        var held = MoveHeldToFront();
        if (IsStopped)
            return default;
        EndCharacter();
        return Emit(held, isLast: true);
    }

    // Whole characters go to _text, the bytes of an incomplete one stay pending.
    private void Decode(ReadOnlySpan<byte> bytes)
    {
        while (_pendingCount > 0 && !bytes.IsEmpty)
        {
            _pending[_pendingCount++] = bytes[0];
            bytes = bytes[1..];
            DecodePending();
        }
        while (!bytes.IsEmpty)
        {
            var ascii = bytes.IndexOfAnyExceptInRange((byte)0, (byte)0x7F);
            if (ascii != 0)
            {
                WriteAscii(ascii < 0 ? bytes : bytes[..ascii]);
                bytes = ascii < 0 ? default : bytes[ascii..];
                continue;
            }
            var status = Rune.DecodeFromUtf8(bytes, out var rune, out var length);
            if (status == OperationStatus.NeedMoreData)
            {
                bytes.CopyTo(_pending);
                _pendingCount = bytes.Length;
                return;
            }
            Write(status, rune, length);
            bytes = bytes[length..];
        }
    }

    private void DecodePending()
    {
        while (_pendingCount > 0)
        {
            var status = Rune.DecodeFromUtf8(PendingBytes, out var rune, out var length);
            if (status == OperationStatus.NeedMoreData)
                return;
            Write(status, rune, length);
            PendingBytes[length..].CopyTo(_pending);
            _pendingCount -= length;
        }
    }

    // An incomplete character that cannot go on is one ill-formed part, or one per byte if it came from byte tokens.
    private void EndCharacter()
    {
        if (_pendingCount == 0)
            return;
        Write(OperationStatus.InvalidData, default, _pendingCount);
        _pendingCount = 0;
    }

    private void Write(OperationStatus status, Rune rune, int length)
    {
        Reserve(LongestCharacter);
        if (status == OperationStatus.Done)
        {
            if (_dropSpace && rune.Value == ' ')
            {
                _dropSpace = false;
                return;
            }
            _written += rune.EncodeToUtf16(_text.AsSpan(_written));
        }
        else
        {
            for (var i = _pendingFromByteTokens ? length : 1; i > 0; i--)
                _text[_written++] = Replacement;
        }
        _dropSpace = false;
    }

    private void WriteAscii(ReadOnlySpan<byte> ascii)
    {
        if (_dropSpace && ascii[0] == (byte)' ')
            ascii = ascii[1..];
        _dropSpace = false;
        Reserve(ascii.Length);
        Encoding.ASCII.GetChars(ascii, _text.AsSpan(_written));
        _written += ascii.Length;
    }

    private void Reserve(int more)
    {
        if (_written + more > _text.Length)
            Array.Resize(ref _text, Math.Max(_written + more, _text.Length * 2));
    }

    private int MoveHeldToFront()
    {
        _text.AsSpan(_returned, _written - _returned).CopyTo(_text);
        _written -= _returned;
        _returned = 0;
        return _written;
    }

    // Reads what is new in _text, [read, _written), and returns all but the end that may begin a stop string.
    private ReadOnlySpan<char> Emit(int read, bool isLast)
    {
        if (_options.Stops is { } stops)
        {
            if (stops.TryRead(ref _state, _text.AsSpan(read, _written - read), out var count, out var stop))
            {
                StopIndex = stop;
                var end = read + count;
                _returned = _options.IncludeStop ? end : end - stops.Stops[stop].Length;
                _written = _returned;
                return _text.AsSpan(0, _returned);
            }
            _returned = isLast || SeededBug.Is(14) ? _written : _written - stops.Depth(_state);
        }
        else
        {
            _returned = _written;
        }
        return _text.AsSpan(0, _returned);
    }
}

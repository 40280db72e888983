// Unicode normalisation form C, with the tables and the origins of the reference library (see NfcData).
//
// Text of stable characters only is passed on untouched, which is nearly all text. Otherwise the part from the last stable
// character before the first other one is decomposed, ordered and composed. Own code because the server runs without ICU
// (InvariantGlobalization), where string.Normalize does nothing.
// Invariant: the result is NFC; origins never decrease.
using System.Buffers;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.Normalization;

internal sealed class NfcTransform : TextTransform
{
    // The first character that can be unstable is U+0300: CC 80 in UTF-8. Everything below is passed by a vectorised search.
    private const byte FirstUnstableLead = 0xCC;

    public override bool TryApply(TracedText source, bool atPromptStart, TextBuffer target)
    {
        var start = StartOfUnstablePart(source.Text);
        if (start < 0)
            return false;
        target.Start(source.Text.Length, source.IsTraced);
        target.Append(source.Slice(0, start));
        using var composer = new NfcComposer(source.Slice(start, source.Text.Length), target);
        composer.Run();
        return true;
    }

    private static int StartOfUnstablePart(ReadOnlySpan<byte> text)
    {
        var at = 0;
        while (true)
        {
            var skip = text[at..].IndexOfAnyInRange(FirstUnstableLead, (byte)0xF4);
            if (skip < 0)
                return -1;
            at += skip;
            if (NfcTables.IsUnstable(CodePoints.Decode(text, at, out var length)))
                return at == 0 ? 0 : CodePoints.StartOfCharacterBefore(text, at);
            at += length;
        }
    }
}

/// <summary>One normalisation. Characters carry the change they are, as the reference counts them: 0 replaces, 1 inserts, -n swallows n more.</summary>
internal ref struct NfcComposer(TracedText source, TextBuffer target)
{
    private readonly TracedText _source = source;
    private readonly TextBuffer _target = target;
    private (int CodePoint, int Change)[] _marks = ArrayPool<(int, int)>.Shared.Rent(16); // decomposed marks, not yet in order
    private int _markCount;
    private (int CodePoint, int Change)[] _held = ArrayPool<(int, int)>.Shared.Rent(16); // marks that did not compose
    private int _heldCount;
    private (int CodePoint, int Change) _starter;
    private bool _hasStarter;
    private int _lastClass = -1; // of the last held mark
    private int _oldAt; // how much of the source the written characters account for

    public void Run()
    {
        for (var at = 0; at < _source.Text.Length;)
        {
            var codePoint = CodePoints.Decode(_source.Text, at, out var length);
            at += length;
            var first = true;
            Decompose(codePoint, ref first);
        }
        FlushMarks();
        Finish();
    }

    public void Dispose()
    {
        ArrayPool<(int, int)>.Shared.Return(_marks);
        ArrayPool<(int, int)>.Shared.Return(_held);
        (_marks, _held) = ([], []);
    }

    // At most four steps deep in any version of Unicode.
    private void Decompose(int codePoint, ref bool first)
    {
        if (NfcTables.TryDecompose(codePoint, out var parts))
        {
            Decompose(parts.First, ref first);
            if (parts.Second != 0)
                Decompose(parts.Second, ref first);
            return;
        }
        var item = (codePoint, first ? 0 : 1);
        first = false;
        if (NfcTables.CombiningClass(codePoint) != 0)
        {
            Add(ref _marks, ref _markCount, item);
            return;
        }
        FlushMarks();
        Compose(item);
    }

    // Canonical order: by class, stable.
    private void FlushMarks()
    {
        if (_markCount > 1)
            SortStable(_marks.AsSpan(0, _markCount));
        for (var i = 0; i < _markCount; i++)
            Compose(_marks[i]);
        _markCount = 0;
    }

    private static void SortStable(Span<(int CodePoint, int Change)> marks)
    {
        var keys = new long[marks.Length];
        for (var i = 0; i < marks.Length; i++)
            keys[i] = ((long)NfcTables.CombiningClass(marks[i].CodePoint) << 32) | (uint)i;
        var copy = marks.ToArray();
        Array.Sort(keys);
        for (var i = 0; i < marks.Length; i++)
            marks[i] = copy[(int)(uint)keys[i]];
    }

    private void Compose((int CodePoint, int Change) item)
    {
        int combining = NfcTables.CombiningClass(item.CodePoint);
        if (!_hasStarter)
        {
            if (combining != 0)
                Write(item);
            else
                (_starter, _hasStarter) = (item, true);
            return;
        }
        var blocked = _lastClass >= combining;
        if (!blocked && NfcTables.Compose(_starter.CodePoint, item.CodePoint) is >= 0 and var composed)
        {
            _starter = (composed, _starter.Change + item.Change - 1);
            return;
        }
        if (combining == 0)
        {
            Finish();
            (_starter, _hasStarter) = (item, true);
            return;
        }
        Add(ref _held, ref _heldCount, item);
        _lastClass = combining;
    }

    private void Finish()
    {
        if (_hasStarter)
            Write(_starter);
        for (var i = 0; i < _heldCount; i++)
            Write(_held[i]);
        (_hasStarter, _heldCount, _lastClass) = (false, 0, -1);
    }

    private void Write((int CodePoint, int Change) item)
    {
        var origin = 0;
        if (_source.IsTraced)
        {
            var index = item.Change > 0 ? _oldAt - 1 : _oldAt;
            origin = _source.Origins[Math.Clamp(index, 0, _source.Origins.Length - 1)];
            for (var swallow = item.Change > 0 ? 0 : 1 - item.Change; swallow > 0 && _oldAt < _source.Text.Length; swallow--)
            {
                CodePoints.Decode(_source.Text, _oldAt, out var length);
                _oldAt += length;
            }
        }
        _target.Append(item.CodePoint, origin);
    }

    private static void Add(ref (int, int)[] list, ref int count, (int, int) item)
    {
        if (count == list.Length)
        {
            var larger = ArrayPool<(int, int)>.Shared.Rent(count * 2);
            list.AsSpan(0, count).CopyTo(larger);
            ArrayPool<(int, int)>.Shared.Return(list);
            list = larger;
        }
        list[count++] = item;
    }
}

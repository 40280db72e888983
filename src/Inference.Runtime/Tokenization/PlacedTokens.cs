// Tokens with the places they come from, and those places counted in code points or UTF-16 units of the text as given.
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization;

/// <summary>Whether offsets leave out the spaces that tokens begin or end with (<c>trim_offsets</c> of the ByteLevel post-processor).</summary>
/// <param name="Trims">Whether they do.</param>
/// <param name="AddsPrefixSpace">Its <c>add_prefix_space</c>: a single space at the start is taken to be added, and kept.</param>
internal readonly record struct OffsetTrimming(bool Trims, bool AddsPrefixSpace);

/// <summary>The result of one encoding with places. Pooled; owned by the caller.</summary>
internal sealed class PlacedTokens(int textLength) : IDisposable
{
    public TokenSink Sink { get; } = new(textLength / 3, withStarts: true);

    public List<TokenPlace> Places { get; } = [];

    public ReadOnlySpan<int> Ids => Sink.Ids;

    public void Dispose() => Sink.Dispose();

    /// <summary>In code points of the text, trimmed as the family does.</summary>
    public List<TokenOffset> InCodePoints(ReadOnlySpan<char> text, OffsetTrimming trimming)
    {
        var result = new List<TokenOffset>(Places.Count);
        var cursor = new Cursor(text);
        for (var i = 0; i < Places.Count; i++)
        {
            var place = Places[i];
            var start = place.First < 0 ? 0 : cursor.CodePointAt(place.First);
            var end = place.First < 0 ? 0 : cursor.CodePointAt(place.Last) + 1;
            if (trimming.Trims)
                (start, end) = Trim(place, start, end, i == 0, trimming.AddsPrefixSpace);
            result.Add(new TokenOffset(Ids[i], start, end));
        }
        return result;
    }

    /// <summary>In UTF-16 units of the text, untrimmed.</summary>
    public (int Start, int End)[] InUnits(ReadOnlySpan<char> text)
    {
        var result = new (int, int)[Places.Count];
        var cursor = new Cursor(text);
        for (var i = 0; i < result.Length; i++)
        {
            if (Places[i].First >= 0)
                result[i] = (cursor.UnitAt(Places[i].First), cursor.UnitBehind(Places[i].Last));
        }
        return result;
    }

    private static (int Start, int End) Trim(TokenPlace place, int start, int end, bool isFirst, bool addsPrefixSpace)
    {
        var before = place.SpacesBefore;
        if ((isFirst || start == 0) && addsPrefixSpace && before == 1)
            before = 0;
        if (before > 0)
            start = Math.Min(start + before, end);
        if (place.SpacesBehind > 0 && end >= place.SpacesBehind)
            end = Math.Max(end - place.SpacesBehind, start);
        return (start, end);
    }

    /// <summary>Walks the text along with places that mostly grow.</summary>
    private ref struct Cursor(ReadOnlySpan<char> text)
    {
        private readonly ReadOnlySpan<char> _text = text;
        private int _byte;
        private int _codePoint;
        private int _unit;

        public int CodePointAt(int place)
        {
            Seek(place);
            return _codePoint;
        }

        public int UnitAt(int place)
        {
            Seek(place);
            return _unit;
        }

        public int UnitBehind(int place)
        {
            Seek(place);
            return _unit + UnitsAt(_unit);
        }

        private void Seek(int place)
        {
            while (_byte > place)
            {
                _unit -= _unit > 1 && char.IsSurrogatePair(_text[_unit - 2], _text[_unit - 1]) ? 2 : 1;
                _codePoint--;
                _byte -= BytesAt(_unit);
            }
            while (_byte < place)
            {
                _byte += BytesAt(_unit);
                _unit += UnitsAt(_unit);
                _codePoint++;
            }
        }

        private readonly int UnitsAt(int unit) =>
            unit + 1 < _text.Length && char.IsSurrogatePair(_text[unit], _text[unit + 1]) ? 2 : 1;

        private readonly int BytesAt(int unit) =>
            UnitsAt(unit) == 2 ? 4 : _text[unit] < 0x80 ? 1 : _text[unit] < 0x800 ? 2 : 3;
    }
}

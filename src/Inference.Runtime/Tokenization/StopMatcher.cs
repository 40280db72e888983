// Finds the first of several stop strings in a text that arrives in parts, and says how much of its end may yet become one.
//
// An Aho-Corasick automaton over UTF-16 units: one step per unit, whatever the stop strings. Immutable, so that one matcher
// serves all choices of a request; the state is an int that the reader keeps.
// Invariant: a match is reported at the unit that completes it; of those completed at once the longest.
using System.Buffers;

namespace Inference.Runtime.Tokenization;

/// <summary>The stop strings of a request, ready for <see cref="IncrementalDetokenizer"/>.</summary>
public sealed class StopMatcher
{
    /// <summary>Longest total of all stop strings, in UTF-16 units; it bounds what a request can make the server build.</summary>
    public const int TotalLengthMax = 64 * 1024;

    private readonly Dictionary<(int State, char Unit), int> _next = [];
    private readonly List<int> _fallback = [0];
    private readonly List<int> _depth = [0];
    private readonly List<int> _stop = [-1]; // longest stop string that ends in this state
    private readonly SearchValues<char> _firstUnits;

    /// <summary>Prepares the stop strings.</summary>
    /// <exception cref="ArgumentException">One is empty or holds a lone surrogate, or they are too long together.</exception>
    public StopMatcher(IEnumerable<string> stops)
    {
        ArgumentNullException.ThrowIfNull(stops);
        Stops = [.. stops];
        long total = 0;
        for (var i = 0; i < Stops.Count; i++)
        {
            if (string.IsNullOrEmpty(Stops[i]))
                throw new ArgumentException($"stop string {i} is empty: give at least one character, or leave it out", nameof(stops));
            if (HasLoneSurrogate(Stops[i]))
                throw new ArgumentException($"stop string {i} holds half of a surrogate pair: give whole characters", nameof(stops));
            if ((total += Stops[i].Length) > TotalLengthMax)
                throw new ArgumentException($"the stop strings are longer than {TotalLengthMax} characters together: give fewer or shorter ones", nameof(stops));
            Add(i);
        }
        Link();
        _firstUnits = SearchValues.Create([.. Stops.Select(stop => stop[0])]);
    }

    /// <summary>The stop strings, in the order given.</summary>
    public IReadOnlyList<string> Stops { get; }

    /// <summary>Length of the longest end of the text read so far that begins a stop string.</summary>
    internal int Depth(int state) => _depth[state];

    /// <summary>Reads text up to the end of a stop string: true with the units read and its index; false when all of the text was read.</summary>
    internal bool TryRead(ref int state, ReadOnlySpan<char> text, out int count, out int stop)
    {
        stop = -1;
        for (count = 0; count < text.Length;)
        {
            if (state == 0)
            {
                var skip = text[count..].IndexOfAny(_firstUnits);
                if (skip < 0)
                    break;
                count += skip;
            }
            state = Next(state, text[count++]);
            stop = _stop[state];
            if (stop >= 0)
                return true;
        }
        return false;
    }

    private int Next(int state, char unit)
    {
        int next;
        while (!_next.TryGetValue((state, unit), out next) && state != 0)
            state = _fallback[state];
        return next;
    }

    private void Add(int stop)
    {
        var state = 0;
        foreach (var unit in Stops[stop])
        {
            if (!_next.TryGetValue((state, unit), out var next))
            {
                next = _depth.Count;
                _next.Add((state, unit), next);
                _depth.Add(_depth[state] + 1);
                _fallback.Add(0);
                _stop.Add(-1);
            }
            state = next;
        }
        if (_stop[state] < 0)
            _stop[state] = stop;
    }

    // States by depth: a state's fallback is shallower and thus linked before it.
    private void Link()
    {
        foreach (var ((state, unit), next) in _next.OrderBy(edge => _depth[edge.Value]))
        {
            if (state == 0)
                continue;
            var fallback = _fallback[state];
            int target;
            while (!_next.TryGetValue((fallback, unit), out target) && fallback != 0)
                fallback = _fallback[fallback];
            _fallback[next] = target;
            if (_stop[next] < 0)
                _stop[next] = _stop[target];
        }
    }

    private static bool HasLoneSurrogate(string text)
    {
        for (var i = 0; i < text.Length; i++)
        {
            if (!char.IsSurrogate(text[i]))
                continue;
            if (i + 1 == text.Length || !char.IsSurrogatePair(text[i], text[i + 1]))
                return true;
            i++;
        }
        return false;
    }
}

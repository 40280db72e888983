// Literal patterns, found leftmost and longest. Built once, immutable, safe from any thread.
//
// Nodes are numbered level by level, so the children of a node are neighbours and need no edge list: node n's children are
// [_firstChild[n], _firstChild[n + 1]), and a node's label is the byte that leads to it.
// Work per place is bounded by the longest pattern (AddedToken.ContentBytesMax), and places that start no pattern are skipped
// by a vectorised search for the first bytes.
using System.Buffers;

namespace Inference.Runtime.Tokenization.AddedTokens;

internal sealed class ByteTrie
{
    private readonly SearchValues<byte> _firstBytes;
    private readonly int[] _firstChild;
    private readonly byte[] _labels;
    private readonly int[] _values; // per node: index of the pattern that ends here, or -1

    /// <param name="patterns">None is empty; of equal patterns the first one counts.</param>
    public ByteTrie(IReadOnlyList<byte[]> patterns)
    {
        var order = Enumerable.Range(0, patterns.Count).ToArray();
        Array.Sort(order, (a, b) => patterns[a].AsSpan().SequenceCompareTo(patterns[b]) is not 0 and var sign ? sign : a.CompareTo(b));
        var nodes = new List<(int First, int Last, int Depth)> { (0, patterns.Count, 0) }; // the sorted patterns below each node
        List<int> firstChild = [], values = [];
        List<byte> labels = [0];
        for (var n = 0; n < nodes.Count; n++)
        {
            var (first, last, depth) = nodes[n];
            values.Add(first < last && patterns[order[first]].Length == depth ? order[first] : -1);
            while (first < last && patterns[order[first]].Length == depth)
                first++;
            firstChild.Add(nodes.Count);
            while (first < last)
            {
                var label = patterns[order[first]][depth];
                var end = first + 1;
                while (end < last && patterns[order[end]][depth] == label)
                    end++;
                nodes.Add((first, end, depth + 1));
                labels.Add(label);
                first = end;
            }
        }
        firstChild.Add(nodes.Count);
        (_firstChild, _labels, _values) = ([.. firstChild], [.. labels], [.. values]);
        _firstBytes = SearchValues.Create(_labels.AsSpan(_firstChild[0].._firstChild[1]));
    }

    /// <summary>The leftmost longest pattern in a text: its place, length and index; false when there is none.</summary>
    public bool TryFind(ReadOnlySpan<byte> text, out int start, out int length, out int pattern)
    {
        for (start = 0; start < text.Length; start++)
        {
            var skip = text[start..].IndexOfAny(_firstBytes);
            if (skip < 0)
                break;
            start += skip;
            if (TryMatch(text[start..], out length, out pattern))
                return true;
        }
        (length, pattern) = (0, -1);
        return false;
    }

    private bool TryMatch(ReadOnlySpan<byte> text, out int length, out int pattern)
    {
        (length, pattern) = (0, -1);
        var node = 0;
        for (var at = 0; at < text.Length; at++)
        {
            var child = _labels.AsSpan(_firstChild[node].._firstChild[node + 1]).IndexOf(text[at]);
            if (child < 0)
                break;
            node = _firstChild[node] + child;
            if (_values[node] >= 0)
                (length, pattern) = (at + 1, _values[node]);
        }
        return pattern >= 0;
    }
}

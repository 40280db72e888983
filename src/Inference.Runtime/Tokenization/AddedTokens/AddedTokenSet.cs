// Added tokens of one kind (normalised or not) and the search for them.
//
// The rules are the reference library's: leftmost longest; a match that the policy or single_word refuses still uses up its
// text; lstrip stops at the token before. On top: a match must lie inside one stretch of one policy.
using System.Text;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization.AddedTokens;

/// <summary>An immutable set of added tokens with the patterns they are matched by.</summary>
internal sealed class AddedTokenSet
{
    private readonly AddedToken[] _tokens;
    private readonly ByteTrie _trie;

    private AddedTokenSet(AddedToken[] tokens, ByteTrie trie) => (_tokens, _trie) = (tokens, trie);

    /// <summary>The set, or null when there is nothing to match. <paramref name="patternOf"/> gives the bytes a token is matched by.</summary>
    public static AddedTokenSet? Create(IEnumerable<AddedToken> tokens, Func<AddedToken, byte[]>? patternOf = null)
    {
        AddedToken[] all = [.. tokens];
        patternOf ??= token => Encoding.UTF8.GetBytes(token.Content);
        return all.Length == 0 ? null : new AddedTokenSet(all, new ByteTrie([.. all.Select(patternOf)]));
    }

    /// <summary>Starts a search; <paramref name="stretches"/> as in <see cref="PolicySpan"/>, in places of <paramref name="text"/>.</summary>
    public Search Find(ReadOnlySpan<byte> text, ReadOnlySpan<PolicySpan> stretches) => new(this, text, stretches);

    /// <summary>A running search. <see cref="MoveNext"/> finds tokens from left to right.</summary>
    public ref struct Search(AddedTokenSet set, ReadOnlySpan<byte> text, ReadOnlySpan<PolicySpan> stretches)
    {
        private readonly AddedTokenSet _set = set;
        private readonly ReadOnlySpan<byte> _text = text;
        private ReadOnlySpan<PolicySpan> _stretches = stretches;
        private int _at;
        private int _spaceStart; // white space known to lie in [_spaceStart, _spaceEnd)
        private int _spaceEnd;

        /// <summary>Where the token's text begins, white space it swallowed included.</summary>
        public int Start { get; private set; }

        /// <summary>Where it ends, white space it swallowed included.</summary>
        public int End { get; private set; }

        /// <summary>The token found.</summary>
        public AddedToken Token { get; private set; } = null!;

        public bool MoveNext()
        {
            while (!_stretches.IsEmpty)
            {
                var stretch = _stretches[0];
                _at = Math.Max(_at, stretch.Start);
                if (stretch.Policy != AddedTokenPolicy.None && _at < stretch.End
                    && _set._trie.TryFind(_text[_at..stretch.End], out var start, out var length, out var index))
                {
                    var (begin, end) = (_at + start, _at + start + length);
                    _at = end;
                    if (Accept(_set._tokens[index], stretch.Policy, begin, end))
                        return true;
                }
                else
                {
                    _stretches = _stretches[1..];
                }
            }
            return false;
        }

        private bool Accept(AddedToken token, AddedTokenPolicy policy, int begin, int end)
        {
            if (policy == AddedTokenPolicy.NonSpecial && token.Special)
                return false;
            if (token.SingleWord && (EndsWithWord(_text[..begin]) || StartsWithWord(_text[end..])))
                return false;
            var previousEnd = End;
            (Start, End, Token) = (begin, end, token);
            if (token.LeftStrip)
                Start = StartOfSpaceBefore(begin, previousEnd);
            if (token.RightStrip)
                End = EndOfSpaceAfter(end);
            Start = Math.Min(Start, End);
            return true;
        }

        private static bool EndsWithWord(ReadOnlySpan<byte> text) =>
            !text.IsEmpty && (CodePoints.ClassAt(text, CodePoints.StartOfCharacterBefore(text, text.Length), out _) & CodePointClass.Word) != 0;

        private static bool StartsWithWord(ReadOnlySpan<byte> text) =>
            !text.IsEmpty && (CodePoints.ClassAt(text, 0, out _) & CodePointClass.Word) != 0;

        // Not past the previous token: those spaces are its own.
        private readonly int StartOfSpaceBefore(int begin, int previousEnd)
        {
            var at = begin;
            while (at > previousEnd)
            {
                var start = CodePoints.StartOfCharacterBefore(_text, at);
                if ((CodePoints.ClassAt(_text, start, out _) & CodePointClass.Space) == 0)
                    break;
                at = start;
            }
            return Math.Max(at, previousEnd);
        }

        // A run of white space is looked at once, however many tokens end inside of it.
        private int EndOfSpaceAfter(int end)
        {
            if (end < _spaceStart || end > _spaceEnd)
                (_spaceStart, _spaceEnd) = (end, CodePoints.SkipWhile(_text, end, CodePointClass.Space));
            return _spaceEnd;
        }
    }
}

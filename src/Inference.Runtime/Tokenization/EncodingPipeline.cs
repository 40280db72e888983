// From text to ids: added tokens that are matched as written; then, between them, the normaliser, added tokens that are matched
// normalised, the pre-tokenizer's own changes, its pieces, and byte-pair merging.
//
// It never reads a file and never decides what is trusted: the stretches of policy come with the text. It keeps no state
// between calls; all parts are immutable, so any thread may run it.
// Invariant: pieces are cut only where the pre-tokenizer cuts and at added tokens, never where a stretch of policy ends.
using System.Buffers;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Bpe;
using Inference.Runtime.Tokenization.Normalization;
using Inference.Runtime.Tokenization.Splitting;
using Inference.Runtime.Tokenization.Unicode;

namespace Inference.Runtime.Tokenization;

/// <summary>The fixed parts of an encoding, in the order in which text passes them.</summary>
internal sealed record EncodingPipeline(
    AddedTokenSet? AddedTokens,
    IReadOnlyList<TextTransform> Normalizers,
    AddedTokenSet? NormalizedAddedTokens,
    TextTransform? Preparation,
    PieceSplitter Splitter,
    BytePairEncoder Encoder)
{
    private static readonly WholeTextSplitter WholeText = new();

    /// <summary>Encodes one text of valid UTF-8.</summary>
    /// <param name="text">The text.</param>
    /// <param name="stretches">Its stretches of policy, as described at <see cref="PolicySpan"/>.</param>
    /// <param name="output">Receives the ids.</param>
    /// <param name="places">Receives where each id comes from, when wanted.</param>
    /// <param name="steps">Which of the optional steps to run.</param>
    public void Run(ReadOnlySpan<byte> text, ReadOnlySpan<PolicySpan> stretches, TokenSink output, List<TokenPlace>? places, EncodingSteps steps)
    {
        if (text.IsEmpty)
            return;
        var uniform = stretches.IsEmpty || (stretches.Length == 1 && stretches[0].Start == 0 && stretches[0].End == text.Length);
        var followTrust = NormalizedAddedTokens is not null && !uniform;
        using var run = new EncodingRun(this, stretches, output, places, steps, followTrust);
        var origins = places is null && !followTrust ? null : ArrayPool<int>.Shared.Rent(text.Length);
        try
        {
            run.Encode(new TracedText(text, origins is null ? default : FillOrigins(text, origins)));
        }
        finally
        {
            if (origins is not null)
                ArrayPool<int>.Shared.Return(origins);
        }
    }

    private static ReadOnlySpan<int> FillOrigins(ReadOnlySpan<byte> text, int[] origins)
    {
        var start = 0;
        for (var i = 0; i < text.Length; i++)
        {
            if ((text[i] & 0xC0) != 0x80)
                start = i;
            origins[i] = start;
        }
        return origins.AsSpan(0, text.Length);
    }

    /// <summary>The state of one call.</summary>
    private readonly ref struct EncodingRun(
        EncodingPipeline parts, ReadOnlySpan<PolicySpan> stretches, TokenSink output, List<TokenPlace>? places, EncodingSteps steps, bool followTrust)
    {
        private readonly ReadOnlySpan<PolicySpan> _stretches = stretches;
        private readonly TextBuffer _even = new();
        private readonly TextBuffer _odd = new();
        private readonly TextBuffer _prepared = new();

        public void Dispose()
        {
            _even.Dispose();
            _odd.Dispose();
            _prepared.Dispose();
        }

        // Step 1: added tokens in the text as written.
        public void Encode(TracedText prompt)
        {
            var done = 0;
            if (parts.AddedTokens is not null)
            {
                for (var found = parts.AddedTokens.Find(prompt.Text, _stretches); found.MoveNext();)
                {
                    if (done < found.Start)
                        Normalize(prompt, done, found.Start);
                    AddToken(found.Token.Id, prompt.Slice(found.Start, found.End));
                    done = found.End;
                }
            }
            if (done < prompt.Text.Length)
                Normalize(prompt, done, prompt.Text.Length);
        }

        // Step 2: the normaliser, between those tokens. Two buffers take turns.
        private void Normalize(TracedText prompt, int start, int end)
        {
            var text = prompt.Slice(start, end);
            var turn = 0;
            if (steps.HasFlag(EncodingSteps.Normalize))
            {
                foreach (var normalizer in parts.Normalizers)
                {
                    var target = (turn & 1) == 0 ? _even : _odd;
                    if (!normalizer.TryApply(text, start == 0, target))
                        continue;
                    text = target.Written;
                    turn++;
                    if (text.Text.IsEmpty)
                        return;
                }
            }
            FindNormalizedTokens(text, start, end);
        }

        // Step 3: added tokens in the normalised text.
        private void FindNormalizedTokens(TracedText text, int promptStart, int promptEnd)
        {
            var done = 0;
            if (parts.NormalizedAddedTokens is not null && !_stretches.IsEmpty)
            {
                var stretches = followTrust ? StretchesIn(text, promptStart, promptEnd) : [new PolicySpan(0, text.Text.Length, _stretches[0].Policy)];
                for (var found = parts.NormalizedAddedTokens.Find(text.Text, stretches); found.MoveNext();)
                {
                    if (done < found.Start)
                        Split(text.Slice(done, found.Start), promptStart == 0 && done == 0);
                    AddToken(found.Token.Id, text.Slice(found.Start, found.End));
                    done = found.End;
                }
            }
            if (done < text.Text.Length)
                Split(text.Slice(done, text.Text.Length), promptStart == 0 && done == 0);
        }

        // Stretches of the prompt in places of the normalised text. A character that swallowed one from beyond the end of a
        // stretch (a mark of a user that composed with our last letter) is left out of it.
        private PolicySpan[] StretchesIn(TracedText text, int promptStart, int promptEnd)
        {
            var found = new List<PolicySpan>();
            for (var i = FirstEndingAfter(promptStart); i < _stretches.Length && _stretches[i].Start < promptEnd; i++)
            {
                var start = FirstFrom(text.Origins, _stretches[i].Start);
                var end = FirstFrom(text.Origins, _stretches[i].End);
                var nextOrigin = end < text.Text.Length ? text.Origins[end] : promptEnd;
                if (end > start && nextOrigin > _stretches[i].End)
                    end = CodePoints.StartOfCharacterBefore(text.Text, end);
                if (end > start)
                    found.Add(new PolicySpan(start, end, _stretches[i].Policy));
            }
            return [.. found];
        }

        private int FirstEndingAfter(int place)
        {
            var (low, high) = (0, _stretches.Length);
            while (low < high)
            {
                var middle = (low + high) >>> 1;
                (low, high) = _stretches[middle].End <= place ? (middle + 1, high) : (low, middle);
            }
            return low;
        }

        private static int FirstFrom(ReadOnlySpan<int> origins, int origin)
        {
            var (low, high) = (0, origins.Length);
            while (low < high)
            {
                var middle = (low + high) >>> 1;
                (low, high) = origins[middle] < origin ? (middle + 1, high) : (low, middle);
            }
            return low;
        }

        // Step 4: the pre-tokenizer, and merging of each piece.
        private void Split(TracedText text, bool atPromptStart)
        {
            if (parts.Preparation is not null && parts.Preparation.TryApply(text, atPromptStart, _prepared))
                text = _prepared.Written;
            PieceSplitter splitter = steps.HasFlag(EncodingSteps.Split) ? parts.Splitter : WholeText;
            var before = output.Count;
            for (int at = 0, end; at < text.Text.Length; at = end)
            {
                end = splitter.EndOfPiece(text.Text, at);
                parts.Encoder.Encode(text.Text, at, end, output);
            }
            if (places is not null)
                AddPlaces(text, before);
        }

        private void AddPlaces(TracedText text, int first)
        {
            var starts = output.Starts;
            for (var i = first; i < output.Count; i++)
                places!.Add(TokenPlace.Of(text.Slice(starts[i], i + 1 < output.Count ? starts[i + 1] : text.Text.Length), isAdded: false));
        }

        private void AddToken(int id, TracedText text)
        {
            output.Add(id, 0);
            places?.Add(TokenPlace.Of(text, isAdded: true));
        }
    }
}

/// <summary>Steps that callers of the Microsoft base type may leave out.</summary>
[Flags]
internal enum EncodingSteps
{
    None = 0,
    Normalize = 1,
    Split = 2,
    All = Normalize | Split,
}

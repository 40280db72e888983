// The tokenizer of a model: text to ids and back, exactly as the model was trained.
//
// It never reads files (TokenizerFactory does) and never lets text become a control token unless the caller says so by a
// policy. All state is immutable: one instance serves all threads, without locks and without a cache.
// Invariant: encoding looks at each character a bounded number of times; merging a piece of n bytes costs n log n at most.
using System.Buffers;
using System.Runtime.InteropServices;
using System.Text;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization;

/// <summary>Encodes and decodes text for one model. Thread-safe. Create it with <see cref="TokenizerFactory"/>.</summary>
/// <remarks>
/// It is also a <see cref="Microsoft.ML.Tokenizers.Tokenizer"/>: .NET code that knows that type counts, cuts and encodes text
/// with it. Through that type, text is only text: no added token is matched (<see cref="AddedTokenPolicy.None"/>).
/// </remarks>
public sealed partial class ModelTokenizer : Microsoft.ML.Tokenizers.Tokenizer
{
    /// <summary>Longest text of one encoding, in UTF-16 units: 256 Mi.</summary>
    public const int TextLengthMax = 1 << 28;

    private const int ReplacementLength = 3; // U+FFFD in UTF-8

    private readonly EncodingPipeline _pipeline;
    private readonly Vocabulary _vocabulary;
    private readonly OffsetTrimming _trimming;

    internal ModelTokenizer(EncodingPipeline pipeline, Vocabulary vocabulary, PromptTemplate template, OffsetTrimming trimming, TokenNames names)
    {
        (_pipeline, _vocabulary, _trimming) = (pipeline, vocabulary, trimming);
        (TemplatePrefix, TemplateSuffix, Names) = (template.Before, template.After, names);
    }

    /// <summary>One more than the largest id: ids are in [0, VocabSize), and a few of them may have no token.</summary>
    public int VocabSize => _vocabulary.Size;

    /// <summary>Ids that the file's post-processor puts before a prompt (BOS in some families). Chat encodings bring their own.</summary>
    public IReadOnlyList<int> TemplatePrefix { get; }

    /// <summary>Ids that the file's post-processor puts behind a prompt.</summary>
    public IReadOnlyList<int> TemplateSuffix { get; }

    /// <summary>The tokens that tokenizer_config.json names, for chat templates.</summary>
    public TokenNames Names { get; }

    /// <summary>Appends the ids of a text.</summary>
    /// <param name="text">The text; lone surrogates count as U+FFFD.</param>
    /// <param name="policy">Which added tokens it may become.</param>
    /// <param name="ids">Receives the ids.</param>
    /// <exception cref="ArgumentException">The text is longer than <see cref="TextLengthMax"/>.</exception>
    public void Encode(ReadOnlySpan<char> text, AddedTokenPolicy policy, List<int> ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        using var prompt = new Utf8Prompt(text.Length);
        prompt.Append(text, policy);
        Encode(prompt, ids);
    }

    /// <summary>The ids of a text.</summary>
    /// <exception cref="ArgumentException">The text is longer than <see cref="TextLengthMax"/>.</exception>
    public List<int> Encode(ReadOnlySpan<char> text, AddedTokenPolicy policy)
    {
        var ids = new List<int>();
        Encode(text, policy, ids);
        return ids;
    }

    /// <summary>
    /// Appends the ids of a prompt in segments. The result is that of the segments' texts in one, except that added tokens are
    /// matched only where the policies allow it: where no added token would be matched in text that may not become one, the ids
    /// are the same as by plain encoding.
    /// </summary>
    /// <exception cref="ArgumentException">The texts are longer than <see cref="TextLengthMax"/> together.</exception>
    public void Encode(ReadOnlySpan<TextSegment> segments, List<int> ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        long length = 0;
        foreach (var segment in segments)
            length += segment.Text.Length;
        using var prompt = new Utf8Prompt(length);
        foreach (var segment in segments)
            prompt.Append(segment.Text, segment.Policy);
        Encode(prompt, ids);
    }

    /// <summary>Appends the ids of a text between those of the file's post-processor (<see cref="TemplatePrefix"/>, <see cref="TemplateSuffix"/>).</summary>
    public void EncodeWithTemplate(ReadOnlySpan<char> text, AddedTokenPolicy policy, List<int> ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        ids.AddRange(TemplatePrefix);
        Encode(text, policy, ids);
        ids.AddRange(TemplateSuffix);
    }

    /// <summary>The ids of a text with the code points they come from.</summary>
    public List<TokenOffset> EncodeWithOffsets(ReadOnlySpan<char> text, AddedTokenPolicy policy)
    {
        using var encoded = EncodePlaces(text, policy, EncodingSteps.All);
        return encoded.InCodePoints(text, _trimming);
    }

    /// <summary>The text of a sequence. Ids without a token are left out; what is not UTF-8 becomes U+FFFD.</summary>
    /// <param name="ids">The tokens.</param>
    /// <param name="skipSpecial">Leave out tokens flagged special.</param>
    public string Decode(ReadOnlySpan<int> ids, bool skipSpecial = false) => _vocabulary.Decoding.Decode(ids, skipSpecial);

    /// <summary>Starts reading a stream of ids.</summary>
    public IncrementalDetokenizer CreateDetokenizer(DetokenizerOptions? options = null) =>
        new(_vocabulary.Decoding, options ?? new DetokenizerOptions());

    /// <summary>The bytes a token stands for: possibly a part of a character; empty for an id without a token.</summary>
    public ReadOnlyMemory<byte> TokenBytes(int id) =>
        (uint)id < (uint)VocabSize ? _vocabulary.Decoding.Bytes.Memory(id) : default;

    /// <summary>A token as text to look at: an added token's content, else its bytes with U+FFFD for what is not UTF-8; null for an id without a token.</summary>
    public string? TokenText(int id)
    {
        if (_vocabulary.TryGetAddedToken(id, out var added))
            return added.Content;
        return HasToken(id) ? Encoding.UTF8.GetString(_vocabulary.Decoding.Bytes[id]) : null;
    }

    /// <summary>The id of a token: of an added token by its content, of another by its spelling in the file; null when there is none.</summary>
    public int? IdOf(string token)
    {
        ArgumentNullException.ThrowIfNull(token);
        return _vocabulary.TryGetId(token, out var id) ? id : null;
    }

    /// <summary>Whether the id has a token. Rows of a model's output without one must never be sampled.</summary>
    public bool HasToken(int id) => (uint)id < (uint)VocabSize && _vocabulary.Decoding.Exists[id];

    /// <summary>Whether the id is an added token flagged special.</summary>
    public bool IsSpecial(int id) => (uint)id < (uint)VocabSize && _vocabulary.Decoding.Special[id];

    /// <summary>Whether the id is an added token, special or not: one that text becomes only under a policy.</summary>
    public bool IsAdded(int id) => _vocabulary.AddedTokens.ContainsKey(id);

    private void Encode(Utf8Prompt prompt, List<int> ids)
    {
        using var sink = new TokenSink(prompt.Text.Length / 3, withStarts: false);
        _pipeline.Run(prompt.Text, prompt.Stretches, sink, places: null, EncodingSteps.All);
        var count = ids.Count;
        CollectionsMarshal.SetCount(ids, count + sink.Count);
        sink.Ids.CopyTo(CollectionsMarshal.AsSpan(ids)[count..]);
    }

    private PlacedTokens EncodePlaces(ReadOnlySpan<char> text, AddedTokenPolicy policy, EncodingSteps steps)
    {
        using var prompt = new Utf8Prompt(text.Length);
        prompt.Append(text, policy);
        var tokens = new PlacedTokens(prompt.Text.Length);
        _pipeline.Run(prompt.Text, prompt.Stretches, tokens.Sink, tokens.Places, steps);
        return tokens;
    }

    /// <summary>The text of one call as UTF-8, with its stretches of policy. Pooled.</summary>
    private sealed class Utf8Prompt : IDisposable
    {
        private readonly List<PolicySpan> _stretches = new(1);
        private byte[] _bytes;
        private int _count;

        public Utf8Prompt(long length)
        {
            if (length > TextLengthMax)
                throw new ArgumentException($"the text has {length} UTF-16 units, more than the {TextLengthMax} that one encoding takes: send less text", nameof(length));
            _bytes = ArrayPool<byte>.Shared.Rent((int)length * ReplacementLength); // three bytes per unit at most
        }

        public ReadOnlySpan<byte> Text => _bytes.AsSpan(0, _count);

        public ReadOnlySpan<PolicySpan> Stretches => CollectionsMarshal.AsSpan(_stretches);

        public void Append(ReadOnlySpan<char> text, AddedTokenPolicy policy)
        {
            var start = _count;
            _count += Encoding.UTF8.GetBytes(text, _bytes.AsSpan(_count));
            if (policy == AddedTokenPolicy.None || start == _count)
                return;
            if (_stretches.Count > 0 && _stretches[^1].End == start && _stretches[^1].Policy == policy)
                _stretches[^1] = _stretches[^1] with { End = _count };
            else
                _stretches.Add(new PolicySpan(start, _count, policy));
        }

        public void Dispose()
        {
            ArrayPool<byte>.Shared.Return(_bytes);
            _bytes = [];
        }
    }
}

/// <summary>Names of the tokens with a role, as in tokenizer_config.json; null where it names none.</summary>
public sealed record TokenNames(string? Bos = null, string? Eos = null, string? Pad = null, string? Unknown = null);

/// <summary>Ids around every prompt, by the file's post-processor.</summary>
internal sealed record PromptTemplate(IReadOnlyList<int> Before, IReadOnlyList<int> After)
{
    public static PromptTemplate None { get; } = new([], []);
}

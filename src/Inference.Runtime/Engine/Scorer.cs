// What a model thinks of a given text: for each position the log-probability of the token that stands there and the most likely next
// tokens, and the same from the draft block. Feeds the text through a ModelRunner in chunks and gives each position away before the next
// chunk runs, so memory does not grow with the length beyond the KV rows that the model keeps. It never samples and knows no request.
// Owns cache and runner of one scoring; model and backend are the caller's, who uses them from one thread.
// Invariant: what is said of a position does not depend on the chunk size.
using Inference.Backends;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Runtime.Engine;

/// <summary>How to score.</summary>
public sealed record ScoreOptions
{
    /// <summary>How many of the most likely next tokens to list; more than the vocabulary has means all.</summary>
    public int TopCount { get; init; } = 10;

    /// <summary>Run the draft block too. The model must have one.</summary>
    public bool Draft { get; init; }

    /// <summary>Tokens processed in one step.</summary>
    public int ChunkTokens { get; init; } = 256;
}

/// <summary>One position of a scored text. Log-probabilities are natural, before any sampling option.</summary>
/// <param name="Position">Zero-based.</param>
/// <param name="TokenId">The token that stands there.</param>
/// <param name="Logprob">Of that token, given those before it; null at position 0.</param>
/// <param name="Next">Most likely tokens after it, best first, ties by the smaller id.</param>
/// <param name="Draft">Most likely tokens at position + 2 by the draft block, which has seen the token at position + 1; null when no draft was
/// asked for, and at the last position, whose next token is not known.</param>
public sealed record TokenScore(
    int Position, int TokenId, float? Logprob, IReadOnlyList<TokenLogprob> Next, IReadOnlyList<TokenLogprob>? Draft);

/// <summary>Scores texts on a model.</summary>
public static class Scorer
{
    /// <summary>
    /// Scores a text. Input is checked at once; the model runs while the result is enumerated, and stops when the enumeration does.
    /// </summary>
    /// <exception cref="RequestRejectedException">No tokens, ids outside of the vocabulary, a text longer than the model's context, options
    /// the model cannot follow.</exception>
    /// <exception cref="BackendException">While enumerating: no memory for the KV rows, or logits that are not numbers.</exception>
    public static IEnumerable<TokenScore> Score(IModel model, IBackend backend, IReadOnlyList<int> tokenIds, ScoreOptions options)
    {
        RequireInput(model.Info, tokenIds, options);
        return Run(model, backend, [.. tokenIds], options);
    }

    private static IEnumerable<TokenScore> Run(IModel model, IBackend backend, int[] tokens, ScoreOptions options)
    {
        int chunkTokens = Math.Min(options.ChunkTokens, tokens.Length);
        using var cache = new KvCacheManager(model.KvStates, new KvCapacity(tokens.Length, 1, chunkTokens), backend);
        using var runner = new ModelRunner(model, backend, cache, chunkTokens, 1);
        var table = cache.CreateTable();
        float? logprob = null;
        for (int start = 0, end; start < tokens.Length; start = end)
        {
            end = Math.Min(start + chunkTokens, tokens.Length);
            if (!cache.TryExtend(table, end))
                throw new BackendException(BackendErrorKind.Capacity, $"The KV rows of {end} tokens do not fit the cache made for {tokens.Length}.");
            runner.Run([new SequenceChunk(tokens.AsMemory(start, end - start), start, table, 0, options.Draft ? After(tokens, start, end) : default)]);
            cache.Trim(table, end);
            for (int p = start; p < end; p++)
            {
                int? next = p + 1 < tokens.Length ? tokens[p + 1] : null;
                var (top, nextLogprob) = new LogitsRow(runner.Logits(p - start), p).Summary(options.TopCount, next);
                var draft = options.Draft && next is not null ? new LogitsRow(runner.DraftLogits(p - start), p).Top(options.TopCount) : null;
                yield return new TokenScore(p, tokens[p], logprob, top, draft);
                logprob = nextLogprob;
            }
        }
    }

    // The token after each token; the last one's, which nobody knows, only fills its place: its draft row is not given away.
    private static int[] After(int[] tokens, int start, int end)
    {
        var next = new int[end - start];
        for (int i = 0; i < next.Length; i++) next[i] = start + i + 1 < tokens.Length ? tokens[start + i + 1] : tokens[^1];
        return next;
    }

    private static void RequireInput(ModelInfo info, IReadOnlyList<int> tokens, ScoreOptions options)
    {
        if (tokens.Count == 0) throw Invalid("token_ids", "There are no tokens to score; give at least one.");
        if (tokens.Count > info.ContextMax)
            throw Invalid("token_ids", $"The text has {tokens.Count} tokens, the model's context {info.ContextMax}; give less text.");
        for (int i = 0; i < tokens.Count; i++)
            if (tokens[i] < 0 || tokens[i] >= info.VocabSize)
                throw Invalid("token_ids", $"Token id {tokens[i]} at position {i} is not in the vocabulary; ids are 0 to {info.VocabSize - 1}.");
        if (options.TopCount < 0) throw Invalid("top", $"{options.TopCount} next tokens cannot be listed; give 0 or more.");
        if (options.ChunkTokens < 1) throw Invalid("chunk", $"A chunk of {options.ChunkTokens} tokens is none; give 1 or more.");
        if (options.Draft && !info.HasDraft) throw Invalid("draft", $"This {info.Family} model has no draft block that can be scored (MTP); leave the draft out.");
    }

    private static RequestRejectedException Invalid(string field, string message) => new(RejectionReason.InvalidRequest, message, field);

    /// <summary>One row of logits as a distribution.</summary>
    private readonly ref struct LogitsRow
    {
        private readonly ReadOnlySpan<float> _logits;
        private readonly double _logSum;

        public LogitsRow(ReadOnlySpan<float> logits, int position)
        {
            float max = float.NegativeInfinity;
            foreach (float logit in logits)
            {
                if (!float.IsFinite(logit))
                    throw new BackendException(BackendErrorKind.Device, $"A logit at position {position} is {logit}: the weights are damaged, or the backend is.");
                max = Math.Max(max, logit);
            }
            double sum = 0;
            foreach (float logit in logits) sum += Math.Exp(logit - (double)max);
            _logits = logits;
            _logSum = max + Math.Log(sum);
        }

        public float this[int tokenId] => (float)(_logits[tokenId] - _logSum);

        public (TokenLogprob[] Top, float? Logprob) Summary(int count, int? tokenId) => (Top(count), tokenId is { } id ? this[id] : null);

        /// <summary>The most likely tokens, best first, ties by the smaller id.</summary>
        public TokenLogprob[] Top(int count)
        {
            // Worst of the kept ones in front.
            var kept = new PriorityQueue<int, (float Logit, int Preference)>();
            for (int id = 0; id < _logits.Length; id++)
            {
                if (kept.Count < count) kept.Enqueue(id, (_logits[id], -id));
                else if (count > 0) kept.EnqueueDequeue(id, (_logits[id], -id));
            }
            var top = new TokenLogprob[kept.Count];
            for (int i = top.Length - 1; i >= 0; i--)
            {
                int id = kept.Dequeue();
                top[i] = new TokenLogprob(id, this[id]);
            }
            return top;
        }
    }
}

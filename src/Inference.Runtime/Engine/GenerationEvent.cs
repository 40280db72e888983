namespace Inference.Runtime.Engine;

/// <summary>
/// What an accepted request yields, in this order: one <see cref="GenerationStarted"/>, any number of <see cref="GenerationDelta"/>, exactly one
/// <see cref="GenerationFinished"/>. A request that ends before it starts yields only the last. Blocks are free before the last is sent.
/// </summary>
public abstract record GenerationEvent;

/// <summary>The request left the queue.</summary>
/// <param name="CachedTokens">Prompt tokens taken from the cache instead of computed.</param>
public sealed record GenerationStarted(int PromptTokens, int CachedTokens, TimeSpan QueueTime) : GenerationEvent;

/// <summary>New tokens. Text may lag behind the ids: never half a character, never a possible beginning of a stop string.</summary>
/// <param name="Index">Output index of the first token id here.</param>
/// <param name="Text">New text; may be empty.</param>
/// <param name="Bytes">The token ids' raw bytes.</param>
/// <param name="Logprobs">One per token id when asked for.</param>
public sealed record GenerationDelta(
    int Index, IReadOnlyList<int> TokenIds, string Text, ReadOnlyMemory<byte> Bytes, IReadOnlyList<TokenLogprobs>? Logprobs) : GenerationEvent;

/// <summary>The end, once.</summary>
/// <param name="Text">Text held back until now, possibly empty.</param>
/// <param name="StopTokenId">The token that ended it, if one did.</param>
/// <param name="StopString">The stop string that ended it, if one did.</param>
/// <param name="Error">With <see cref="FinishReason.Error"/>: what went wrong, for the client.</param>
/// <param name="Estimate">With <see cref="FinishReason.DeadlineUnreachable"/>: the numbers.</param>
public sealed record GenerationFinished(
    FinishReason Reason, string Text, GenerationUsage Usage, GenerationTimings Timings, int? StopTokenId = null, string? StopString = null,
    string? Error = null, DeadlineEstimate? Estimate = null) : GenerationEvent;

/// <summary>Why a request could not meet its deadline.</summary>
/// <param name="Tokens">To compute before the first token: the prompt less what is in the cache.</param>
/// <param name="Needed">The least time that takes: at twice the measured speed, with the engine to itself.</param>
/// <param name="Left">Time to the deadline when it was refused.</param>
public sealed record DeadlineEstimate(int Tokens, TimeSpan Needed, TimeSpan Left);

/// <summary>Natural-log probabilities under the model's distribution before penalties and temperature.</summary>
public sealed record TokenLogprobs(int TokenId, float Logprob, IReadOnlyList<TokenLogprob> Top);

public readonly record struct TokenLogprob(int TokenId, float Logprob);

/// <param name="CachedTokens">Prompt tokens that were not computed.</param>
/// <param name="DiskTokens">Of these, read from disk; the others were in memory.</param>
public sealed record GenerationUsage(int PromptTokens, int CachedTokens, int OutputTokens, int DiskTokens = 0);

/// <param name="Queue">From submission to the first step.</param>
/// <param name="TimeToFirstToken">From submission to the first output token.</param>
/// <param name="Total">From submission to the end.</param>
public sealed record GenerationTimings(TimeSpan Queue, TimeSpan TimeToFirstToken, TimeSpan Total);

/// <summary>Why the engine did not take a request.</summary>
public enum RejectionReason
{
    /// <summary>The request can never run here (too long, no tokens, ids out of range): the client's fault.</summary>
    InvalidRequest,
    /// <summary>No room now: try again later.</summary>
    Overloaded,
    /// <summary>The engine is stopping or broken.</summary>
    Unavailable,
}

/// <summary>The engine did not take a request; nothing of it was kept.</summary>
/// <param name="Field">The field at fault, for <see cref="RejectionReason.InvalidRequest"/>, in proto spelling.</param>
/// <param name="RetryAfter">For <see cref="RejectionReason.Overloaded"/>.</param>
public sealed class RequestRejectedException(RejectionReason reason, string message, string? field = null, TimeSpan? retryAfter = null)
    : Exception(message)
{
    public RejectionReason Reason { get; } = reason;
    public string? Field { get; } = field;
    public TimeSpan? RetryAfter { get; } = retryAfter;
}

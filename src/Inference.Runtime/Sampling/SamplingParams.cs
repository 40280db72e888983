namespace Inference.Runtime.Sampling;

/// <summary>
/// How the next token is drawn from the logits, resolved: every value is set. Order of application: logit bias, repetition, presence and
/// frequency penalties, temperature, top-k, top-p, min-p. Temperature 0 is greedy: the largest logit, ties to the smaller id.
/// </summary>
/// <param name="Temperature">&gt;= 0, finite.</param>
/// <param name="TopK">Tokens kept; 0 = all.</param>
/// <param name="TopP">(0, 1].</param>
/// <param name="MinP">[0, 1]: keep tokens with probability &gt;= MinP times the largest.</param>
/// <param name="RepetitionPenalty">&gt; 0; 1 = none. Divides positive and multiplies negative logits of tokens seen in prompt or output.</param>
/// <param name="PresencePenalty">[-2, 2]: subtracted once from tokens seen in the output.</param>
/// <param name="FrequencyPenalty">[-2, 2]: subtracted per occurrence in the output.</param>
/// <param name="Seed">The draw at output index i depends on (Seed, i) only.</param>
/// <param name="LogitBias">Added to the logits of these ids.</param>
public sealed record SamplingParams(
    float Temperature, int TopK, float TopP, float MinP, float RepetitionPenalty, float PresencePenalty, float FrequencyPenalty,
    ulong Seed, IReadOnlyDictionary<int, float>? LogitBias = null)
{
    public static SamplingParams Greedy { get; } = new(0, 0, 1, 0, 1, 0, 0, 0);
}

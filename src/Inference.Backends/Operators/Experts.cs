namespace Inference.Backends.Operators;

/// <summary>How router logits become scores.</summary>
public enum RouterScoring
{
    /// <summary>sqrt(softplus(logit)) (deepseek-v4 2.10).</summary>
    SqrtSoftplus,
    Sigmoid,
    Softmax,
}

/// <summary>
/// Chooses experts per token. With a <see cref="HashTable"/>: ids = HashTable[token id]. Otherwise the ExpertsPerToken largest of score + Bias
/// (ties: smaller id; a NaN counts as the smallest), in descending order. Weights = score of the chosen / sum of these scores * Scale; the bias never enters the weights.
/// </summary>
/// <param name="Logits">F32 [T, E].</param>
/// <param name="Bias">F32 [E], or absent.</param>
/// <param name="HashTable">I32 [vocabulary, ExpertsPerToken], or absent.</param>
/// <param name="TokenIds">I32 [T]; used with HashTable only.</param>
/// <param name="ExpertIds">I32 [T, ExpertsPerToken].</param>
/// <param name="ExpertWeights">F32 [T, ExpertsPerToken].</param>
public readonly record struct Route(
    Tensor Logits, RouterScoring Scoring, Tensor Bias, Tensor HashTable, Tensor TokenIds, float Scale,
    Tensor ExpertIds, Tensor ExpertWeights) : IOperator;

/// <summary>
/// Output[t, s] = ExpertWeights[t, s] * SwiGlu(Gate[e] x, Up[e] x; Limit) with x = Input[t], e = ExpertIds[t, s] (deepseek-v4 2.10).
/// </summary>
/// <param name="Input">F32 [T, D].</param>
/// <param name="Gate">One [I, D] per expert.</param>
/// <param name="Up">One [I, D] per expert.</param>
/// <param name="Output">F32 [T, ExpertsPerToken, I].</param>
public readonly record struct ExpertGateUp(
    Tensor Input, Tensor ExpertIds, Tensor ExpertWeights, PreparedWeight[] Gate, PreparedWeight[] Up, float Limit, Tensor Output) : IOperator;

/// <summary>Output[t] = Shared[t] + sum over s, in the order of s, of Down[ExpertIds[t, s]] Hidden[t, s].</summary>
/// <param name="Hidden">F32 [T, ExpertsPerToken, I].</param>
/// <param name="Down">One [D, I] per expert.</param>
/// <param name="Shared">F32 [T, D]: output of the shared expert, or absent.</param>
/// <param name="Output">F32 [T, D]; may be Shared.</param>
public readonly record struct ExpertDownCombine(
    Tensor Hidden, Tensor ExpertIds, PreparedWeight[] Down, Tensor Shared, Tensor Output) : IOperator;

namespace Inference.Backends.Operators;

/// <summary>Output[t, s, :] = Table[Ids[t], :] for every copy s.</summary>
/// <param name="Ids">I32 [T], each in [0, Table.Rows).</param>
/// <param name="Output">F32 [T, copies, D].</param>
public readonly record struct Embed(Tensor Ids, PreparedWeight Table, Tensor Output) : IOperator;

/// <summary>Output[m] = Input[Rows[m]].</summary>
/// <param name="Input">F32 [T, D] or [T, S, D].</param>
/// <param name="Rows">I32 [M], each in [0, T).</param>
/// <param name="Output">F32 [M, ...] of the same row shape.</param>
public readonly record struct GatherRows(Tensor Input, Tensor Rows, Tensor Output) : IOperator;

/// <summary>Output = Weight * Input * rsqrt(mean(Input^2) + Epsilon) over the last dimension. Output may be Input.</summary>
/// <param name="Input">F32 [T, D] or [T, H, D] (each of the T x H vectors on its own).</param>
/// <param name="Weight">F32 [D], or absent.</param>
public readonly record struct RmsNorm(Tensor Input, Tensor Weight, float Epsilon, Tensor Output) : IOperator;

/// <summary>Output[t, n] = sum over k of Weight[n, k] * Input[t, k].</summary>
/// <param name="Input">F32 [T, K].</param>
/// <param name="Weight">[N, K] in any scheme.</param>
/// <param name="Output">F32 [T, N].</param>
public readonly record struct Linear(Tensor Input, PreparedWeight Weight, Tensor Output) : IOperator;

/// <summary>Output[t, g, n] = sum over k of Weight[g * N + n, k] * Input[t, g, k].</summary>
/// <param name="Input">F32 [T, G, K].</param>
/// <param name="Weight">[G * N, K].</param>
/// <param name="Output">F32 [T, G, N].</param>
public readonly record struct GroupedLinear(Tensor Input, PreparedWeight Weight, Tensor Output) : IOperator;

/// <summary>Output = silu(min(Gate, Limit)) * clamp(Up, -Limit, Limit); no clamp when Limit is +infinity.</summary>
/// <param name="Gate">F32 [T, I].</param>
/// <param name="Up">F32 [T, I].</param>
/// <param name="Output">F32 [T, I]; may be Gate or Up.</param>
public readonly record struct SwiGlu(Tensor Gate, Tensor Up, float Limit, Tensor Output) : IOperator;

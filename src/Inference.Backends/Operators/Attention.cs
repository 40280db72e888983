namespace Inference.Backends.Operators;

/// <summary>Rotates, in place, the last channels of every vector by its token's position; <see cref="Inverse"/> rotates back.</summary>
/// <param name="Vectors">F32 [T, H, D].</param>
/// <param name="Positions">I32 [T].</param>
public readonly record struct Rotate(Tensor Vectors, Tensor Positions, Rope Rope, bool Inverse) : IOperator;

/// <summary>
/// Writes one row per token: RMSNorm(Input; Norm), rotated by the token's position, rounded, stored as row <c>position</c> (deepseek-v4 2.4).
/// The rounding must be the one whose values the rows' format stores without loss (<see cref="RowFormat.Rounding"/>); F32 rows take any.
/// </summary>
/// <param name="Input">F32 [T, D].</param>
/// <param name="Norm">F32 [D].</param>
/// <param name="Rows">Destination, width D, row index = token position.</param>
public readonly record struct KvInsert(
    Tensor Input, Tensor Norm, float Epsilon, TokenLayout Tokens, Rope Rope, RowRounding Rounding, PagedRows Rows) : IOperator;

/// <summary>
/// Pools token vectors into compressed rows (deepseek-v4 2.6). First the values and gates of all tokens (gate + Ape[position mod Ratio])
/// go to <see cref="State"/> at row = position. Then every token with (position + 1) mod Ratio = 0 emits row b = position div Ratio: a softmax
/// over gates, channel by channel, of the tokens of block b; with <see cref="Overlap"/> the pool has 2 x Ratio slots, the tokens of block b - 1 through
/// the first half of their channels (absent for b = 0) and those of block b through the second half. Then RMSNorm(Norm), rotation
/// by position b * Ratio, rounding as in <see cref="KvInsert"/>, stored as row b.
/// </summary>
/// <param name="Values">F32 [T, C]: C = 2 x row width with overlap, else the row width.</param>
/// <param name="Gates">F32 [T, C].</param>
/// <param name="Ape">F32 [Ratio, C].</param>
/// <param name="State">F32, width 2 C: values, then gates; row index = token position. Must still hold the rows of the unfinished block, and with
/// overlap of the block before it.</param>
/// <param name="Norm">F32 [row width].</param>
/// <param name="Rows">Destination, row index = block index.</param>
public readonly record struct CompressorUpdate(
    Tensor Values, Tensor Gates, Tensor Ape, PagedRows State, int Ratio, bool Overlap, TokenLayout Tokens,
    Tensor Norm, float Epsilon, Rope Rope, RowRounding Rounding, PagedRows Rows) : IOperator;

/// <summary>
/// The rows that each token's query attends to (deepseek-v4 2.8). Queries are rotated by the token's position and rounded like the rows;
/// score of row b = sum over h of HeadWeights[t, h] * Scale * relu(query[t, h] . row b), over the visible rows b &lt; (position + 1) div Ratio.
/// Selected[t] = the min(TopK, visible) rows of largest score (ties: smaller index), in ascending order of index, then -1. A NaN score has no
/// rank, but what is selected is always as many different visible rows.
/// </summary>
/// <param name="Queries">F32 [T, H, D]; scratch: contents afterwards undefined.</param>
/// <param name="HeadWeights">F32 [T, H].</param>
/// <param name="Rows">Index rows, width D.</param>
/// <param name="Selected">I32 [T, TopK].</param>
public readonly record struct IndexTopK(
    Tensor Queries, Tensor HeadWeights, float Scale, TokenLayout Tokens, Rope Rope, RowRounding Rounding,
    PagedRows Rows, int Ratio, Tensor Selected) : IOperator
{
    public int TopK => Selected.D1;
}

/// <summary>
/// Attention of H query heads over one shared row per position that is key and value at once (deepseek-v4 2.9). The row set of token t:
/// window rows of positions max(0, p - WindowSize + 1) .. p in ascending order, then compressed rows: those listed in <see cref="Selected"/>, or
/// without it all b &lt; (p + 1) div Ratio. Output = softmax(Scale * q . rows, with Sinks[h] in the denominator only) times rows.
/// All rows of the step must have been inserted before.
/// </summary>
/// <param name="Queries">F32 [T, H, D].</param>
/// <param name="Window">Row index = token position, width D.</param>
/// <param name="Compressed">Row index = block index, width D; absent for a layer without.</param>
/// <param name="Selected">I32 [T, K] as <see cref="IndexTopK"/> writes it (the first -1 ends a list); absent: all visible rows.</param>
/// <param name="Sinks">F32 [H]; minus infinity means none.</param>
/// <param name="Output">F32 [T, H, D].</param>
public readonly record struct Attention(
    Tensor Queries, TokenLayout Tokens, PagedRows Window, int WindowSize, PagedRows Compressed, int Ratio, Tensor Selected,
    Tensor Sinks, float Scale, Tensor Output) : IOperator;

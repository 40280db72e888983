using Inference.Backends;
using Inference.Backends.Operators;

namespace Inference.Runtime.Engine;

/// <summary>
/// What a model reads in one step, all of it on the device: T tokens of S sequences, each sequence's tokens together in ascending
/// positions, and where their rows lie. Made by <see cref="ModelRunner"/>; the tensors belong to it and are valid for one step.
/// </summary>
public sealed record ForwardBatch
{
    /// <summary>I32 [T].</summary>
    public required Tensor TokenIds { get; init; }

    public required TokenLayout Tokens { get; init; }

    /// <summary>Per <c>IModel.KvStates</c> entry: pool and page tables, <see cref="PagedRows.Layer"/> = 0.</summary>
    public required IReadOnlyList<PagedRows> Kv { get; init; }

    /// <summary>I32 [M]: the tokens whose logits are wanted, ascending. M may be 0.</summary>
    public required Tensor LogitsRows { get; init; }

    /// <summary>F32 [M, vocabulary].</summary>
    public required Tensor Logits { get; init; }

    /// <summary>I32 [T]: the token after each token, for the draft block; absent when no draft is wanted.</summary>
    public Tensor NextTokenIds { get; init; }

    /// <summary>F32 [M, vocabulary]: the draft block's logits for position p + 2, for the same rows; absent when no draft is wanted.</summary>
    public Tensor DraftLogits { get; init; }

    public int TokenCount => TokenIds.D0;
}

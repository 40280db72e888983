using System.Collections.Immutable;
using Inference.Backends;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>What a model weighs. Parameters are the elements of its weights; scales and integer tables are none.</summary>
/// <param name="Family">The config's model_type.</param>
/// <param name="ParameterCount">Parameters of the backbone, embedding and head included, draft module not.</param>
/// <param name="ActiveParameterCount">Those that one token reads: the embedding counts as one row, that is as nothing, and of the
/// routed experts only the chosen ones count.</param>
/// <param name="DraftParameterCount">Parameters of the draft module.</param>
/// <param name="Storage">Tensors and bytes by dtype, most bytes first.</param>
public sealed record ModelSummary(
    string Family, long ParameterCount, long ActiveParameterCount, long DraftParameterCount, ImmutableArray<DTypeUsage> Storage)
{
    /// <summary>Tensors that the model uses.</summary>
    public int TensorCount => Storage.Sum(usage => usage.TensorCount);

    /// <summary>Bytes of those tensors.</summary>
    public long ByteLength => Storage.Sum(usage => usage.ByteLength);

    internal static ImmutableArray<DTypeUsage> StorageOf(IEnumerable<TensorView> tensors) =>
    [
        .. tensors.GroupBy(tensor => tensor.DType)
            .Select(group => new DTypeUsage(group.Key, group.Count(), group.Sum(tensor => tensor.ByteLength)))
            .OrderByDescending(usage => usage.ByteLength).ThenBy(usage => usage.DType),
    ];
}

/// <summary>How much of a checkpoint is stored in a dtype; packed FP4 counts as <see cref="DType.F4E2M1"/>.</summary>
public readonly record struct DTypeUsage(DType DType, int TensorCount, long ByteLength);

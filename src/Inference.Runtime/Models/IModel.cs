using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;

namespace Inference.Runtime.Models;

/// <summary>
/// A model family with its weights on a backend: what the engine knows of it. The family's file (e.g. <c>DeepSeekV4.cs</c>) turns a
/// <see cref="ForwardBatch"/> into calls on IBackend; it keeps nothing between two calls besides its weights and scratch memory.
/// </summary>
public interface IModel : IDisposable
{
    ModelInfo Info { get; }

    /// <summary>32 bytes that tell this model, weights and options that change its numbers, from others. May take a moment.</summary>
    byte[] Identity();

    /// <summary>What each sequence keeps; the order is the order of <see cref="ForwardBatch.Kv"/>.</summary>
    IReadOnlyList<KvStateSpec> KvStates { get; }

    /// <summary>
    /// Processes the batch's tokens: writes their rows into the cache and, for <see cref="ForwardBatch.LogitsRows"/>, the logits.
    /// With <see cref="ForwardBatch.NextTokenIds"/> present the draft block runs too and writes <see cref="ForwardBatch.DraftLogits"/>.
    /// </summary>
    void Forward(ForwardBatch batch);
}

/// <param name="Family">The config's model_type, e.g. <c>deepseek_v4</c>.</param>
/// <param name="ContextMax">Most positions of one sequence.</param>
/// <param name="HasDraft">A draft block that <see cref="ForwardBatch.NextTokenIds"/> can run.</param>
/// <param name="ParameterCount">Backbone parameters.</param>
/// <param name="KvFormat">How cached rows are stored, as an operator would say it.</param>
public sealed record ModelInfo(
    string Family, int VocabSize, int HiddenSize, int LayerCount, int ContextMax, bool HasDraft, long ParameterCount,
    string KvFormat = "f32");

using System.Collections.Immutable;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>
/// The weights of a DeepSeek-V4 model, found and checked in its checkpoint (specification deepseek-v4, 4.2). Plain records, no
/// device; made by <see cref="DeepSeekV4Checkpoint"/>. Matrices are [output, input].
/// </summary>
public sealed record DeepSeekV4Weights
{
    /// <summary>The config, with the draft kind that the tensors show.</summary>
    public required DeepSeekV4Config Config { get; init; }

    /// <summary>Token embedding [V, d].</summary>
    public required WeightRef Embed { get; init; }

    /// <summary>Output head [V, d].</summary>
    public required WeightRef Head { get; init; }

    /// <summary>Norm before the head [d].</summary>
    public required WeightRef Norm { get; init; }

    /// <summary>Collapse of the residual streams before that norm.</summary>
    public required HyperConnection HeadConnection { get; init; }

    /// <summary>The backbone.</summary>
    public required ImmutableArray<Layer> Layers { get; init; }

    /// <summary>The MTP draft block, if the checkpoint has one.</summary>
    public Mtp? MtpBlock { get; init; }

    /// <summary>The DSpark draft module, if the checkpoint has one.</summary>
    public DSpark? DSparkModule { get; init; }

    /// <summary>Every weight once, in the order in which a loader may read it.</summary>
    public required ImmutableArray<WeightRef> All { get; init; }

    /// <summary>Coefficients of a hyper-connection site (2.3).</summary>
    /// <param name="Mix">[24, 4d], or [4, 4d] for a collapse.</param>
    /// <param name="Base">[24] or [4].</param>
    /// <param name="Scale">[3] or [1].</param>
    public sealed record HyperConnection(WeightRef Mix, WeightRef Base, WeightRef Scale);

    /// <summary>One block: an attention site and an expert site, each with its hyper-connection and norm.</summary>
    public sealed record Layer(
        HyperConnection AttentionConnection, WeightRef AttentionNorm, Attention Attention,
        HyperConnection FeedForwardConnection, WeightRef FeedForwardNorm, Moe Moe);

    /// <summary>Attention (2.4, 2.9).</summary>
    /// <param name="QueryDown">wq_a [ql, d].</param>
    /// <param name="QueryNorm">[ql].</param>
    /// <param name="QueryUp">wq_b [H D, ql].</param>
    /// <param name="KeyValue">wkv [D, d].</param>
    /// <param name="KeyValueNorm">[D].</param>
    /// <param name="OutputDown">wo_a [G o, H D / G]: o rows per group.</param>
    /// <param name="OutputUp">wo_b [d, G o].</param>
    /// <param name="Sinks">[H].</param>
    /// <param name="Compressor">Where the layer compresses.</param>
    /// <param name="Indexer">Where the layer selects compressed rows.</param>
    public sealed record Attention(
        WeightRef QueryDown, WeightRef QueryNorm, WeightRef QueryUp, WeightRef KeyValue, WeightRef KeyValueNorm,
        WeightRef OutputDown, WeightRef OutputUp, WeightRef Sinks, Compressor? Compressor, Indexer? Indexer);

    /// <summary>Pooling of token rows into compressed rows of width P (2.6); c = 2 with overlap, else 1.</summary>
    /// <param name="PositionBias">ape [r, c P].</param>
    /// <param name="Values">wkv [c P, d].</param>
    /// <param name="Gates">wgate [c P, d].</param>
    /// <param name="Norm">[P].</param>
    public sealed record Compressor(WeightRef PositionBias, WeightRef Values, WeightRef Gates, WeightRef Norm);

    /// <summary>Selection of compressed rows (2.8).</summary>
    /// <param name="QueryUp">wq_b [index heads x width, ql].</param>
    /// <param name="HeadWeights">weights_proj [index heads, d].</param>
    /// <param name="Compressor">Its own rows.</param>
    public sealed record Indexer(WeightRef QueryUp, WeightRef HeadWeights, Compressor Compressor);

    /// <summary>Mixture of experts (2.10).</summary>
    /// <param name="Router">gate.weight [E, d].</param>
    /// <param name="Bias">gate.bias [E], in layers that route by score.</param>
    /// <param name="HashTable">gate.tid2eid [V, k], in layers that route by token.</param>
    /// <param name="Experts">E routed experts.</param>
    /// <param name="Shared">The expert of every token.</param>
    public sealed record Moe(WeightRef Router, WeightRef? Bias, WeightRef? HashTable, ImmutableArray<Expert> Experts, Expert Shared);

    /// <summary>One expert.</summary>
    /// <param name="Gate">w1 [mi, d].</param>
    /// <param name="Up">w3 [mi, d].</param>
    /// <param name="Down">w2 [d, mi].</param>
    public sealed record Expert(WeightRef Gate, WeightRef Up, WeightRef Down);

    /// <summary>The MTP draft block (2.12).</summary>
    /// <param name="EmbeddingProjection">e_proj [d, d].</param>
    /// <param name="HiddenProjection">h_proj [d, d].</param>
    /// <param name="EmbeddingNorm">enorm [d].</param>
    /// <param name="HiddenNorm">hnorm [d].</param>
    /// <param name="Norm">Norm before the head [d].</param>
    /// <param name="HeadConnection">Its own collapse.</param>
    /// <param name="Layer">A sliding-window block.</param>
    public sealed record Mtp(
        WeightRef EmbeddingProjection, WeightRef HiddenProjection, WeightRef EmbeddingNorm, WeightRef HiddenNorm, WeightRef Norm,
        HyperConnection HeadConnection, Layer Layer);

    /// <summary>The DSpark draft module (2.13).</summary>
    /// <param name="MainProjection">main_proj [d, targets x d].</param>
    /// <param name="MainNorm">[d].</param>
    /// <param name="Stages">Sliding-window blocks, in order.</param>
    /// <param name="Norm">Norm before the head [d].</param>
    /// <param name="HeadConnection">Collapse before that norm.</param>
    /// <param name="MarkovIn">markov_w1 [V, rank].</param>
    /// <param name="MarkovOut">markov_w2 [V, rank].</param>
    /// <param name="Confidence">confidence_head.proj [1, d + rank].</param>
    public sealed record DSpark(
        WeightRef MainProjection, WeightRef MainNorm, ImmutableArray<Layer> Stages, WeightRef Norm, HyperConnection HeadConnection,
        WeightRef MarkovIn, WeightRef MarkovOut, WeightRef Confidence);
}

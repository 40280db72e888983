// The architecture of a DeepSeek-V4 model as its config.json gives it (specification deepseek-v4, sections 1.2 and 1.3).
//
// All numbers are checked against ranges and against each other here, once; whoever holds a DeepSeekV4Config may divide,
// multiply and allocate with them. It says nothing about precision: expert_dtype is ignored on purpose, since it is
// missing or wrong in published files; the tensors decide (1.2, "Base checkpoints").
// Immutable. Invariant: CompressRatios has an entry for each backbone layer; further ones belong to draft blocks.
using System.Collections.Immutable;
using Inference.Backends.Operators;

namespace Inference.Runtime.Models;

/// <summary>What a layer attends to besides its sliding window (specification 1.3).</summary>
public enum AttentionKind
{
    /// <summary>Nothing: ratio 0 (SWA).</summary>
    Sliding,

    /// <summary>The rows, compressed 4:1 with overlap, that an indexer picks: ratio 4 (CSA).</summary>
    Selected,

    /// <summary>All rows, compressed r:1: any other ratio, 128 in the releases (HCA).</summary>
    Compressed,
}

/// <summary>The draft module of a checkpoint.</summary>
public enum DraftKind
{
    /// <summary>None.</summary>
    None,

    /// <summary>One multi-token-prediction block (2.12).</summary>
    Mtp,

    /// <summary>A chain of blocks that drafts several tokens at once (2.13).</summary>
    DSpark,
}

/// <summary>YaRN parameters, for layers that compress (2.1).</summary>
/// <param name="Factor">How much longer the context became.</param>
/// <param name="BetaFast">Turns within the original context from which a frequency is left alone.</param>
/// <param name="BetaSlow">Turns up to which a frequency is slowed fully.</param>
/// <param name="OriginalContext">Context length before the extension, in tokens.</param>
public sealed record YarnConfig(double Factor, double BetaFast, double BetaSlow, int OriginalContext);

/// <summary>Parameters of the DSpark draft module (2.13).</summary>
/// <param name="BlockSize">Tokens drafted at once.</param>
/// <param name="MarkovRank">Width of the low-rank bigram head.</param>
/// <param name="NoiseTokenId">Token that fills the draft positions.</param>
/// <param name="TargetLayers">Backbone layers whose output the draft reads, in order.</param>
public sealed record DSparkConfig(int BlockSize, int MarkovRank, int NoiseTokenId, ImmutableArray<int> TargetLayers);

/// <summary>A checked DeepSeek-V4 configuration. Names follow the house vocabulary; the config.json key stands in brackets.</summary>
public sealed record DeepSeekV4Config
{
    /// <summary>The config.json model_type of this family.</summary>
    public const string ModelType = "deepseek_v4";

    /// <summary>The one ratio whose compressor overlaps and whose rows an indexer picks (1.3).</summary>
    public const int OverlapRatio = 4;

    /// <summary>Most tensors a config may ask for; keeps a hostile config from costing memory before the weights are looked at.</summary>
    private const long TensorCountMax = 2_000_000;

    private const int DraftBlocksMax = 64;

    /// <summary>Tokens in the vocabulary [vocab_size].</summary>
    public required int VocabSize { get; init; }

    /// <summary>Width of one residual stream, d [hidden_size].</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Backbone layers [num_hidden_layers].</summary>
    public required int LayerCount { get; init; }

    /// <summary>Query heads, H [num_attention_heads].</summary>
    public required int HeadCount { get; init; }

    /// <summary>Width of a head and of the shared key/value row, D [head_dim].</summary>
    public required int HeadDim { get; init; }

    /// <summary>Rotated channels at the end of each head, R [qk_rope_head_dim].</summary>
    public required int RopeHeadDim { get; init; }

    /// <summary>Rank of the query projection [q_lora_rank].</summary>
    public required int QueryLowRank { get; init; }

    /// <summary>Head groups of the output projection [o_groups].</summary>
    public required int OutputGroups { get; init; }

    /// <summary>Rank of the output projection per group [o_lora_rank].</summary>
    public required int OutputLowRank { get; init; }

    /// <summary>Positions a query sees uncompressed, itself included [sliding_window].</summary>
    public required int SlidingWindow { get; init; }

    /// <summary>Heads of the indexer [index_n_heads].</summary>
    public required int IndexHeadCount { get; init; }

    /// <summary>Width of an indexer head and of an index row [index_head_dim].</summary>
    public required int IndexHeadDim { get; init; }

    /// <summary>Compressed rows that the indexer picks per query [index_topk].</summary>
    public required int IndexTopK { get; init; }

    /// <summary>Token positions per compressed row for each layer, 0 for none [compress_ratios]; may be longer than the backbone.</summary>
    public required ImmutableArray<int> CompressRatios { get; init; }

    /// <summary>Residual streams [hc_mult].</summary>
    public required int HcMult { get; init; }

    /// <summary>Iterations that make the mixing matrix doubly stochastic [hc_sinkhorn_iters].</summary>
    public required int HcSinkhornIterations { get; init; }

    /// <summary>Guard of those divisions [hc_eps].</summary>
    public required float HcEpsilon { get; init; }

    /// <summary>First layers that route by token id; may exceed the layer count [num_hash_layers].</summary>
    public required int HashLayerCount { get; init; }

    /// <summary>Routed experts per layer, E [n_routed_experts].</summary>
    public required int ExpertCount { get; init; }

    /// <summary>Routed experts that each token uses [num_experts_per_tok].</summary>
    public required int ExpertsPerToken { get; init; }

    /// <summary>Inner width of an expert [moe_intermediate_size].</summary>
    public required int ExpertIntermediateSize { get; init; }

    /// <summary>Factor on the normalised expert weights [routed_scaling_factor].</summary>
    public required float RoutedScalingFactor { get; init; }

    /// <summary>Clamp of gate and up projection in every expert [swiglu_limit].</summary>
    public required float SwigluLimit { get; init; }

    /// <summary>Guard of the RMS norms [rms_norm_eps].</summary>
    public required float NormEpsilon { get; init; }

    /// <summary>Rotary base of layers without compression [rope_theta].</summary>
    public required double RopeTheta { get; init; }

    /// <summary>Rotary base of layers with compression [compress_rope_theta].</summary>
    public required double CompressRopeTheta { get; init; }

    /// <summary>YaRN of layers with compression; null for none [rope_scaling].</summary>
    public YarnConfig? Yarn { get; init; }

    /// <summary>Longest context in tokens [max_position_embeddings].</summary>
    public required int ContextMax { get; init; }

    /// <summary>Draft module that the config announces; the weights decide (<see cref="DeepSeekV4Checkpoint"/>).</summary>
    public DraftKind DraftKind { get; init; }

    /// <summary>DSpark parameters, if there are any [dspark_*].</summary>
    public DSparkConfig? DSpark { get; init; }

    /// <summary>Side of the square FP8 scale tiles [quantization_config.weight_block_size].</summary>
    public int Fp8Tile { get; init; } = 128;

    /// <summary>The weights were trained with quantisation in the loop, so rounding the cached rows is part of the model (2.0)
    /// [quantization_config.scale_fmt = ue8m0].</summary>
    public bool TrainedWithRounding { get; init; }

    /// <summary>The widths allow that rounding, and the formats that store it: FP8 blocks of 64 before the rotated channels, FP4 blocks of 32 in
    /// index rows.</summary>
    public bool CanRoundRows =>
        NopeHeadDim % RowFormat.Fp8Block == 0
        && (LayersOf(AttentionKind.Selected) == 0 || (IndexHeadDim % RowFormat.Fp4Block == 0 && int.IsPow2(IndexHeadDim)));

    /// <summary>Begin-of-sequence token, if named [bos_token_id].</summary>
    public int? BosTokenId { get; init; }

    /// <summary>End-of-sequence tokens, if named [eos_token_id].</summary>
    public ImmutableArray<int> EosTokenIds { get; init; } = [];

    /// <summary>Head channels that are not rotated, N.</summary>
    public int NopeHeadDim => HeadDim - RopeHeadDim;

    /// <summary>Input width of one group of the output projection.</summary>
    public int OutputGroupWidth => HeadCount / OutputGroups * HeadDim;

    /// <summary>Inner width of the shared expert.</summary>
    public int SharedIntermediateSize => ExpertIntermediateSize;

    /// <summary>All residual streams of a token, flattened.</summary>
    public int StreamsWidth => HcMult * HiddenSize;

    /// <summary>Coefficients of one hyper-connection site: pre, post and mixing matrix (24 for four streams).</summary>
    public int HcCoefficients => HcMult * (2 + HcMult);

    /// <summary>What layer <paramref name="layer"/> attends to.</summary>
    public AttentionKind Attention(int layer) => CompressRatios[layer] switch
    {
        0 => AttentionKind.Sliding,
        OverlapRatio => AttentionKind.Selected,
        _ => AttentionKind.Compressed,
    };

    /// <summary>Backbone layers of a kind.</summary>
    public int LayersOf(AttentionKind kind) => Enumerable.Range(0, LayerCount).Count(layer => Attention(layer) == kind);

    /// <summary>Whether a backbone layer routes by token id instead of by score.</summary>
    public bool IsHashRouted(int layer) => layer < HashLayerCount;

    /// <summary>Reads the config of an opened model folder.</summary>
    /// <exception cref="ModelConfigException">A value is missing, of the wrong type or out of its range.</exception>
    public static DeepSeekV4Config Read(ModelFolder folder) => Parse(folder.ConfigFile, folder.ConfigJson);

    /// <summary>Reads a config.</summary>
    /// <param name="file">For messages.</param>
    /// <param name="json">Contents of config.json.</param>
    /// <exception cref="ModelConfigException">A value is missing, of the wrong type or out of its range.</exception>
    public static DeepSeekV4Config Parse(string file, ReadOnlyMemory<byte> json) => ConfigReader.Read(file, json, Read);

    private static DeepSeekV4Config Read(ConfigReader json)
    {
        json.OneOf("model_type", ModelType);
        RequireSupported(json);
        var vocabSize = json.Int("vocab_size", 1, 1 << 24);
        var layerCount = json.Int("num_hidden_layers", 1, 1000);
        var dspark = ReadDSpark(json, vocabSize, layerCount);
        var config = new DeepSeekV4Config
        {
            VocabSize = vocabSize,
            HiddenSize = json.Int("hidden_size", 1, 1 << 17),
            LayerCount = layerCount,
            HeadCount = json.Int("num_attention_heads", 1, 4096),
            HeadDim = json.Int("head_dim", 1, 8192),
            RopeHeadDim = json.Int("qk_rope_head_dim", 2, 8192),
            QueryLowRank = json.Int("q_lora_rank", 1, 1 << 17),
            OutputGroups = json.Int("o_groups", 1, 4096),
            OutputLowRank = json.Int("o_lora_rank", 1, 1 << 15),
            SlidingWindow = json.Int("sliding_window", 1, 1 << 20),
            IndexHeadCount = json.Int("index_n_heads", 1, 4096),
            IndexHeadDim = json.Int("index_head_dim", 1, 8192),
            IndexTopK = json.Int("index_topk", 1, 1 << 20),
            CompressRatios = ReadRatios(json, layerCount),
            HcMult = json.Int("hc_mult", 1, 16),
            HcSinkhornIterations = json.Int("hc_sinkhorn_iters", 1, 1000),
            HcEpsilon = (float)json.Number("hc_eps", 0, 1),
            HashLayerCount = json.Int("num_hash_layers", 0, 1000),
            ExpertCount = json.Int("n_routed_experts", 1, 1 << 16),
            ExpertsPerToken = json.Int("num_experts_per_tok", 1, 1024),
            ExpertIntermediateSize = json.Int("moe_intermediate_size", 1, 1 << 17),
            RoutedScalingFactor = (float)json.Number("routed_scaling_factor", 1e-6, 1e6),
            SwigluLimit = (float)json.Number("swiglu_limit", 1e-6, 1e30),
            NormEpsilon = (float)json.Number("rms_norm_eps", 1e-30, 1),
            RopeTheta = json.Number("rope_theta", 1.001, 1e15),
            CompressRopeTheta = json.Number("compress_rope_theta", 1.001, 1e15),
            Yarn = ReadYarn(json),
            ContextMax = json.Int("max_position_embeddings", 1, 1 << 24), // rotary angles need positions that FP32 holds exactly (2.1)
            DSpark = dspark,
            DraftKind = dspark is not null ? DraftKind.DSpark
                : json.IntOr("num_nextn_predict_layers", 0, 0, DraftBlocksMax) > 0 ? DraftKind.Mtp : DraftKind.None,
            Fp8Tile = ReadFp8Tile(json),
            TrainedWithRounding = json.Object("quantization_config") is { } q && q.Has("scale_fmt") && q.OneOf("scale_fmt", "ue8m0") == "ue8m0",
            BosTokenId = json.Has("bos_token_id") ? json.Int("bos_token_id", 0, vocabSize - 1) : null,
            EosTokenIds = json.IntOrInts("eos_token_id", 64, 0, vocabSize - 1),
        };
        RequireConsistent(json, config);
        return config;
    }

    /// <summary>Choices of the architecture that all released models share and this family's file builds in.</summary>
    private static void RequireSupported(ConfigReader json)
    {
        json.MustBe("num_key_value_heads", 1);
        json.MustBe("n_shared_experts", 1);
        json.OneOf("scoring_func", "sqrtsoftplus");
        json.OneOf("topk_method", "noaux_tc");
        json.MustBe("norm_topk_prob", true);
        json.OneOf("hidden_act", "silu");
        json.MustBe("attention_bias", false);
        json.MustBe("tie_word_embeddings", false);
    }

    private static ImmutableArray<int> ReadRatios(ConfigReader json, int layerCount)
    {
        const string key = "compress_ratios";
        if (!json.Has(key) && json.Has("layer_types"))
        {
            throw json.Missing(key, "a list with one ratio per layer",
                "This config was written by the transformers library, which also renames the tensors: take the published checkpoint.");
        }
        return json.Ints(key, layerCount, layerCount + DraftBlocksMax, 0, 1 << 20);
    }

    private static YarnConfig? ReadYarn(ConfigReader json)
    {
        if (json.Object("rope_scaling") is not { } rope)
            return null;
        var key = rope.Has("type") ? "type" : "rope_type"; // both spellings are published
        if (rope.OneOf(key, "yarn", "default") == "default")
            return null;
        var slow = rope.Number("beta_slow", 1e-6, 1e6);
        return new YarnConfig(rope.Number("factor", 1, 1e6), rope.Number("beta_fast", slow, 1e6), slow,
            rope.Int("original_max_position_embeddings", 1, 1 << 24));
    }

    private static DSparkConfig? ReadDSpark(ConfigReader json, int vocabSize, int layerCount)
    {
        string[] keys = ["dspark_block_size", "dspark_markov_rank", "dspark_noise_token_id", "dspark_target_layer_ids"];
        return keys.Any(json.Has)
            ? new DSparkConfig(json.Int(keys[0], 1, 64), json.Int(keys[1], 1, 1 << 16), json.Int(keys[2], 0, vocabSize - 1),
                json.Ints(keys[3], 1, 64, 0, layerCount - 1))
            : null;
    }

    private static int ReadFp8Tile(ConfigReader json)
    {
        const string key = "weight_block_size";
        const int usual = 128;
        if (json.Object("quantization_config") is not { } quantization)
            return usual;
        quantization.OneOf("quant_method", "fp8");
        quantization.OneOf("fmt", "e4m3");
        if (!quantization.Has(key))
            return usual;
        var tile = quantization.Ints(key, 2, 2, 1, 1 << 16);
        return tile[0] == tile[1] ? tile[0] : throw quantization.Contradiction(key, "two equal numbers");
    }

    private static void RequireConsistent(ConfigReader json, DeepSeekV4Config c)
    {
        if (c.RopeHeadDim % 2 != 0 || c.RopeHeadDim > c.HeadDim)
            throw json.Contradiction("qk_rope_head_dim", $"an even number up to head_dim ({c.HeadDim})");
        if (c.LayersOf(AttentionKind.Selected) > 0 && c.RopeHeadDim > c.IndexHeadDim)
            throw json.Contradiction("index_head_dim", $"at least qk_rope_head_dim ({c.RopeHeadDim}), since layers of ratio {OverlapRatio} have an indexer");
        if (c.HeadCount % c.OutputGroups != 0)
            throw json.Contradiction("o_groups", $"a divisor of num_attention_heads ({c.HeadCount})");
        if (c.ExpertsPerToken > c.ExpertCount)
            throw json.Contradiction("num_experts_per_tok", $"at most n_routed_experts ({c.ExpertCount})");
        if (c.LayerCount * (29L + 6L * c.ExpertCount) > TensorCountMax)
            throw json.Contradiction("n_routed_experts", $"small enough for {TensorCountMax} tensors in {c.LayerCount} layers");
    }
}

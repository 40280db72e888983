// Which tensors a DeepSeek-V4 model consists of (specification deepseek-v4, 4.1 to 4.3), found in a checkpoint.
//
// Reads as the tables of 4.2: each method names the tensors of one part with their shapes and builds its record. Storage is
// taken from the tensors: unquantised, FP8 in tiles, FP4 per 32 columns, in any mixture. The draft module is counted from
// the mtp.N tensors, since published configs disagree with their weights about it.
// Holds no state. Invariant: weights are returned only if every tensor of the checkpoint is accounted for.
using System.Collections.Immutable;
using System.Text.RegularExpressions;
using Inference.Backends;
using Inference.Runtime.Weights;
using static Inference.Runtime.Models.DeepSeekV4Weights;

namespace Inference.Runtime.Models;

/// <summary>Finds and checks the weights of a DeepSeek-V4 model.</summary>
public static partial class DeepSeekV4Checkpoint
{
    private const int DraftBlocksMax = 64;

    /// <summary>Finds all weights of the configured model.</summary>
    /// <exception cref="CheckpointException">Tensors are missing, unexpected or wrong: all findings in one error.</exception>
    /// <exception cref="ModelConfigException">The weights hold a DSpark module that the config does not describe.</exception>
    public static DeepSeekV4Weights Bind(DeepSeekV4Config config, Checkpoint checkpoint)
    {
        var draftBlocks = CountDraftBlocks(checkpoint);
        config = config with { DraftKind = FindDraftKind(config, checkpoint, draftBlocks) };
        var binder = new WeightBinder(checkpoint) { Fp8Tile = config.Fp8Tile };
        var weights = Describe(config, draftBlocks, binder);
        binder.Finish(name => Ignorable().IsMatch(name), WayOut(checkpoint));
        return weights with { All = [.. binder.Bound] };
    }

    /// <summary>What a checkpoint of the config holds, in the order of the table; of DSpark, as many blocks as compress_ratios goes on after the backbone.</summary>
    internal static IReadOnlyList<WeightNeed> Needs(DeepSeekV4Config config)
    {
        var list = new WeightList();
        Describe(config, Math.Max(1, config.CompressRatios.Length - config.LayerCount), list);
        return list.Needs;
    }

    private static DeepSeekV4Weights Describe(DeepSeekV4Config config, int draftBlocks, IWeightSource source)
    {
        var part = new Parts(config, source);
        return new DeepSeekV4Weights
        {
            Config = config,
            Embed = source.Float("embed.weight", config.VocabSize, config.HiddenSize),
            HeadConnection = part.HeadConnection(""),
            Norm = source.Float("norm.weight", config.HiddenSize),
            Head = source.Float("head.weight", config.VocabSize, config.HiddenSize),
            Layers = [.. Enumerable.Range(0, config.LayerCount).Select(l => part.Layer($"layers.{l}.", config.CompressRatios[l], config.IsHashRouted(l)))],
            MtpBlock = config.DraftKind == DraftKind.Mtp ? part.Mtp() : null,
            DSparkModule = config.DraftKind == DraftKind.DSpark ? part.DSpark(draftBlocks) : null,
            All = [],
        };
    }

    /// <summary>Counts parameters and bytes.</summary>
    public static ModelSummary Summarise(DeepSeekV4Weights weights)
    {
        var config = weights.Config;
        long backbone = 0, routed = 0, draft = 0;
        foreach (var weight in weights.All.Where(w => !ReferenceEquals(w, weights.Embed) && w.Scheme.Element.IsFloat()))
        {
            if (weight.Name.StartsWith("mtp.", StringComparison.Ordinal))
                draft += weight.ElementCount;
            else if (weight.Name.Contains(".ffn.experts.", StringComparison.Ordinal))
                routed += weight.ElementCount;
            else
                backbone += weight.ElementCount;
        }
        var tensors = weights.All.Select(w => w.Weight).Concat(weights.All.Select(w => w.Scale).OfType<TensorView>());
        return new ModelSummary(DeepSeekV4Config.ModelType,
            ParameterCount: weights.Embed.ElementCount + backbone + routed,
            ActiveParameterCount: backbone + routed / config.ExpertCount * config.ExpertsPerToken,
            DraftParameterCount: draft,
            Storage: ModelSummary.StorageOf(tensors));
    }

    /// <summary>Blocks mtp.0, mtp.1, ... without a gap; a later number is an unexpected tensor.</summary>
    private static int CountDraftBlocks(Checkpoint checkpoint)
    {
        var blocks = new HashSet<int>();
        foreach (var name in checkpoint.Tensors.Keys)
        {
            if (DraftName().Match(name) is { Success: true } match)
                blocks.Add(int.Parse(match.Groups[1].ValueSpan, System.Globalization.CultureInfo.InvariantCulture));
        }
        return Enumerable.Range(0, DraftBlocksMax).TakeWhile(blocks.Contains).Count();
    }

    private static DraftKind FindDraftKind(DeepSeekV4Config config, Checkpoint checkpoint, int blocks)
    {
        if (blocks == 0)
            return DraftKind.None;
        var isDSpark = blocks > 1 || checkpoint.TryGet("mtp.0.main_proj.weight", out _);
        if (!isDSpark)
            return DraftKind.Mtp;
        if (config.DSpark is null)
        {
            throw new ModelConfigException(Path.Combine(checkpoint.Location, ModelFolder.ConfigFileName), "dspark_target_layer_ids", null,
                $"a list of backbone layers, since the weights hold a DSpark module of {blocks} blocks (mtp.*)");
        }
        return DraftKind.DSpark;
    }

    private static string WayOut(Checkpoint checkpoint) => checkpoint.Tensors.ContainsKey("model.embed_tokens.weight")
        ? "The names are those that the transformers library writes: take the published checkpoint."
        : "Take config.json and weights of the same release.";

    /// <summary>The parts of the table, each with its prefix.</summary>
    private sealed class Parts(DeepSeekV4Config c, IWeightSource bind)
    {
        public Layer Layer(string p, int ratio, bool hashRouted) => new(
            Site(p + "hc_attn", c.HcCoefficients, 3), bind.Float(p + "attn_norm.weight", c.HiddenSize), Attention(p + "attn.", ratio),
            Site(p + "hc_ffn", c.HcCoefficients, 3), bind.Float(p + "ffn_norm.weight", c.HiddenSize), Moe(p + "ffn.", hashRouted));

        public HyperConnection HeadConnection(string p) => Site(p + "hc_head", c.HcMult, 1);

        public Mtp Mtp()
        {
            const string p = "mtp.0.";
            return new Mtp(bind.Matrix(p + "e_proj", c.HiddenSize, c.HiddenSize), bind.Matrix(p + "h_proj", c.HiddenSize, c.HiddenSize),
                bind.Float(p + "enorm.weight", c.HiddenSize), bind.Float(p + "hnorm.weight", c.HiddenSize),
                bind.Float(p + "norm.weight", c.HiddenSize), HeadConnection(p), Layer(p, ratio: 0, hashRouted: false));
        }

        public DSpark DSpark(int blocks)
        {
            var spark = c.DSpark!;
            const string first = "mtp.0.";
            var last = $"mtp.{blocks - 1}.";
            return new DSpark(
                bind.Matrix(first + "main_proj", c.HiddenSize, (long)spark.TargetLayers.Length * c.HiddenSize),
                bind.Float(first + "main_norm.weight", c.HiddenSize),
                [.. Enumerable.Range(0, blocks).Select(s => Layer($"mtp.{s}.", ratio: 0, hashRouted: false))],
                bind.Float(last + "norm.weight", c.HiddenSize), HeadConnection(last),
                bind.Float(last + "markov_head.markov_w1.weight", c.VocabSize, spark.MarkovRank),
                bind.Float(last + "markov_head.markov_w2.weight", c.VocabSize, spark.MarkovRank),
                bind.Float(last + "confidence_head.proj.weight", 1, c.HiddenSize + spark.MarkovRank));
        }

        private HyperConnection Site(string p, int coefficients, int scales) => new(
            bind.Float(p + "_fn", coefficients, c.StreamsWidth), bind.Float(p + "_base", coefficients), bind.Float(p + "_scale", scales));

        private Attention Attention(string p, int ratio) => new(
            bind.Matrix(p + "wq_a", c.QueryLowRank, c.HiddenSize), bind.Float(p + "q_norm.weight", c.QueryLowRank),
            bind.Matrix(p + "wq_b", (long)c.HeadCount * c.HeadDim, c.QueryLowRank),
            bind.Matrix(p + "wkv", c.HeadDim, c.HiddenSize), bind.Float(p + "kv_norm.weight", c.HeadDim),
            bind.Matrix(p + "wo_a", (long)c.OutputGroups * c.OutputLowRank, c.OutputGroupWidth),
            bind.Matrix(p + "wo_b", c.HiddenSize, (long)c.OutputGroups * c.OutputLowRank),
            bind.Float(p + "attn_sink", c.HeadCount),
            ratio > 0 ? Compressor(p + "compressor.", ratio, c.HeadDim) : null,
            ratio == DeepSeekV4Config.OverlapRatio ? Indexer(p + "indexer.") : null);

        private Compressor Compressor(string p, int ratio, int width)
        {
            var channels = ratio == DeepSeekV4Config.OverlapRatio ? 2L * width : width;
            return new Compressor(bind.Float(p + "ape", ratio, channels), bind.Float(p + "wkv.weight", channels, c.HiddenSize),
                bind.Float(p + "wgate.weight", channels, c.HiddenSize), bind.Float(p + "norm.weight", width));
        }

        private Indexer Indexer(string p) => new(
            bind.Matrix(p + "wq_b", (long)c.IndexHeadCount * c.IndexHeadDim, c.QueryLowRank),
            bind.Float(p + "weights_proj.weight", c.IndexHeadCount, c.HiddenSize),
            Compressor(p + "compressor.", DeepSeekV4Config.OverlapRatio, c.IndexHeadDim));

        private Moe Moe(string p, bool hashRouted) => new(
            bind.Float(p + "gate.weight", c.ExpertCount, c.HiddenSize),
            hashRouted ? null : bind.Float(p + "gate.bias", c.ExpertCount),
            hashRouted ? bind.Integers(p + "gate.tid2eid", c.VocabSize, c.ExpertsPerToken) : null,
            [.. Enumerable.Range(0, c.ExpertCount).Select(e => Expert($"{p}experts.{e}.", c.ExpertIntermediateSize))],
            Expert(p + "shared_experts.", c.SharedIntermediateSize));

        private Expert Expert(string p, int inner) => new(
            bind.Matrix(p + "w1", inner, c.HiddenSize), bind.Matrix(p + "w3", inner, c.HiddenSize), bind.Matrix(p + "w2", c.HiddenSize, inner));
    }

    [GeneratedRegex(@"^mtp\.([0-9]{1,2})\.", RegexOptions.CultureInvariant)]
    private static partial Regex DraftName();

    /// <summary>Copies of embedding and head that some repacks keep under the draft blocks, and precomputed rotary tables.</summary>
    [GeneratedRegex(@"^mtp\.[0-9]{1,2}\.(embed|head)\.(weight|scale)$|(^|\.)(inv_freq|freqs_cis)$", RegexOptions.CultureInvariant)]
    private static partial Regex Ignorable();
}

using System.Text.Json;

namespace Inference.Runtime.Models;

public enum DraftKind { None, Mtp, DSpark }

public sealed record YarnConfig(double Factor, double BetaFast, double BetaSlow, int OriginalContext);

// Interim: the names the model file uses. The strict reader (typed errors, ranges) replaces Temp; keep the property names.
public sealed record DeepSeekV4Config
{
    public int VocabSize, HiddenSize, LayerCount, HeadCount, HeadDim, RopeHeadDim, QueryLowRank, OutputGroups, OutputLowRank, SlidingWindow;
    public int IndexHeadCount, IndexHeadDim, IndexTopK, HcMult, HcSinkhornIterations, HashLayerCount, ExpertCount, ExpertsPerToken, ExpertIntermediateSize, SharedIntermediateSize, ContextMax;
    public float HcEpsilon, NormEpsilon, RoutedScalingFactor, SwigluLimit;
    public double RopeTheta, CompressRopeTheta;
    public int[] CompressRatios = [];
    public YarnConfig? Yarn;
    public DraftKind DraftKind;
    public static DeepSeekV4Config Temp(string folder)
    {
        using var doc = JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "config.json")));
        var r = doc.RootElement; int I(string n) => r.GetProperty(n).GetInt32(); double D(string n) => r.GetProperty(n).GetDouble();
        var y = r.GetProperty("rope_scaling");
        return new DeepSeekV4Config
        {
            VocabSize = I("vocab_size"), HiddenSize = I("hidden_size"), LayerCount = I("num_hidden_layers"), HeadCount = I("num_attention_heads"), HeadDim = I("head_dim"),
            RopeHeadDim = I("qk_rope_head_dim"), QueryLowRank = I("q_lora_rank"), OutputGroups = I("o_groups"), OutputLowRank = I("o_lora_rank"), SlidingWindow = I("sliding_window"),
            IndexHeadCount = I("index_n_heads"), IndexHeadDim = I("index_head_dim"), IndexTopK = I("index_topk"), HcMult = I("hc_mult"), HcSinkhornIterations = I("hc_sinkhorn_iters"),
            HashLayerCount = I("num_hash_layers"), ExpertCount = I("n_routed_experts"), ExpertsPerToken = I("num_experts_per_tok"), ExpertIntermediateSize = I("moe_intermediate_size"),
            SharedIntermediateSize = I("moe_intermediate_size"), ContextMax = I("max_position_embeddings"), HcEpsilon = (float)D("hc_eps"), NormEpsilon = (float)D("rms_norm_eps"),
            RoutedScalingFactor = (float)D("routed_scaling_factor"), SwigluLimit = (float)D("swiglu_limit"), RopeTheta = D("rope_theta"), CompressRopeTheta = D("compress_rope_theta"),
            CompressRatios = [.. r.GetProperty("compress_ratios").EnumerateArray().Select(e => e.GetInt32())],
            Yarn = new YarnConfig(y.GetProperty("factor").GetDouble(), y.GetProperty("beta_fast").GetDouble(), y.GetProperty("beta_slow").GetDouble(), y.GetProperty("original_max_position_embeddings").GetInt32()),
            DraftKind = r.TryGetProperty("dspark_block_size", out _) ? DraftKind.DSpark : I("num_nextn_predict_layers") > 0 ? DraftKind.Mtp : DraftKind.None,
        };
    }
}

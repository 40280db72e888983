// Tiny DeepSeek-V4 checkpoints with computed weights (architecture description, 9.1 and 9.2): every value follows from the tensor's
// name and index, so that goldens made elsewhere hold here. Writes a folder (config.json, model.safetensors) and keeps nothing.
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Backends;

namespace Inference.Testing;

/// <summary>Sizes of a tiny model; the defaults are those of configuration T-A.</summary>
public sealed record TinyDeepSeekV4
{
    public string Name { get; init; } = "T-A";
    public int Vocab { get; init; } = 96;
    public int Hidden { get; init; } = 32;
    public IReadOnlyList<int> Ratios { get; init; } = [0, 0, 4, 16, 4, 16];
    public int Heads { get; init; } = 4;
    public int HeadDim { get; init; } = 24;
    public int RopeDim { get; init; } = 8;
    public int QueryLowRank { get; init; } = 16;
    public int Groups { get; init; } = 2;
    public int OutputLowRank { get; init; } = 12;
    public int IndexHeads { get; init; } = 8;
    public int IndexDim { get; init; } = 16;
    public int IndexTopK { get; init; } = 3;
    public int Window { get; init; } = 8;
    public int Experts { get; init; } = 8;
    public int ExpertsPerToken { get; init; } = 2;
    public int Intermediate { get; init; } = 16;
    public int HashLayers { get; init; } = 3;
    public float RouteScale { get; init; } = 1.5f;
    public float SwigluLimit { get; init; } = 0.5f;
    /// <summary>Draft stages: 1 is an MTP block, 3 a DSpark module, 0 none.</summary>
    public int DraftStages { get; init; } = 1;

    /// <summary>How the matrices that the releases quantise are stored.</summary>
    public TinyStorage Storage { get; init; } = TinyStorage.F32;

    /// <summary>Every mechanism, exact arithmetic.</summary>
    public static TinyDeepSeekV4 TA { get; } = new();

    /// <summary>T-A with widths that the cache rounding needs.</summary>
    public static TinyDeepSeekV4 TQ { get; } = new() { Name = "T-Q", HeadDim = 72, IndexDim = 32 };

    /// <summary>Ratio 128 and window 128.</summary>
    public static TinyDeepSeekV4 TD { get; } = new() { Name = "T-D", Ratios = [128, 128, 4, 128], Window = 128 };

    /// <summary>T-A with a DSpark draft module.</summary>
    public static TinyDeepSeekV4 TS { get; } = new() { Name = "T-S", DraftStages = 3 };

    /// <summary>Window only.</summary>
    public static TinyDeepSeekV4 TW { get; } = new() { Name = "T-W", Ratios = [0, 0, 0, 0, 0, 0] };

    /// <summary>Ratio 4 only.</summary>
    public static TinyDeepSeekV4 TH { get; } = new() { Name = "T-H", Ratios = [4, 4] };

    /// <summary>Pro-like: no sliding-only layer, more heads, groups and experts.</summary>
    public static TinyDeepSeekV4 TP { get; } = new()
    {
        Name = "T-P",
        Ratios = [16, 16, 4, 16],
        Experts = 12,
        ExpertsPerToken = 6,
        RouteScale = 2.5f,
        Groups = 4,
        Heads = 8,
    };

    /// <summary>Every inner dimension a multiple of 128, for quantised matrices.</summary>
    public static TinyDeepSeekV4 TF { get; } = new()
    {
        Name = "T-F",
        Hidden = 128,
        QueryLowRank = 128,
        Intermediate = 128,
        HeadDim = 192,
        RopeDim = 64,
        OutputLowRank = 128,
        IndexHeads = 2,
        IndexDim = 128,
        Experts = 4,
        ExpertsPerToken = 2,
    };

    /// <summary>Token i of the goldens' sequence for this configuration.</summary>
    public int Token(int i) => Name == "T-D" ? (i * i + 3 * i + 1 + i / 7) % 96 : (i * i + 3 * i + 1) % 96;

    public int[] Tokens(int count) => [.. Enumerable.Range(0, count).Select(Token)];

    /// <summary>Writes config.json and model.safetensors into a folder.</summary>
    /// <param name="dequantised">Write the values that the quantised matrices mean, as F32.</param>
    public string Write(string folder, bool dequantised = false)
    {
        Directory.CreateDirectory(folder);
        File.WriteAllText(Path.Combine(folder, "config.json"), ConfigJson().ToJsonString(new JsonSerializerOptions { WriteIndented = true }));
        var checkpoint = Checkpoint();
        (dequantised ? Dequantised(checkpoint) : checkpoint).Save(folder);
        return folder;
    }

    /// <summary>The config in the release's keys.</summary>
    public JsonObject ConfigJson()
    {
        var config = new JsonObject
        {
            ["architectures"] = new JsonArray("DeepseekV4ForCausalLM"),
            ["model_type"] = "deepseek_v4",
            ["vocab_size"] = Vocab,
            ["hidden_size"] = Hidden,
            ["num_hidden_layers"] = Ratios.Count,
            ["num_attention_heads"] = Heads,
            ["num_key_value_heads"] = 1,
            ["head_dim"] = HeadDim,
            ["qk_rope_head_dim"] = RopeDim,
            ["q_lora_rank"] = QueryLowRank,
            ["o_groups"] = Groups,
            ["o_lora_rank"] = OutputLowRank,
            ["sliding_window"] = Window,
            ["index_n_heads"] = IndexHeads,
            ["index_head_dim"] = IndexDim,
            ["index_topk"] = IndexTopK,
            ["compress_ratios"] = new JsonArray([.. Ratios.Concat(Enumerable.Repeat(0, DraftStages)).Select(r => (JsonNode)r)]),
            ["hc_mult"] = 4,
            ["hc_sinkhorn_iters"] = 20,
            ["hc_eps"] = 1e-6,
            ["num_hash_layers"] = HashLayers,
            ["n_routed_experts"] = Experts,
            ["n_shared_experts"] = 1,
            ["num_experts_per_tok"] = ExpertsPerToken,
            ["moe_intermediate_size"] = Intermediate,
            ["scoring_func"] = "sqrtsoftplus",
            ["topk_method"] = "noaux_tc",
            ["norm_topk_prob"] = true,
            ["routed_scaling_factor"] = RouteScale,
            ["swiglu_limit"] = SwigluLimit,
            ["hidden_act"] = "silu",
            ["rms_norm_eps"] = 1e-6,
            ["rope_theta"] = 10000.0,
            ["compress_rope_theta"] = 160000.0,
            ["rope_scaling"] = new JsonObject
            {
                ["type"] = "yarn",
                ["factor"] = 16,
                ["beta_fast"] = 32,
                ["beta_slow"] = 1,
                ["original_max_position_embeddings"] = 64,
            },
            ["max_position_embeddings"] = 1048576,
            ["num_nextn_predict_layers"] = DraftStages > 0 ? 1 : 0,
            ["tie_word_embeddings"] = false,
            ["bos_token_id"] = 0,
            ["eos_token_id"] = 1,
            ["torch_dtype"] = "float32",
        };
        if (DraftStages == 3)
        {
            config["dspark_block_size"] = 5;
            config["dspark_markov_rank"] = 8;
            config["dspark_noise_token_id"] = 95;
            config["dspark_target_layer_ids"] = new JsonArray(3, 4, 5);
        }
        return config;
    }

    /// <summary>All tensors in the release's names.</summary>
    public SafetensorsWriter Checkpoint()
    {
        var w = new SafetensorsWriter();
        Raw(w, "embed.weight", Vocab, Hidden);
        Raw(w, "head.weight", Vocab, Hidden);
        Raw(w, "norm.weight", Hidden);
        Collapse(w, "");
        for (int l = 0; l < Ratios.Count; l++) Layer(w, $"layers.{l}.", Ratios[l], l < HashLayers ? l : -1);
        for (int s = 0; s < DraftStages; s++) Layer(w, $"mtp.{s}.", 0, hashLayer: -1);
        if (DraftStages == 1)
        {
            Matrix(w, "mtp.0.e_proj", Hidden, Hidden);
            Matrix(w, "mtp.0.h_proj", Hidden, Hidden);
            foreach (string norm in (string[])["enorm", "hnorm", "norm"]) Raw(w, $"mtp.0.{norm}.weight", Hidden);
            Collapse(w, "mtp.0.");
        }
        if (DraftStages == 3)
        {
            Matrix(w, "mtp.0.main_proj", Hidden, 3 * Hidden);
            Raw(w, "mtp.0.main_norm.weight", Hidden);
            Raw(w, "mtp.2.norm.weight", Hidden);
            Collapse(w, "mtp.2.");
            Raw(w, "mtp.2.markov_head.markov_w1.weight", Vocab, 8);
            Raw(w, "mtp.2.markov_head.markov_w2.weight", Vocab, 8);
            Raw(w, "mtp.2.confidence_head.proj.weight", 1, Hidden + 8);
        }
        return w;
    }

    // Every quantised matrix of a checkpoint as F32, decoded element by element.
    private static SafetensorsWriter Dequantised(SafetensorsWriter quantised)
    {
        using var source = Inference.Runtime.Weights.Checkpoint.FromImage("quantised", quantised.ToArray());
        var w = new SafetensorsWriter();
        foreach (var (name, view) in source.Tensors)
        {
            if (name.EndsWith(".scale", StringComparison.Ordinal)) continue;
            if (source.TryGet(name[..^".weight".Length] + ".scale", out var scale) && view.DType is DType.F8E4M3 or DType.I8)
                w.AddF32(name, [view.Shape[0], view.Shape[1] * (view.DType == DType.I8 ? 2 : 1)], Decode(view, scale));
            else
                w.Add(name, view.DType, [.. view.Shape], view.Bytes.ToArray());
        }
        return w;
    }

    private static float[] Decode(Inference.Runtime.Weights.TensorView weight, Inference.Runtime.Weights.TensorView scale)
    {
        bool fp4 = weight.DType == DType.I8;
        int rows = (int)weight.Shape[0], columns = (int)weight.Shape[1] * (fp4 ? 2 : 1), scaleColumns = (int)scale.Shape[1];
        var values = new float[rows * columns];
        var bytes = weight.Bytes;
        for (int i = 0; i < values.Length; i++)
        {
            int row = i / columns, column = i % columns;
            int tile = fp4 ? row * scaleColumns + column / 32 : row / 128 * scaleColumns + column / 128;
            float factor = scale.DType == DType.F32 ? scale.AsSpan<float>()[tile] : Numerics.E8M0ToSingle(scale.Bytes[tile]);
            values[i] = factor * (fp4 ? Numerics.E2M1ToSingle(bytes[i / 2] >> (i % 2 * 4) & 15) : Numerics.E4M3ToSingle(bytes[i]));
        }
        return values;
    }

    private void Layer(SafetensorsWriter w, string p, int ratio, int hashLayer)
    {
        foreach (string site in (string[])["attn", "ffn"])
        {
            Raw(w, $"{p}{site}_norm.weight", Hidden);
            Raw(w, $"{p}hc_{site}_fn", 24, 4 * Hidden);
            Raw(w, $"{p}hc_{site}_base", 24);
            Raw(w, $"{p}hc_{site}_scale", 3);
        }
        Raw(w, p + "attn.attn_sink", Heads);
        Matrix(w, p + "attn.wq_a", QueryLowRank, Hidden);
        Raw(w, p + "attn.q_norm.weight", QueryLowRank);
        Matrix(w, p + "attn.wq_b", Heads * HeadDim, QueryLowRank);
        Matrix(w, p + "attn.wkv", HeadDim, Hidden);
        Raw(w, p + "attn.kv_norm.weight", HeadDim);
        Matrix(w, p + "attn.wo_a", Groups * OutputLowRank, Heads * HeadDim / Groups);
        Matrix(w, p + "attn.wo_b", Hidden, Groups * OutputLowRank);
        if (ratio > 0) Compressor(w, p + "attn.compressor.", ratio, HeadDim);
        if (ratio == 4)
        {
            Matrix(w, p + "attn.indexer.wq_b", IndexHeads * IndexDim, QueryLowRank);
            Raw(w, p + "attn.indexer.weights_proj.weight", IndexHeads, Hidden);
            Compressor(w, p + "attn.indexer.compressor.", ratio, IndexDim);
        }
        Raw(w, p + "ffn.gate.weight", Experts, Hidden);
        if (hashLayer < 0) Raw(w, p + "ffn.gate.bias", Experts);
        else HashTable(w, p + "ffn.gate.tid2eid", hashLayer);
        for (int e = 0; e < Experts; e++) Expert(w, $"{p}ffn.experts.{e}.", routed: true);
        Expert(w, p + "ffn.shared_experts.", routed: false);
    }

    private void Compressor(SafetensorsWriter w, string p, int ratio, int width)
    {
        int channels = ratio == 4 ? 2 * width : width;
        Raw(w, p + "ape", ratio, channels);
        Raw(w, p + "wkv.weight", channels, Hidden);
        Raw(w, p + "wgate.weight", channels, Hidden);
        Raw(w, p + "norm.weight", width);
    }

    private void Expert(SafetensorsWriter w, string p, bool routed)
    {
        Matrix(w, p + "w1", Intermediate, Hidden, routed);
        Matrix(w, p + "w2", Hidden, Intermediate, routed);
        Matrix(w, p + "w3", Intermediate, Hidden, routed);
    }

    private void Collapse(SafetensorsWriter w, string p)
    {
        Raw(w, p + "hc_head_fn", 4, 4 * Hidden);
        Raw(w, p + "hc_head_base", 4);
        Raw(w, p + "hc_head_scale", 1);
    }

    private void HashTable(SafetensorsWriter w, string name, int layer)
    {
        var table = new long[Vocab * ExpertsPerToken];
        for (int i = 0; i < table.Length; i++)
            table[i] = (7 * (i / ExpertsPerToken) + 3 * (i % ExpertsPerToken) + layer) % Experts;
        w.AddI64(name, [Vocab, ExpertsPerToken], table);
    }

    // A matrix that the releases quantise.
    private void Matrix(SafetensorsWriter w, string prefix, int rows, int columns, bool routed = false)
    {
        float[] values = Values(prefix + ".weight", rows * columns);
        switch (Storage)
        {
            case TinyStorage.F32: w.AddF32(prefix + ".weight", [rows, columns], values); break;
            case TinyStorage.BF16: w.AddBF16(prefix + ".weight", [rows, columns], values); break;
            case TinyStorage.Fp8Fp4 when routed: w.AddFp4(prefix, rows, columns, values); break;
            case TinyStorage.Fp8F32Scales: w.AddFp8Tiles(prefix, rows, columns, values, DType.F32); break;
            default: w.AddFp8Tiles(prefix, rows, columns, values); break;
        }
    }

    private static void Raw(SafetensorsWriter w, string name, params long[] shape) =>
        w.AddF32(name, shape, Values(name, (int)shape.Aggregate(1L, (a, b) => a * b)));

    /// <summary>The values of a tensor by its name (9.2).</summary>
    public static float[] Values(string name, int count)
    {
        uint hash = 2166136261;
        foreach (byte b in Encoding.UTF8.GetBytes(name)) hash = (hash ^ b) * 16777619;
        var (scale, offset) = Rule(name);
        var values = new float[count];
        for (int i = 0; i < count; i++)
        {
            uint x = unchecked((uint)i * 0x9E3779B9 + hash);
            x ^= x >> 16;
            x *= 0x85EBCA6B;
            x ^= x >> 13;
            x *= 0xC2B2AE35;
            x ^= x >> 16;
            double u = 2 * ((x >> 8) / 16777216.0 - 0.5);
            values[i] = (float)(offset + scale * u);
        }
        return values;
    }

    private static (double Scale, double Offset) Rule(string name)
    {
        string last = name[(name.LastIndexOf('.') + 1)..];
        if (name.EndsWith("norm.weight", StringComparison.Ordinal)) return (0.25, 1);
        if (name == "embed.weight") return (1, 0);
        if (last == "ape") return (0.5, 0);
        if (last == "attn_sink") return (1, 0);
        if (last.StartsWith("hc_", StringComparison.Ordinal) && last.EndsWith("_scale", StringComparison.Ordinal)) return (0.5, 1);
        if (last.StartsWith("hc_", StringComparison.Ordinal) && last.EndsWith("_base", StringComparison.Ordinal)) return (0.5, 0);
        if (name.EndsWith("gate.bias", StringComparison.Ordinal)) return (0.25, 0);
        if (name.EndsWith("gate.weight", StringComparison.Ordinal)) return (0.5, 0);
        return (0.25, 0);
    }
}

/// <summary>Storage of the matrices that the releases quantise.</summary>
public enum TinyStorage
{
    F32,
    BF16,
    /// <summary>FP8 tiles, routed experts FP4; E8M0 scales (releases).</summary>
    Fp8Fp4,
    /// <summary>FP8 tiles everywhere, F32 scales (Base checkpoints).</summary>
    Fp8F32Scales,
}

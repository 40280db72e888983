using System.Text;
using System.Text.Json.Nodes;
using Inference.Runtime.Models;

namespace Inference.Testing;

/// <summary>Configs with the numbers of the published models (specification deepseek-v4 1.2, 1.3).</summary>
public static class PublishedConfigs
{
    public static JsonObject Flash() => Common(43, FlashRatios(1), """
        {"hidden_size":4096,"num_attention_heads":64,"q_lora_rank":1024,"o_groups":8,"index_topk":512,"n_routed_experts":256,
         "moe_intermediate_size":2048,"routed_scaling_factor":1.5}
        """);

    /// <summary>The 0731 release: three DSpark blocks instead of the MTP block.</summary>
    public static JsonObject Flash0731() => WithDSpark(Flash(), FlashRatios(3), 40);

    public static JsonObject Pro() => Common(61, ProRatios(1), """
        {"hidden_size":7168,"num_attention_heads":128,"q_lora_rank":1536,"o_groups":16,"index_topk":1024,"n_routed_experts":384,
         "moe_intermediate_size":3072,"routed_scaling_factor":2.5}
        """);

    public static JsonObject ProDSpark() => WithDSpark(Pro(), ProRatios(3), 58);

    /// <summary>As a loader reads it.</summary>
    public static DeepSeekV4Config Parsed(JsonObject config) => DeepSeekV4Config.Parse("config.json", Encoding.UTF8.GetBytes(config.ToJsonString()));

    // Flash: two sliding layers, then 4, 128, 4, ...; Pro: two of 128, then 4, 128, 4, ...; a zero per draft block.
    private static int[] FlashRatios(int drafts) => [0, 0, .. Enumerable.Range(2, 41).Select(l => l % 2 == 0 ? 4 : 128), .. new int[drafts]];

    private static int[] ProRatios(int drafts) => [128, 128, .. Enumerable.Range(2, 59).Select(l => l % 2 == 0 ? 4 : 128), .. new int[drafts]];

    private static JsonObject WithDSpark(JsonObject config, int[] ratios, int firstTarget)
    {
        config["compress_ratios"] = new JsonArray([.. ratios.Select(r => (JsonNode)r)]);
        config["dspark_block_size"] = 5;
        config["dspark_markov_rank"] = 256;
        config["dspark_noise_token_id"] = 128799;
        config["dspark_target_layer_ids"] = new JsonArray(firstTarget, firstTarget + 1, firstTarget + 2);
        return config;
    }

    private static JsonObject Common(int layers, int[] ratios, string differences)
    {
        var config = JsonNode.Parse("""
            {"architectures":["DeepseekV4ForCausalLM"],"model_type":"deepseek_v4","vocab_size":129280,"num_key_value_heads":1,"head_dim":512,
             "qk_rope_head_dim":64,"o_lora_rank":1024,"sliding_window":128,"index_n_heads":64,"index_head_dim":128,
             "hc_mult":4,"hc_sinkhorn_iters":20,"hc_eps":1e-6,"num_hash_layers":3,"n_shared_experts":1,"num_experts_per_tok":6,
             "scoring_func":"sqrtsoftplus","topk_method":"noaux_tc","norm_topk_prob":true,"swiglu_limit":10.0,"hidden_act":"silu",
             "rms_norm_eps":1e-6,"rope_theta":10000,"compress_rope_theta":160000,
             "rope_scaling":{"type":"yarn","factor":16,"beta_fast":32,"beta_slow":1,"original_max_position_embeddings":65536},
             "max_position_embeddings":1048576,"num_nextn_predict_layers":1,"attention_bias":false,"attention_dropout":0.0,
             "tie_word_embeddings":false,"bos_token_id":0,"eos_token_id":1,"initializer_range":0.02,"torch_dtype":"bfloat16","expert_dtype":"fp4",
             "quantization_config":{"quant_method":"fp8","fmt":"e4m3","scale_fmt":"ue8m0","activation_scheme":"dynamic","weight_block_size":[128,128]}}
            """)!.AsObject();
        config["num_hidden_layers"] = layers;
        config["compress_ratios"] = new JsonArray([.. ratios.Select(r => (JsonNode)r)]);
        foreach (var (key, value) in JsonNode.Parse(differences)!.AsObject())
            config[key] = value!.DeepClone();
        return config;
    }
}

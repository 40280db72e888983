using System.Text;
using System.Text.Json.Nodes;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class DeepSeekV4ConfigTests
{
    private static ModelConfigException Refused(Action<JsonObject> change)
    {
        var config = PublishedConfigs.Flash();
        change(config);
        return Assert.Throws<ModelConfigException>(() => PublishedConfigs.Parsed(config));
    }

    [Fact]
    public void Flash_is_read_with_its_layer_kinds()
    {
        var c = PublishedConfigs.Parsed(PublishedConfigs.Flash());
        Assert.Equal((129280, 4096, 43, 64, 512, 64), (c.VocabSize, c.HiddenSize, c.LayerCount, c.HeadCount, c.HeadDim, c.RopeHeadDim));
        Assert.Equal((1024, 8, 1024, 128), (c.QueryLowRank, c.OutputGroups, c.OutputLowRank, c.SlidingWindow));
        Assert.Equal((64, 128, 512), (c.IndexHeadCount, c.IndexHeadDim, c.IndexTopK));
        Assert.Equal((4, 20, 1e-6f, 3), (c.HcMult, c.HcSinkhornIterations, c.HcEpsilon, c.HashLayerCount));
        Assert.Equal((256, 6, 2048, 1.5f, 10f), (c.ExpertCount, c.ExpertsPerToken, c.ExpertIntermediateSize, c.RoutedScalingFactor, c.SwigluLimit));
        Assert.Equal((1e-6f, 10000d, 160000d, 1048576), (c.NormEpsilon, c.RopeTheta, c.CompressRopeTheta, c.ContextMax));
        Assert.Equal(new YarnConfig(16, 32, 1, 65536), c.Yarn);
        Assert.Equal(128, c.Fp8Tile);
        Assert.Equal(0, c.BosTokenId);
        Assert.Equal([1], c.EosTokenIds);
        Assert.Equal(DraftKind.Mtp, c.DraftKind);
        Assert.Null(c.DSpark);

        Assert.Equal((2, 21, 20), (c.LayersOf(AttentionKind.Sliding), c.LayersOf(AttentionKind.Selected), c.LayersOf(AttentionKind.Compressed)));
        Assert.Equal(AttentionKind.Sliding, c.Attention(1));
        Assert.Equal(AttentionKind.Selected, c.Attention(2));
        Assert.Equal(AttentionKind.Compressed, c.Attention(41));
        Assert.Equal(AttentionKind.Selected, c.Attention(42));
        Assert.True(c.IsHashRouted(2));
        Assert.False(c.IsHashRouted(3));
    }

    [Fact]
    public void Derived_sizes_are_those_of_the_specification()
    {
        var flash = PublishedConfigs.Parsed(PublishedConfigs.Flash());
        var pro = PublishedConfigs.Parsed(PublishedConfigs.Pro());
        Assert.Equal((4096, 4096), (flash.OutputGroupWidth, pro.OutputGroupWidth));
        Assert.Equal((16384, 28672), (flash.StreamsWidth, pro.StreamsWidth));
        Assert.Equal((24, 448, 2048), (flash.HcCoefficients, flash.NopeHeadDim, flash.SharedIntermediateSize));
        Assert.Equal((0, 30, 31), (pro.LayersOf(AttentionKind.Sliding), pro.LayersOf(AttentionKind.Selected), pro.LayersOf(AttentionKind.Compressed)));
    }

    [Fact]
    public void DSpark_keys_are_read_and_longer_ratio_lists_accepted()
    {
        var c = PublishedConfigs.Parsed(PublishedConfigs.Flash0731());
        Assert.Equal(46, c.CompressRatios.Length);
        Assert.Equal(DraftKind.DSpark, c.DraftKind);
        Assert.Equal((5, 256, 128799), (c.DSpark!.BlockSize, c.DSpark.MarkovRank, c.DSpark.NoiseTokenId));
        Assert.Equal([40, 41, 42], c.DSpark.TargetLayers);
    }

    [Theory]
    [InlineData("models/pebble", 6)]
    [InlineData("tests/Inference.Runtime.Tests/Fixtures/families/deepseek_v4", 5)]
    [InlineData("tests/Inference.Runtime.Tests/Fixtures/families/deepseek_v4-fp4", 3)]
    public void The_tiny_models_are_read(string folder, int layers)
    {
        var config = DeepSeekV4Config.Read(ModelFolder.Open(RepositoryPaths.Combine(folder.Split('/'))));
        Assert.Equal(layers, config.LayerCount);
        Assert.Equal(DraftKind.Mtp, config.DraftKind);
    }

    [Theory]
    [InlineData("rope_scaling", "null")]
    [InlineData("rope_scaling", """{"type":"default"}""")]
    [InlineData("rope_scaling", """{"rope_type":"default","factor":-3}""")]
    public void Yarn_may_be_absent(string key, string value)
    {
        var config = PublishedConfigs.Flash();
        config[key] = JsonNode.Parse(value);
        Assert.Null(PublishedConfigs.Parsed(config).Yarn);
    }

    [Fact]
    public void Unknown_keys_and_the_expert_dtype_are_ignored()
    {
        var config = PublishedConfigs.Flash();
        config["expert_dtype"] = "fp64";
        config["something_new"] = new JsonObject { ["deep"] = new JsonArray(1, 2, 3) };
        config.Remove("torch_dtype");
        Assert.Equal(43, PublishedConfigs.Parsed(config).LayerCount);
    }

    [Fact]
    public void A_whole_number_may_be_written_as_a_float_and_eos_as_a_list()
    {
        var config = PublishedConfigs.Flash();
        config["hidden_size"] = 4096.0;
        config["eos_token_id"] = new JsonArray(1, 128803);
        var c = PublishedConfigs.Parsed(config);
        Assert.Equal(4096, c.HiddenSize);
        Assert.Equal([1, 128803], c.EosTokenIds);
    }

    [Theory]
    [InlineData("vocab_size")]
    [InlineData("hidden_size")]
    [InlineData("num_hidden_layers")]
    [InlineData("num_attention_heads")]
    [InlineData("head_dim")]
    [InlineData("qk_rope_head_dim")]
    [InlineData("q_lora_rank")]
    [InlineData("o_groups")]
    [InlineData("o_lora_rank")]
    [InlineData("sliding_window")]
    [InlineData("index_n_heads")]
    [InlineData("index_head_dim")]
    [InlineData("index_topk")]
    [InlineData("hc_mult")]
    [InlineData("hc_sinkhorn_iters")]
    [InlineData("num_hash_layers")]
    [InlineData("n_routed_experts")]
    [InlineData("num_experts_per_tok")]
    [InlineData("moe_intermediate_size")]
    [InlineData("max_position_embeddings")]
    [InlineData("hc_eps")]
    [InlineData("routed_scaling_factor")]
    [InlineData("swiglu_limit")]
    [InlineData("rms_norm_eps")]
    [InlineData("rope_theta")]
    [InlineData("compress_rope_theta")]
    public void Each_number_is_required_and_must_be_in_its_range(string key)
    {
        var missing = Refused(c => c.Remove(key));
        Assert.Equal((key, null), (missing.Key, missing.Value));
        Assert.StartsWith($"config.json: key '{key}' is missing; it must be a", missing.Message, StringComparison.Ordinal);

        foreach (var bad in (string[])["-1", "1e300", "\"64\"", "null", "[]", "true", "{}", "-0.5"])
        {
            var error = Refused(c => c[key] = JsonNode.Parse(bad));
            Assert.Equal(key, error.Key);
            Assert.NotNull(error.Allowed);
            if (bad != "null")
            {
                Assert.Equal(bad, error.Value);
                Assert.Contains($"key '{key}' is {bad}; it must be a", error.Message, StringComparison.Ordinal);
            }
        }
    }

    [Theory]
    [InlineData("hidden_size", "0")]
    [InlineData("hidden_size", "4096.5")]
    [InlineData("hidden_size", "131073")]
    [InlineData("num_hidden_layers", "1001")]
    [InlineData("max_position_embeddings", "16777217")]
    [InlineData("hc_mult", "17")]
    [InlineData("swiglu_limit", "0")]
    [InlineData("rope_theta", "1")]
    [InlineData("model_type", "\"deepseek_v3\"")]
    [InlineData("scoring_func", "\"sigmoid\"")]
    [InlineData("topk_method", "\"greedy\"")]
    [InlineData("hidden_act", "\"gelu\"")]
    [InlineData("norm_topk_prob", "false")]
    [InlineData("attention_bias", "true")]
    [InlineData("attention_bias", "0")]
    [InlineData("tie_word_embeddings", "true")]
    [InlineData("num_key_value_heads", "2")]
    [InlineData("n_shared_experts", "2")]
    [InlineData("n_shared_experts", "\"1\"")]
    [InlineData("qk_rope_head_dim", "63")]
    [InlineData("qk_rope_head_dim", "514")]
    [InlineData("index_head_dim", "32")]
    [InlineData("o_groups", "7")]
    [InlineData("num_experts_per_tok", "257")]
    [InlineData("n_routed_experts", "65536")]
    [InlineData("rope_scaling", "[]")]
    [InlineData("quantization_config", "\"fp8\"")]
    [InlineData("bos_token_id", "129280")]
    [InlineData("bos_token_id", "-1")]
    [InlineData("num_nextn_predict_layers", "-1")]
    public void A_value_that_this_family_cannot_have_is_refused_by_name(string key, string value)
    {
        var error = Refused(c => c[key] = JsonNode.Parse(value));
        Assert.Equal(key, error.Key);
        Assert.Equal(value, error.Value);
        Assert.NotNull(error.Allowed);
    }

    [Theory]
    [InlineData("rope_scaling.type", "\"linear\"")]
    [InlineData("rope_scaling.factor", "0.5")]
    [InlineData("rope_scaling.factor", null)]
    [InlineData("rope_scaling.beta_fast", "0.5")]
    [InlineData("rope_scaling.beta_slow", "0")]
    [InlineData("rope_scaling.original_max_position_embeddings", null)]
    [InlineData("quantization_config.quant_method", "\"modelopt\"")]
    [InlineData("quantization_config.fmt", "\"e5m2\"")]
    [InlineData("quantization_config.weight_block_size", "[128]")]
    [InlineData("quantization_config.weight_block_size", "[128,64]")]
    [InlineData("quantization_config.weight_block_size[1]", "0")]
    public void A_nested_key_is_named_with_its_parents(string key, string? value)
    {
        var parts = key.Split('.', '[', ']');
        var error = Refused(c =>
        {
            var parent = c[parts[0]]!.AsObject();
            if (value is null)
                parent.Remove(parts[1]);
            else if (parts.Length > 2)
                parent[parts[1]]!.AsArray()[1] = JsonNode.Parse(value);
            else
                parent[parts[1]] = JsonNode.Parse(value);
        });
        Assert.Equal((key, value), (error.Key, error.Value));
    }

    [Theory]
    [InlineData("[0]")]
    [InlineData("[]")]
    [InlineData("4")]
    public void A_ratio_list_shorter_than_the_backbone_is_refused(string value)
    {
        var error = Refused(c => c["compress_ratios"] = JsonNode.Parse(value));
        Assert.Equal("compress_ratios", error.Key);
        Assert.Contains("43 to 107", error.Allowed, StringComparison.Ordinal);
    }

    [Fact]
    public void A_negative_ratio_is_named_with_its_index()
    {
        var error = Refused(c => c["compress_ratios"]!.AsArray()[7] = -4);
        Assert.Equal(("compress_ratios[7]", "-4"), (error.Key, error.Value));
    }

    [Fact]
    public void A_config_rewritten_by_transformers_gets_its_own_hint()
    {
        var error = Refused(c =>
        {
            c.Remove("compress_ratios");
            c["layer_types"] = new JsonArray("sliding_attention");
        });
        Assert.Contains("take the published checkpoint", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("dspark_block_size")]
    [InlineData("dspark_markov_rank")]
    [InlineData("dspark_noise_token_id")]
    [InlineData("dspark_target_layer_ids")]
    public void DSpark_keys_come_together(string key)
    {
        var config = PublishedConfigs.Flash0731();
        config.Remove(key);
        Assert.Equal(key, Assert.Throws<ModelConfigException>(() => PublishedConfigs.Parsed(config)).Key);
    }

    [Fact]
    public void A_dspark_target_beyond_the_backbone_is_refused()
    {
        var config = PublishedConfigs.Flash0731();
        config["dspark_target_layer_ids"] = new JsonArray(40, 43);
        Assert.Equal("dspark_target_layer_ids[1]", Assert.Throws<ModelConfigException>(() => PublishedConfigs.Parsed(config)).Key);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{")]
    [InlineData("{} {}")]
    [InlineData("""{"a":1,"a":2}""")]
    [InlineData("""{"\ud800":1}""")]
    [InlineData("// comment\n{}")]
    public void A_file_that_is_no_json_object_is_refused(string json)
    {
        var error = Assert.ThrowsAny<ModelConfigException>(() => DeepSeekV4Config.Parse("dir/config.json", Encoding.UTF8.GetBytes(json)));
        Assert.Equal("dir/config.json", error.File);
    }

    [Fact]
    public void A_text_that_is_no_unicode_is_refused_by_its_key()
    {
        var json = PublishedConfigs.Flash().ToJsonString().Replace("\"silu\"", "\"\\ud800\"", StringComparison.Ordinal);
        Assert.Equal("hidden_act", Assert.Throws<ModelConfigException>(() => DeepSeekV4Config.Parse("x", Encoding.UTF8.GetBytes(json))).Key);
    }

    [Fact]
    public void A_huge_value_is_cut_in_the_message()
    {
        var error = Refused(c => c["hidden_size"] = new string('9', 100_000) + "\n");
        Assert.InRange(error.Message.Length, 1, 600);
        Assert.DoesNotContain('\n', error.Message);
    }

    [Fact]
    public void Fifty_thousand_mutated_configs_end_in_a_typed_error_or_a_consistent_config()
    {
        byte[][] seeds =
        [
            File.ReadAllBytes(Path.Combine(RepositoryPaths.Pebble, "config.json")),
            Encoding.UTF8.GetBytes(PublishedConfigs.Flash0731().ToJsonString()),
        ];
        long accepted = 0;
        Parallel.For(0, 50, chunk =>
        {
            var random = new Random(chunk);
            for (var i = 0; i < 1000; i++)
            {
                var json = ByteMutator.Mutate(seeds[random.Next(2)], random);
                try
                {
                    var c = DeepSeekV4Config.Parse("x", json);
                    Assert.True(c.CompressRatios.Length >= c.LayerCount && c.HeadCount % c.OutputGroups == 0 && c.ExpertsPerToken <= c.ExpertCount);
                    Interlocked.Increment(ref accepted);
                }
                catch (ModelConfigException)
                {
                }
                catch (Exception e)
                {
                    Assert.Fail($"chunk {chunk}, round {i}: {Encoding.UTF8.GetString(json)}\n{e}");
                }
            }
        });
        Assert.InRange(accepted, 500, 40_000);
    }

    [Fact]
    public void All_load_errors_share_one_base_type() =>
        Assert.IsAssignableFrom<ModelLoadException>(Refused(c => c.Remove("hidden_size")));
}

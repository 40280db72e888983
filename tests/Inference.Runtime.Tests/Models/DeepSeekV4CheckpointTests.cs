using System.Collections.Immutable;
using System.Text.Json.Nodes;
using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

/// <summary>The tensors of published checkpoints by name and shape only, of tiny ones with data, and everything that can be wrong.</summary>
public sealed class DeepSeekV4CheckpointTests
{
    private static readonly Lazy<DeepSeekV4Weights> Flash = Published(PublishedConfigs.Flash());
    private static readonly Lazy<DeepSeekV4Weights> Flash0731 = Published(PublishedConfigs.Flash0731());
    private static readonly Lazy<DeepSeekV4Weights> Pro = Published(PublishedConfigs.Pro());

    private static Lazy<DeepSeekV4Weights> Published(JsonObject config) => new(() => Bind(config, PublishedTensors.Of(config)));

    private static DeepSeekV4Weights Bind(JsonObject config, IEnumerable<(string, DType, ImmutableArray<long>)> tensors) =>
        DeepSeekV4Checkpoint.Bind(PublishedConfigs.Parsed(config), Checkpoint.WithoutData("model", tensors));

    private static (DeepSeekV4Config Config, Dictionary<string, (DType DType, ImmutableArray<long> Shape)> Tensors) Tiny(TinyDeepSeekV4? tiny = null)
    {
        tiny ??= TinyDeepSeekV4.TA;
        using var checkpoint = Checkpoint.FromImage("tiny", tiny.Checkpoint().ToArray());
        return (PublishedConfigs.Parsed(tiny.ConfigJson()), checkpoint.Tensors.ToDictionary(t => t.Key, t => (t.Value.DType, t.Value.Shape)));
    }

    private static DeepSeekV4Weights Bind(DeepSeekV4Config config, Dictionary<string, (DType DType, ImmutableArray<long> Shape)> tensors) =>
        DeepSeekV4Checkpoint.Bind(config, Checkpoint.WithoutData("model", tensors.Select(t => (t.Key, t.Value.DType, t.Value.Shape))));

    /// <summary>Binds a tiny model after a change that must be refused.</summary>
    private static CheckpointException Refused(Action<Dictionary<string, (DType DType, ImmutableArray<long> Shape)>> change, TinyDeepSeekV4? tiny = null)
    {
        var (config, tensors) = Tiny(tiny);
        change(tensors);
        var error = Assert.Throws<CheckpointException>(() => Bind(config, tensors));
        Assert.Equal(CheckpointFault.TensorsMismatch, error.Fault);
        return error;
    }

    private static int Count(ModelSummary summary, DType dtype) => summary.Storage.Single(usage => usage.DType == dtype).TensorCount;

    [Fact]
    public void The_flash_preview_has_69187_tensors_in_the_published_dtypes()
    {
        Assert.Equal(69_187, PublishedTensors.Of(PublishedConfigs.Flash()).Count);
        var summary = DeepSeekV4Checkpoint.Summarise(Flash.Value);
        Assert.Equal(69_187, summary.TensorCount);
        Assert.Equal(34_167, Count(summary, DType.F8E8M0));
        Assert.Equal(33_792, Count(summary, DType.F4E2M1)); // I8 in the files
        Assert.Equal(433, Count(summary, DType.BF16));
        Assert.Equal(417, Count(summary, DType.F32));
        Assert.Equal(375, Count(summary, DType.F8E4M3));
        Assert.Equal(3, Count(summary, DType.I64));
        Assert.Equal(DraftKind.Mtp, Flash.Value.Config.DraftKind);
        Assert.Null(Flash.Value.DSparkModule);
    }

    [Fact]
    public void Flash_0731_has_72317_tensors_of_which_4705_draft()
    {
        var tensors = PublishedTensors.Of(PublishedConfigs.Flash0731());
        Assert.Equal(72_317, tensors.Count);
        Assert.Equal(4_705, tensors.Count(t => t.Name.StartsWith("mtp.", StringComparison.Ordinal)));
        Assert.Equal(72_317, DeepSeekV4Checkpoint.Summarise(Flash0731.Value).TensorCount);
        Assert.Equal(DraftKind.DSpark, Flash0731.Value.Config.DraftKind);
        Assert.Equal(3, Flash0731.Value.DSparkModule!.Stages.Length);
        Assert.Null(Flash0731.Value.MtpBlock);
    }

    [Fact]
    public void Pro_has_the_derived_number_of_tensors()
    {
        Assert.Equal(145_116, PublishedTensors.Of(PublishedConfigs.Pro()).Count);
        Assert.Equal(145_116, DeepSeekV4Checkpoint.Summarise(Pro.Value).TensorCount);
        Assert.Equal(149_782, PublishedTensors.Of(PublishedConfigs.ProDSpark()).Count);
        Assert.Equal(149_782, DeepSeekV4Checkpoint.Summarise(Published(PublishedConfigs.ProDSpark()).Value).TensorCount);
    }

    [Fact]
    public void Parameters_agree_with_the_published_totals()
    {
        var (flash, pro) = (DeepSeekV4Checkpoint.Summarise(Flash.Value), DeepSeekV4Checkpoint.Summarise(Pro.Value));
        Assert.Equal((284.33, 13.27), (Billions(flash.ParameterCount), Billions(flash.ActiveParameterCount)));
        Assert.Equal((1572.99, 48.85), (Billions(pro.ParameterCount), Billions(pro.ActiveParameterCount)));

        static double Billions(long count) => count / 10_000_000 / 100d; // cut after two digits, as the specification does
    }

    [Fact]
    public void Tensor_bytes_are_those_of_the_published_shards()
    {
        Assert.Equal(159_609_485_896, DeepSeekV4Checkpoint.Summarise(Flash.Value).ByteLength);
        Assert.Equal(166_878_536_440, DeepSeekV4Checkpoint.Summarise(Flash0731.Value).ByteLength);
    }

    [Fact]
    public void Expert_sizes_agree_with_the_published_bytes()
    {
        var expert = Flash.Value.Layers[5].Moe.Experts[7];
        Assert.Equal(13_369_344, expert.Gate.ByteLength + expert.Up.ByteLength + expert.Down.ByteLength);
        Assert.Equal(new WeightScheme(DType.F4E2M1, DType.F8E8M0, 1, 32), expert.Gate.Scheme);
        Assert.Equal((2048, 4096), (expert.Gate.Rows, expert.Gate.Columns));
        Assert.Equal((4096, 2048), (expert.Down.Rows, expert.Down.Columns));
        Assert.Equal("layers.5.ffn.experts.7.w3", expert.Up.Name);
        var pro = Pro.Value.Layers[0].Moe.Experts[0];
        Assert.Equal(35_094_528, pro.Gate.ByteLength + pro.Up.ByteLength + pro.Down.ByteLength);
    }

    [Fact]
    public void A_base_checkpoint_has_fp8_experts_whatever_the_config_says()
    {
        var weights = Bind(PublishedConfigs.Flash(), PublishedTensors.Of(PublishedConfigs.Flash(), isBase: true));
        Assert.Equal(new WeightScheme(DType.F8E4M3, DType.F32, 128, 128), weights.Layers[0].Moe.Experts[0].Gate.Scheme);
        Assert.Equal(new WeightScheme(DType.F8E4M3, DType.F8E8M0, 128, 128), weights.Layers[0].Attention.QueryDown.Scheme);
    }

    [Fact]
    public void Each_layer_has_the_parts_of_its_kind()
    {
        var weights = Flash.Value;
        Assert.Null(weights.Layers[0].Attention.Compressor);
        Assert.NotNull(weights.Layers[2].Attention.Indexer);
        Assert.Equal([4L, 1024L], weights.Layers[2].Attention.Compressor!.PositionBias.Weight.Shape);
        Assert.NotNull(weights.Layers[3].Attention.Compressor);
        Assert.Null(weights.Layers[3].Attention.Indexer);
        Assert.Equal([128L, 512L], weights.Layers[3].Attention.Compressor!.PositionBias.Weight.Shape);
        Assert.NotNull(weights.Layers[2].Moe.HashTable);
        Assert.Null(weights.Layers[2].Moe.Bias);
        Assert.Null(weights.Layers[3].Moe.HashTable);
        Assert.NotNull(weights.Layers[3].Moe.Bias);
        Assert.NotNull(weights.MtpBlock!.Layer.Moe.Bias);
    }

    public static TheoryData<string, TinyStorage> TinyModels()
    {
        var data = new TheoryData<string, TinyStorage>();
        foreach (var name in (string[])["T-A", "T-Q", "T-D", "T-S", "T-W", "T-H", "T-P"])
        {
            data.Add(name, TinyStorage.F32);
            data.Add(name, TinyStorage.BF16);
        }
        data.Add("T-F", TinyStorage.Fp8Fp4);
        data.Add("T-F", TinyStorage.Fp8F32Scales);
        return data;
    }

    [Theory]
    [MemberData(nameof(TinyModels))]
    public void Tiny_models_of_every_kind_are_bound_with_data(string name, TinyStorage storage)
    {
        TinyDeepSeekV4[] all =
        [
            TinyDeepSeekV4.TA, TinyDeepSeekV4.TQ, TinyDeepSeekV4.TD, TinyDeepSeekV4.TS, TinyDeepSeekV4.TW, TinyDeepSeekV4.TH,
            TinyDeepSeekV4.TP, TinyDeepSeekV4.TF,
        ];
        var tiny = all.Single(t => t.Name == name) with { Storage = storage };
        using var checkpoint = Checkpoint.FromImage(name, tiny.Checkpoint().ToArray());
        var weights = DeepSeekV4Checkpoint.Bind(PublishedConfigs.Parsed(tiny.ConfigJson()), checkpoint);
        Assert.Equal(checkpoint.Tensors.Count, weights.All.Sum(w => w.Scale is null ? 1 : 2));
        Assert.Equal(checkpoint.ByteLength, weights.All.Sum(w => w.ByteLength));
        Assert.Equal(weights.All.Length, weights.All.Select(w => w.Name).Distinct().Count());
    }

    [Fact]
    public void Weight_data_points_at_elements_and_scales()
    {
        using var checkpoint = Checkpoint.FromImage("x", (TinyDeepSeekV4.TF with { Storage = TinyStorage.Fp8Fp4 }).Checkpoint().ToArray());
        var weights = DeepSeekV4Checkpoint.Bind(PublishedConfigs.Parsed(TinyDeepSeekV4.TF.ConfigJson()), checkpoint);
        var expert = weights.Layers[0].Moe.Experts[3].Gate.ToWeightData();
        Assert.Equal((128, 128, 128 * 64L, 128 * 4L), (expert.Rows, expert.Columns, expert.DataBytes, expert.ScaleBytes));
        unsafe
        {
            Assert.Equal((nint)checkpoint["layers.0.ffn.experts.3.w1.weight"].Pointer, expert.Data);
            Assert.Equal((nint)checkpoint["layers.0.ffn.experts.3.w1.scale"].Pointer, expert.Scales);
        }
    }

    [Theory]
    [InlineData("models/pebble")]
    [InlineData("tests/Inference.Runtime.Tests/Fixtures/families/deepseek_v4")]
    [InlineData("tests/Inference.Runtime.Tests/Fixtures/families/deepseek_v4-fp4")]
    public void The_tiny_models_on_disk_are_bound(string path)
    {
        var folder = ModelFolder.Open(RepositoryPaths.Combine(path.Split('/')));
        using var checkpoint = folder.OpenCheckpoint();
        var weights = DeepSeekV4Checkpoint.Bind(DeepSeekV4Config.Read(folder), checkpoint);
        var summary = DeepSeekV4Checkpoint.Summarise(weights);
        Assert.Equal(checkpoint.Tensors.Count, summary.TensorCount);
        Assert.Equal(checkpoint.ByteLength, summary.ByteLength);
        Assert.NotNull(weights.MtpBlock);
        var parameters = checkpoint.Tensors.Values.Where(t => !t.Name.EndsWith(".scale", StringComparison.Ordinal) && t.DType != DType.I64)
            .Sum(t => t.ElementCount * (t.DType == DType.I8 ? 2 : 1));
        Assert.Equal(parameters, summary.ParameterCount + summary.DraftParameterCount);
        Assert.True(summary.ActiveParameterCount < summary.ParameterCount);
    }

    [Fact]
    public void Everything_that_is_wrong_is_reported_together()
    {
        var error = Refused(tensors =>
        {
            tensors.Remove("layers.0.attn.wq_a.weight");
            tensors.Remove("norm.weight");
            tensors.Add("layers.0.attn.surprise", (DType.F32, [1]));
            tensors["head.weight"] = (DType.F32, [96, 33]);
            tensors["layers.1.ffn.gate.tid2eid"] = (DType.F32, [96, 2]);
        });
        Assert.Equal(5, error.Problems.Count);
        Assert.Contains("2 missing, 1 unexpected, 2 wrong", error.Message, StringComparison.Ordinal);
        Assert.Contains("missing: 'layers.0.attn.wq_a.weight'", error.Problems);
        Assert.Contains("missing: 'norm.weight'", error.Problems);
        Assert.Contains("unexpected: layers.0.attn.surprise F32 [1]", error.Problems);
        Assert.Contains("wrong: head.weight F32 [96, 33] should be F32, BF16 or F16 [96, 32]", error.Problems);
        Assert.Contains("wrong: layers.1.ffn.gate.tid2eid F32 [96, 2] should be I64 or I32 [96, 2]", error.Problems);
    }

    [Fact]
    public void Long_lists_are_capped_with_their_counts()
    {
        var error = Refused(tensors =>
        {
            foreach (var name in tensors.Keys.Where(n => n.StartsWith("layers.3.", StringComparison.Ordinal)).ToList())
            {
                tensors.Add(name.Replace("layers.3.", "layers.9.", StringComparison.Ordinal), tensors[name]);
                tensors.Remove(name);
            }
        });
        // 13 attention less 5 scales, 2 norms, 6 mHC, 2 router, 3 x 8 expert, 3 shared, 4 compressor
        Assert.Contains("49 missing, 49 unexpected, 0 wrong", error.Message, StringComparison.Ordinal);
        Assert.Equal(2 * 9, error.Problems.Count);
        Assert.Contains("missing: ... and 41 more", error.Problems);
    }

    [Theory]
    [InlineData("embed.weight", "[96, 32]")]
    [InlineData("layers.4.attn.wo_a.weight", "[24, 48]")]
    [InlineData("layers.4.attn.compressor.ape", "[4, 48]")]
    [InlineData("layers.3.attn.compressor.ape", "[16, 24]")]
    [InlineData("layers.4.attn.indexer.wq_b.weight", "[128, 16]")]
    [InlineData("layers.5.ffn.gate.bias", "[8]")]
    [InlineData("layers.5.ffn.experts.7.w2.weight", "[32, 16]")]
    [InlineData("layers.5.hc_ffn_fn", "[24, 128]")]
    [InlineData("mtp.0.h_proj.weight", "[32, 32]")]
    public void Each_tensor_is_required_in_its_shape(string name, string shape)
    {
        Assert.Equal([$"missing: '{name}'"], Refused(t => t.Remove(name)).Problems);
        var wrong = Assert.Single(Refused(t => t[name] = (DType.F32, t[name].Shape.Add(1))).Problems);
        Assert.EndsWith(shape, wrong, StringComparison.Ordinal);
        Assert.StartsWith($"wrong: {name} F32", wrong, StringComparison.Ordinal);
        Assert.Single(Refused(t => t[name] = (DType.I32, t[name].Shape)).Problems);
    }

    [Theory]
    [InlineData(DType.F8E4M3, 130, 200, DType.F8E8M0, 2, 2, true)]
    [InlineData(DType.F8E4M3, 130, 200, DType.F32, 2, 2, true)]
    [InlineData(DType.F8E4M3, 130, 200, DType.BF16, 2, 2, false)]
    [InlineData(DType.F8E4M3, 130, 200, DType.F8E8M0, 1, 1, false)]
    [InlineData(DType.I8, 130, 100, DType.F8E8M0, 130, 7, true)]
    [InlineData(DType.U8, 130, 100, DType.F8E8M0, 130, 7, true)]
    [InlineData(DType.F4E2M1, 130, 200, DType.F8E8M0, 130, 7, true)]
    [InlineData(DType.I8, 130, 100, DType.F32, 130, 7, false)]
    [InlineData(DType.I8, 130, 100, DType.F8E8M0, 130, 6, false)]
    [InlineData(DType.I8, 130, 200, DType.F8E8M0, 130, 7, false)]
    [InlineData(DType.I64, 130, 200, DType.F8E8M0, 130, 7, false)]
    public void Quantised_storage_needs_matching_scales(DType dtype, long rows, long columns, DType scale, long scaleRows, long scaleColumns, bool right)
    {
        using var checkpoint = Checkpoint.WithoutData("x", [("m.weight", dtype, [rows, columns]), ("m.scale", scale, [scaleRows, scaleColumns])]);
        var binder = new WeightBinder(checkpoint);
        var weight = binder.Matrix("m", 130, 200);
        if (!right)
        {
            Assert.Single(Assert.Throws<CheckpointException>(() => binder.Finish(_ => false, "")).Problems);
            return;
        }
        binder.Finish(_ => false, "");
        Assert.Equal((130, 200), (weight.Rows, weight.Columns));
        Assert.Equal(dtype == DType.F8E4M3 ? DType.F8E4M3 : DType.F4E2M1, weight.Scheme.Element);
    }

    [Fact]
    public void A_missing_scale_and_a_superfluous_one_are_named()
    {
        using var lacking = Checkpoint.WithoutData("x", [("m.weight", DType.F8E4M3, [4, 4])]);
        var binder = new WeightBinder(lacking);
        binder.Matrix("m", 4, 4);
        Assert.Equal(["missing: 'm.scale', since m.weight F8E4M3 [4, 4] needs scales"],
            Assert.Throws<CheckpointException>(() => binder.Finish(_ => false, "")).Problems);

        using var superfluous = Checkpoint.WithoutData("x", [("m.weight", DType.BF16, [4, 4]), ("m.scale", DType.F32, [1, 1])]);
        binder = new WeightBinder(superfluous);
        binder.Matrix("m", 4, 4);
        Assert.Equal(["wrong: m.scale F32 [1, 1] stands beside m.weight BF16 [4, 4], which has no scales"],
            Assert.Throws<CheckpointException>(() => binder.Finish(_ => false, "")).Problems);
    }

    [Fact]
    public void Redundant_copies_and_rotary_tables_are_ignored()
    {
        var (config, tensors) = Tiny();
        tensors.Add("mtp.0.embed.weight", (DType.F32, [96, 32]));
        tensors.Add("mtp.0.head.weight", (DType.BF16, [96, 32]));
        tensors.Add("layers.0.attn.rotary_emb.inv_freq", (DType.F32, [4]));
        tensors.Add("freqs_cis", (DType.F32, [4]));
        var weights = Bind(config, tensors);
        Assert.Equal(tensors.Count - 4, weights.All.Length);
    }

    [Fact]
    public void Without_draft_tensors_there_is_no_draft_whatever_the_config_says()
    {
        var (config, tensors) = Tiny();
        foreach (var name in tensors.Keys.Where(n => n.StartsWith("mtp.", StringComparison.Ordinal)).ToList())
            tensors.Remove(name);
        Assert.Equal(DraftKind.Mtp, config.DraftKind);
        var weights = Bind(config, tensors);
        Assert.Equal(DraftKind.None, weights.Config.DraftKind);
        Assert.Null(weights.MtpBlock);
    }

    [Fact]
    public void A_dspark_module_needs_its_config_keys()
    {
        var (_, tensors) = Tiny(TinyDeepSeekV4.TS);
        var (config, _) = Tiny();
        var error = Assert.Throws<ModelConfigException>(() => Bind(config, tensors));
        Assert.Equal("dspark_target_layer_ids", error.Key);
    }

    [Fact]
    public void Mtp_weights_win_over_dspark_keys_in_the_config()
    {
        var (config, _) = Tiny(TinyDeepSeekV4.TS);
        var (_, tensors) = Tiny();
        Assert.Equal(DraftKind.DSpark, config.DraftKind);
        Assert.Equal(DraftKind.Mtp, Bind(config, tensors).Config.DraftKind);
    }

    [Fact]
    public void A_gap_in_the_draft_blocks_is_found()
    {
        var error = Refused(tensors =>
        {
            foreach (var name in tensors.Keys.Where(n => n.StartsWith("mtp.1.", StringComparison.Ordinal)).ToList())
                tensors.Remove(name);
        }, TinyDeepSeekV4.TS);
        Assert.Contains(error.Problems, p => p.StartsWith("unexpected: mtp.2.", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("mtp.\u0661.x")]
    [InlineData("mtp.99999999999.x")]
    [InlineData("mtp..x")]
    public void Odd_draft_names_are_unexpected_tensors_and_nothing_worse(string name) =>
        Assert.StartsWith("unexpected: mtp.", Assert.Single(Refused(t => t.Add(name, (DType.F32, [1]))).Problems), StringComparison.Ordinal);

    [Fact]
    public void A_checkpoint_of_the_transformers_library_gets_its_own_hint()
    {
        var (config, tensors) = Tiny();
        var renamed = tensors.ToDictionary(t => t.Key == "embed.weight" ? "model.embed_tokens.weight" : "model." + t.Key, t => t.Value);
        var error = Assert.Throws<CheckpointException>(() => Bind(config, renamed));
        Assert.Contains("transformers library", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Fewer_experts_than_configured_are_found_by_the_router_too()
    {
        var error = Refused(tensors =>
        {
            tensors["layers.3.ffn.gate.weight"] = (DType.F32, [7, 32]);
            foreach (var w in (string[])["w1", "w2", "w3"])
                tensors.Remove($"layers.3.ffn.experts.7.{w}.weight");
        });
        Assert.Contains("3 missing, 0 unexpected, 1 wrong", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Mutated_configs_against_tiny_weights_end_in_a_typed_error_or_a_bound_model()
    {
        var (_, tensors) = Tiny(TinyDeepSeekV4.TS);
        var seed = System.Text.Encoding.UTF8.GetBytes(TinyDeepSeekV4.TS.ConfigJson().ToJsonString());
        var (bound, refused) = (0, 0);
        Parallel.For(0, 20, chunk =>
        {
            var random = new Random(chunk);
            for (var i = 0; i < 250; i++)
            {
                var json = ByteMutator.Mutate(seed, random);
                try
                {
                    var weights = Bind(DeepSeekV4Config.Parse("x", json), tensors);
                    Assert.DoesNotContain(null, weights.All);
                    Interlocked.Increment(ref bound);
                }
                catch (ModelLoadException)
                {
                    Interlocked.Increment(ref refused);
                }
                catch (Exception e)
                {
                    Assert.Fail($"chunk {chunk}, round {i}: {System.Text.Encoding.UTF8.GetString(json)}\n{e}");
                }
            }
        });
        Assert.True(bound > 100 && refused > 1000, $"{bound} bound, {refused} refused");
    }

    [Fact]
    public void A_config_that_asks_for_a_million_tensors_is_refused_in_a_few_lines()
    {
        var huge = TinyDeepSeekV4.TA.ConfigJson();
        huge["n_routed_experts"] = 55_000;
        var (_, tensors) = Tiny();
        var error = Assert.Throws<CheckpointException>(() => Bind(PublishedConfigs.Parsed(huge), tensors));
        Assert.InRange(error.Message.Length, 1, 5000);
        Assert.Contains($"{7 * 3 * (55_000 - 8)} missing, 0 unexpected", error.Message, StringComparison.Ordinal); // six layers and the draft block
    }

    [Fact]
    public void A_model_is_not_loaded_from_weights_that_do_not_fit_and_lets_go_of_them()
    {
        var other = PublishedConfigs.Parsed((TinyDeepSeekV4.TA with { Window = 4, Heads = 8 }).ConfigJson());
        var checkpoint = Checkpoint.FromImage("x", TinyDeepSeekV4.TA.Checkpoint().ToArray());
        using var backend = TestModels.CreateBackend("reference");
        Assert.Throws<CheckpointException>(() => DeepSeekV4.Load(other, checkpoint, backend, new DeepSeekV4Options()));
        Assert.Throws<ObjectDisposedException>(() => checkpoint["embed.weight"].Bytes.Length);
    }

    [Fact]
    public void A_loaded_model_knows_its_parameters()
    {
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "reference");
        Assert.InRange(loaded.Model.Info.ParameterCount, 4_000_000, 4_640_000); // 4.64 M with the draft block
    }
}

using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json.Nodes;
using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

/// <summary>The layout of a synthetic checkpoint is that of the releases, and its numbers are of a size that a model bears.</summary>
public sealed class DeepSeekV4SynthesisTests
{
    private static readonly TinyDeepSeekV4 Tiny = TinyDeepSeekV4.TF with { Vocab = 101, ExpertsPerToken = 3 };

    public static TheoryData<string> Releases => ["Flash", "Flash0731", "Pro", "ProDSpark"];

    [Theory, MemberData(nameof(Releases))]
    public void Names_shapes_and_dtypes_are_those_of_the_release(string release)
    {
        var config = release switch
        {
            "Flash" => PublishedConfigs.Flash(),
            "Flash0731" => PublishedConfigs.Flash0731(),
            "Pro" => PublishedConfigs.Pro(),
            _ => PublishedConfigs.ProDSpark(),
        };
        var synthesis = new DeepSeekV4Synthesis(Adapted(config, null, SyntheticStorage.Fp8Fp4), SyntheticStorage.Fp8Fp4, 1, "config.json");
        static IEnumerable<string> Lines(IEnumerable<(string Name, DType DType, System.Collections.Immutable.ImmutableArray<long> Shape)> tensors) =>
            tensors.Select(t => $"{t.Name} {t.DType} {string.Join(',', t.Shape)}").Order(StringComparer.Ordinal);
        Assert.Equal(Lines(PublishedTensors.Of(config)), Lines(synthesis.Writer.Tensors.Select(t => (t.Name, t.DType, t.Shape))));
    }

    [Fact]
    public void Fewer_layers_keep_the_first_ones_and_the_draft()
    {
        var flash = Adapted(PublishedConfigs.Flash(), 4, SyntheticStorage.BF16);
        Assert.Equal((4, DraftKind.Mtp), (flash.LayerCount, flash.DraftKind));
        Assert.Equal([0, 0, 4, 128, 0], flash.CompressRatios);
        var spark = Adapted(PublishedConfigs.Flash0731(), 2, SyntheticStorage.BF16);
        Assert.Equal([0, 0, 0, 0, 0], spark.CompressRatios);
        Assert.Equal([0, 0, 1], spark.DSpark!.TargetLayers); // 40, 41, 42 of 43
        var error = Assert.Throws<ModelConfigException>(() => Adapted(PublishedConfigs.Flash(), 44, SyntheticStorage.BF16));
        Assert.Contains("43", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Fp4_experts_need_whole_scale_groups()
    {
        var config = TinyDeepSeekV4.TA with { Intermediate = 48 };
        var error = Assert.Throws<ModelConfigException>(() => Synthesis(config, SyntheticStorage.Fp8Fp4));
        Assert.Equal(("moe_intermediate_size", "48"), (error.Key, error.Value));
        Assert.NotEmpty(Synthesis(config, SyntheticStorage.BF16).Writer.Tensors);
    }

    [Theory]
    [InlineData(SyntheticStorage.F32)]
    [InlineData(SyntheticStorage.BF16)]
    [InlineData(SyntheticStorage.Fp8Fp4)]
    public void Norms_lie_near_one_and_matrices_keep_the_magnitude(SyntheticStorage storage)
    {
        var synthesis = Synthesis(Tiny, storage);
        AssertEvenly(Values(synthesis, "layers.2.attn_norm"), 0.9, 1.1);
        foreach (string name in (string[])["layers.0.attn.wq_a", "layers.3.attn.wo_b", "layers.1.ffn.experts.2.w2", "layers.1.ffn.shared_experts.w1", "layers.4.ffn.gate"])
        {
            var values = Values(synthesis, name);
            int columns = (int)synthesis.Writer.Tensors.Single(t => t.Name == name + ".weight").Shape[1] * (IsFp4(synthesis, name) ? 2 : 1);
            double gain = Math.Sqrt(columns * values.Average(v => (double)v * v)); // of the magnitude of an input
            Assert.InRange(gain, 0.5, 1.5);
            Assert.InRange(values.Average() * Math.Sqrt(columns), -0.1, 0.1);
            Assert.True(values.Distinct().Count() > 12);
        }
    }

    [Fact]
    public void Tables_name_different_experts_for_each_token()
    {
        var synthesis = Synthesis(Tiny, SyntheticStorage.Fp8Fp4);
        var ids = MemoryMarshal.Cast<byte, long>(Bytes(synthesis, "layers.0.ffn.gate.tid2eid")).ToArray();
        Assert.Equal(101 * 3, ids.Length);
        Assert.All(ids, id => Assert.InRange(id, 0, Tiny.Experts - 1));
        Assert.All(ids.Chunk(3), experts => Assert.Equal(3, experts.Distinct().Count()));
        Assert.Equal(Tiny.Experts, ids.Distinct().Count());
    }

    [Fact]
    public void A_tensors_bytes_follow_from_seed_and_name_alone()
    {
        byte[] Wkv(ulong seed, TinyDeepSeekV4 config) => Bytes(Synthesis(config, SyntheticStorage.BF16, seed), "layers.1.attn.wkv.weight");
        Assert.Equal(Wkv(5, Tiny), Wkv(5, Tiny with { Ratios = [0, 0, 0] }));
        Assert.NotEqual(Wkv(5, Tiny), Wkv(6, Tiny));
        var synthesis = Synthesis(Tiny, SyntheticStorage.BF16, 5);
        Assert.NotEqual(Bytes(synthesis, "layers.1.ffn.experts.0.w1.weight"), Bytes(synthesis, "layers.1.ffn.experts.0.w3.weight"));
        // In pieces as in one: also where the last one is no whole word.
        byte[] whole = Bytes(synthesis, "layers.0.attn.attn_sink"), pieces = new byte[whole.Length - 3];
        int index = Index(synthesis, "layers.0.attn.attn_sink");
        synthesis.Fill(index, 0, pieces.AsSpan(0, 8));
        synthesis.Fill(index, 8, pieces.AsSpan(8));
        Assert.Equal(whole[..^3], pieces);
    }

    private static DeepSeekV4Config Adapted(JsonObject config, int? layers, SyntheticStorage storage) => DeepSeekV4Config.Parse("config.json",
        SyntheticConfig.Adapt("config.json", Encoding.UTF8.GetBytes(config.ToJsonString()), layers, storage));

    private static DeepSeekV4Synthesis Synthesis(TinyDeepSeekV4 config, SyntheticStorage storage, ulong seed = 1) =>
        new(Adapted(config.ConfigJson(), null, storage), storage, seed, "config.json");

    private static int Index(DeepSeekV4Synthesis synthesis, string name) => synthesis.Writer.Tensors.ToList().FindIndex(t => t.Name == name);

    private static bool IsFp4(DeepSeekV4Synthesis synthesis, string name) => synthesis.Writer.Tensors[Index(synthesis, name + ".weight")].DType == DType.I8;

    private static byte[] Bytes(DeepSeekV4Synthesis synthesis, string name)
    {
        int index = Index(synthesis, name);
        var bytes = new byte[synthesis.Writer.Tensors[index].ByteLength];
        synthesis.Fill(index, 0, bytes);
        return bytes;
    }

    // The numbers that a weight means, decoded one by one.
    private static float[] Values(DeepSeekV4Synthesis synthesis, string name)
    {
        var spec = synthesis.Writer.Tensors[Index(synthesis, name + ".weight")];
        var bytes = Bytes(synthesis, spec.Name);
        switch (spec.DType)
        {
            case DType.F32: return MemoryMarshal.Cast<byte, float>(bytes).ToArray();
            case DType.BF16: return Array.ConvertAll(MemoryMarshal.Cast<byte, ushort>(bytes).ToArray(), Numerics.BFloat16ToSingle);
        }
        var scales = Array.ConvertAll(Bytes(synthesis, name + ".scale"), Numerics.E8M0ToSingle);
        int columns = (int)spec.Shape[1];
        if (spec.DType == DType.F8E4M3)
            return [.. bytes.Select((b, i) => Numerics.E4M3ToSingle(b) * scales[i / columns / 128 * ((columns + 127) / 128) + i % columns / 128])];
        return [.. bytes.SelectMany((b, i) => new[] { b & 15, b >> 4 }.Select(code => Numerics.E2M1ToSingle(code) * scales[i * 2 / 32]))];
    }

    private static void AssertEvenly(float[] values, double min, double max)
    {
        Assert.All(values, v => Assert.InRange(v, min - 0.01, max + 0.01));
        Assert.InRange(values.Average(), min + (max - min) * 0.4, min + (max - min) * 0.6);
        Assert.True(values.Max() - values.Min() > (max - min) * 0.9);
    }
}

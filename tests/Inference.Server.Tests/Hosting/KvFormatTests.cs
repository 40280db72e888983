using System.Text.Json.Nodes;
using Inference.Runtime.Models;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>Serving stores cached rows as the model was trained, or as the operator says; the arithmetic shows which.</summary>
public sealed class KvFormatTests
{
    private static ModelOptions Options(string folder, KvRowFormat? format) => new(
        folder, null, "cpu", 1, 512, null, SequencesMax: 2, StepTokensMax: 64, PrefixesMax: 0, QueueMax: 4, null, null, format);

    [Theory]
    [InlineData(true, null, KvRowFormat.Fp8WithFp4Index)]
    [InlineData(true, KvRowFormat.F32, KvRowFormat.F32)]
    [InlineData(false, null, KvRowFormat.F32)]
    [InlineData(false, KvRowFormat.BF16, KvRowFormat.BF16)]
    [InlineData(false, KvRowFormat.Fp8WithFp8Index, KvRowFormat.Fp8WithFp8Index)]
    public void A_served_model_answers_in_the_arithmetic_it_should(bool trainedSo, KvRowFormat? asked, KvRowFormat stored)
    {
        using var folder = new TemporaryFolder();
        Write(folder.Path, TinyDeepSeekV4.TQ, trainedSo);
        int[] tokens = TinyDeepSeekV4.TQ.Tokens(40);
        using var backend = ModelHost.Backend(Options(folder.Path, asked));
        using var model = ModelHost.LoadModel(folder.Path, backend, c => ModelHost.RowFormat(asked, c)).Model;
        Assert.Equal(KvRowFormats.Names[stored], model.Info.KvFormat);
        using var session = new ModelSession(model, backend);
        float[] answer = session.Run(tokens)[^1];
        foreach (var format in KvRowFormats.Names.Keys)
        {
            using var other = TestModels.Load(folder.Path, "cpu", new DeepSeekV4Options(format));
            using var otherSession = new ModelSession(other.Model, other.Backend);
            Assert.Equal(format == stored, otherSession.Run(tokens)[^1].SequenceEqual(answer));
        }
    }

    [Fact]
    public void Widths_that_do_not_divide_are_served_exactly_and_refuse_to_be_stored_narrow()
    {
        using var folder = new TemporaryFolder();
        Write(folder.Path, TinyDeepSeekV4.TA, trainedSo: true);
        var config = DeepSeekV4Config.Read(ModelFolder.Open(folder.Path));
        Assert.Equal(KvRowFormat.F32, ModelHost.RowFormat(null, config));
        Assert.Equal(KvRowFormat.BF16, ModelHost.RowFormat(KvRowFormat.BF16, config));
        var refused = Assert.Throws<OptionsException>(() => ModelHost.RowFormat(KvRowFormat.Fp8WithFp8Index, config));
        Assert.Contains("--kv-format fp8-index8", refused.Message, StringComparison.Ordinal);
        Assert.Contains("rows of 24 channels", refused.Message, StringComparison.Ordinal);
    }

    private static void Write(string folder, TinyDeepSeekV4 model, bool trainedSo)
    {
        model.Write(folder);
        if (!trainedSo) return;
        var config = model.ConfigJson();
        config["quantization_config"] = new JsonObject { ["quant_method"] = "fp8", ["fmt"] = "e4m3", ["scale_fmt"] = "ue8m0" };
        File.WriteAllText(Path.Combine(folder, "config.json"), config.ToJsonString());
    }
}

using System.Text.Json.Nodes;
using Inference.Runtime.Models;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>Serving rounds cached rows exactly where the model was trained so, or as the operator says; the arithmetic shows which.</summary>
public sealed class CacheRoundingTests
{
    private static ModelOptions Options(string folder, bool? rounding) => new(
        folder, null, "cpu", 1, 512, null, SequencesMax: 2, StepTokensMax: 64, PrefixesMax: 0, QueueMax: 4, null, null, rounding);

    [Theory]
    [InlineData(true, null, true)]
    [InlineData(true, false, false)]
    [InlineData(false, null, false)]
    [InlineData(false, true, true)]
    public void A_served_model_answers_in_the_arithmetic_it_should(bool trainedSo, bool? asked, bool rounded)
    {
        using var folder = new TemporaryFolder();
        Write(folder.Path, TinyDeepSeekV4.TQ, trainedSo);
        int[] tokens = TinyDeepSeekV4.TQ.Tokens(40);
        using var backend = ModelHost.Backend(Options(folder.Path, asked));
        using var model = ModelHost.LoadModel(folder.Path, backend, c => ModelHost.Rounding(Options(folder.Path, asked), c)).Model;
        using var session = new ModelSession(model, backend);
        using var expected = TestModels.Load(folder.Path, "cpu", rounded);
        using var expectedSession = new ModelSession(expected.Model, expected.Backend);
        Assert.Equal(expectedSession.Run(tokens)[^1], session.Run(tokens)[^1]);

        using var other = TestModels.Load(folder.Path, "cpu", !rounded);
        using var otherSession = new ModelSession(other.Model, other.Backend);
        Assert.NotEqual(otherSession.Run(tokens)[^1], session.Run(tokens)[^1]);
    }

    [Fact]
    public void Widths_that_do_not_divide_are_served_exactly_and_refuse_to_be_rounded()
    {
        using var folder = new TemporaryFolder();
        Write(folder.Path, TinyDeepSeekV4.TA, trainedSo: true);
        var config = DeepSeekV4Config.Read(ModelFolder.Open(folder.Path));
        Assert.False(ModelHost.Rounding(Options(folder.Path, null), config));
        var refused = Assert.Throws<OptionsException>(() => ModelHost.Rounding(Options(folder.Path, true), config));
        Assert.Contains("--cache-rounding", refused.Message, StringComparison.Ordinal);
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

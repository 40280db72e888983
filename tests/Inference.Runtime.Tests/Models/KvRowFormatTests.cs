// Models whose cached rows are stored narrow: the bits of the same arithmetic with rows stored as F32, in every chunking.
using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class KvRowFormatTests
{
    public static TheoryData<string, string, KvRowFormat> Cases()
    {
        var data = new TheoryData<string, string, KvRowFormat>();
        foreach (string backend in TestModels.BackendNames)
        {
            foreach (string model in (string[])["T-Q", "T-F"])
                foreach (var format in (KvRowFormat[])[KvRowFormat.BF16, KvRowFormat.Fp8WithFp4Index, KvRowFormat.Fp8WithFp8Index])
                    data.Add(backend, model, format);
        }
        return data;
    }

    private static TinyDeepSeekV4 Named(string name) => name == "T-Q" ? TinyDeepSeekV4.TQ : TinyDeepSeekV4.TF;

    [Theory, MemberData(nameof(Cases))]
    public void A_model_has_the_bits_of_its_arithmetic_in_F32_in_every_chunking(string backend, string model, KvRowFormat format)
    {
        var tiny = Named(model);
        using var folder = new TemporaryFolder();
        var config = DeepSeekV4Config.Read(ModelFolder.Open(tiny.Write(folder.Path)));
        int[] tokens = tiny.Tokens(75);
        var wide = new DeepSeekV4Options(KvRowFormat.F32, DeepSeekV4KvSize.Row(config, format).Rounding, DeepSeekV4KvSize.IndexRow(config, format).Rounding);
        float[][] expected = Logits(folder.Path, backend, wide, tokens);
        Assert.NotEqual(expected[^1], Logits(folder.Path, backend, new DeepSeekV4Options(), tokens)[^1]);

        using var loaded = TestModels.Load(folder.Path, backend, new DeepSeekV4Options(format));
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        foreach (int[] chunking in (int[][])[[], [1], [7], [5, 1, 2, 13]])
            DeepSeekV4GoldenTests.AssertSameBits(expected, session.Run(tokens, chunking), $"{format}, chunking [{string.Join(",", chunking)}]");
        Assert.Equal(KvRowFormats.Names[format], loaded.Model.Info.KvFormat);
    }

    private static float[][] Logits(string folder, string backend, DeepSeekV4Options options, int[] tokens)
    {
        using var loaded = TestModels.Load(folder, backend, options);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        return session.Run(tokens);
    }

    [Fact]
    public void Rows_that_do_not_divide_into_blocks_are_refused()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        var refused = Assert.Throws<ArgumentException>(() => TestModels.Load(folder.Path, "cpu", new DeepSeekV4Options(KvRowFormat.Fp8WithFp4Index)));
        Assert.Contains("Fp8WithFp4Index", refused.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentException>(() => TestModels.Load(folder.Path, "cpu", TestModels.Rounded with { Rows = KvRowFormat.BF16 }));
        using var served = TestModels.Load(folder.Path, "cpu", new DeepSeekV4Options(KvRowFormat.BF16));
        Assert.All(served.Model.KvStates, s => Assert.Equal(s.Name.EndsWith("-state", StringComparison.Ordinal) || s.Name.Contains("-state-") ? DType.F32 : DType.BF16, s.Row.DType));
    }
}

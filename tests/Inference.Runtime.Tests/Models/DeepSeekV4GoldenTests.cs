// Logits of tiny DeepSeek-V4 configurations against values computed by the released module and an independent float64 implementation
// (architecture description, 9.3 to 9.6; tolerance 1e-4 at level E), for whole prefill, one token at a time and every chunking named there.
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class DeepSeekV4GoldenTests
{
    private const float Tolerance = 1e-4f;

    private sealed record Golden(int Position, int ArgMax, float Max, float Sum, float[] First);

    private static readonly Golden[] TA =
    [
        new(0, 52, 2.215902f, 3.99436f, [0.204593f, 1.815222f, -0.898588f, 1.355038f]),
        new(3, 79, 1.898188f, -2.00435f, [0.802657f, 1.012160f, -0.500316f, 0.255424f]),
        new(4, 79, 1.735064f, -0.48039f, [0.860132f, 0.634204f, 0.680401f, -0.582488f]),
        new(7, 29, 1.777116f, -3.97580f, [1.293902f, -0.159849f, 0.445063f, -1.018652f]),
        new(8, 79, 2.195061f, 2.60020f, [0.573289f, -0.612652f, 0.612017f, -0.114701f]),
        new(15, 41, 2.268967f, 0.32091f, [-0.173423f, -1.020801f, 0.101988f, -0.720980f]),
        new(16, 90, 2.503746f, 15.39701f, [-0.123801f, -0.604523f, 0.189984f, 1.276809f]),
        new(22, 18, 1.735847f, 0.32563f, [-0.356521f, -1.270219f, 0.163046f, -1.390739f]),
        new(31, 51, 2.465607f, -16.02877f, [-1.389146f, -0.241480f, -0.207303f, 0.204126f]),
        new(39, 94, 1.972154f, 0.17103f, [0.123239f, -1.556667f, -0.980603f, -0.314149f]),
    ];

    private static readonly Golden[] TQ =
    [
        new(0, 61, 2.283368f, -6.94346f, [-1.111711f, 0.155361f, 0.086621f, -1.937180f]),
        new(4, 51, 1.611951f, -3.05624f, [-0.844156f, -0.063073f, 1.281286f, 0.502679f]),
        new(8, 35, 1.839838f, -1.53341f, [0.431791f, 0.084390f, 1.122022f, 1.715515f]),
        new(15, 83, 2.315825f, 1.95454f, [1.061593f, 0.369637f, 0.693917f, 0.089703f]),
        new(16, 50, 2.747750f, 7.98373f, [0.983748f, 0.172202f, 0.256235f, 0.675635f]),
        new(22, 78, 2.472574f, 3.41377f, [0.373334f, -0.717392f, -0.305603f, 0.215582f]),
        new(39, 19, 2.326552f, -2.78381f, [0.036128f, -0.205562f, -0.603492f, 0.282430f]),
    ];

    private static readonly Golden[] TD =
    [
        new(0, 67, 1.881097f, 1.98809f, [0.281190f, 1.635055f, -1.193727f, 0.348432f]),
        new(126, 79, 1.504070f, 3.03396f, [0.584228f, 0.072507f, 0.207379f, 1.169497f]),
        new(127, 79, 2.215408f, 9.99951f, [1.429652f, -1.472759f, 0.108982f, 0.426724f]),
        new(128, 38, 2.894154f, -8.69175f, [0.569039f, 0.037077f, 0.387080f, -1.458274f]),
        new(131, 94, 2.385480f, -8.64538f, [-0.389053f, -0.923972f, -0.602461f, -0.112503f]),
        new(132, 54, 1.650640f, -5.88781f, [0.410202f, -0.467565f, 0.920093f, -0.622035f]),
        new(255, 76, 1.796121f, 0.39304f, [0.684063f, -0.367789f, 0.668577f, -0.166425f]),
        new(256, 94, 2.174980f, -16.58544f, [-0.322286f, -0.586029f, -0.353706f, -0.261717f]),
        new(259, 77, 1.812245f, 6.57715f, [-0.087147f, -1.132306f, 0.686756f, -0.021818f]),
    ];

    // Position, argmax, max, first three logits of the MTP block (it uses the token after the position).
    private static readonly Golden[] TAMtp =
    [
        new(0, 70, 2.807627f, float.NaN, [-0.021976f, 0.060321f, 0.249212f]),
        new(7, 31, 1.467708f, float.NaN, [-0.144332f, -0.174343f, 1.088001f]),
        new(38, 3, 2.120073f, float.NaN, [0.107443f, 0.239476f, -0.436425f]),
    ];

    /// <summary>Whole, one by one, 1 + rest, 3 + rest, 4 + rest, pieces of 7, and some uneven ones.</summary>
    private static readonly int[][] Chunkings = [[], [1], [1, 1000], [3, 1000], [4, 1000], [7], [5, 1, 2, 13], [16]];

    public static TheoryData<string> Backends => [.. TestModels.BackendNames];

    [Theory, MemberData(nameof(Backends))]
    public void TA_equals_the_goldens_for_every_chunking(string backend) => Check(TinyDeepSeekV4.TA, TA, 40, backend, rounding: false);

    [Theory, MemberData(nameof(Backends))]
    public void TS_backbone_equals_the_goldens_for_every_chunking(string backend) => Check(TinyDeepSeekV4.TS, TA, 40, backend, rounding: false);

    [Theory, MemberData(nameof(Backends))]
    public void TQ_equals_the_goldens_for_every_chunking(string backend) => Check(TinyDeepSeekV4.TQ, TQ, 40, backend, rounding: true);

    [Theory, MemberData(nameof(Backends))]
    public void TD_equals_the_goldens_for_every_chunking(string backend) => Check(TinyDeepSeekV4.TD, TD, 260, backend, rounding: false);

    [Theory, MemberData(nameof(Backends))]
    public void MTP_equals_the_goldens_for_every_chunking(string backend)
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TA, backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        foreach (int[] chunking in Chunkings)
        {
            session.RunWithDraft(TinyDeepSeekV4.TA.Tokens(40), out var draft, chunking);
            foreach (var golden in TAMtp) Check(golden, draft[golden.Position], $"MTP, chunking [{string.Join(",", chunking)}]");
        }
    }

    [Theory, MemberData(nameof(Backends))]
    public void Every_prefix_length_decodes_on_as_if_it_had_been_one_pass(string backend)
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TA, backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        int[] tokens = TinyDeepSeekV4.TA.Tokens(40);
        float[][] whole = session.Run(tokens);
        foreach (int prefix in (int[])[1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33])
            AssertSameBits(whole, session.Run(tokens, prefix, 1), $"prefix {prefix}");
    }

    [Fact]
    public void Computed_weights_are_those_of_the_description()
    {
        AssertClose([0.145175338f, 0.868649721f, -0.511966228f, -0.202490687f], TinyDeepSeekV4.Values("embed.weight", 4));
        AssertClose([0.19497001f, 0.21029952f, 0.04249188f], TinyDeepSeekV4.Values("layers.0.attn.wq_a.weight", 3));
        AssertClose([0.33769673f, -0.17670166f, -0.41053188f], TinyDeepSeekV4.Values("layers.2.attn.compressor.ape", 3));
        AssertClose([0.90410638f, 1.07606626f, 0.87426376f], TinyDeepSeekV4.Values("layers.0.attn_norm.weight", 3));
        AssertClose([-0.10096917f, -0.09090376f, -0.10346508f], TinyDeepSeekV4.Values("layers.3.ffn.gate.bias", 3));
        AssertClose([0.65842098f, 0.84989184f, 1.09861898f], TinyDeepSeekV4.Values("layers.0.hc_attn_scale", 3));

        static void AssertClose(float[] expected, float[] actual)
        {
            for (int i = 0; i < expected.Length; i++) Assert.Equal(expected[i], actual[i], 2e-8f);
        }
    }

    private static void Check(TinyDeepSeekV4 config, Golden[] goldens, int length, string backend, bool rounding)
    {
        using var loaded = TestModels.Load(config, backend, rounding ? TestModels.Rounded : null);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        float[][]? first = null;
        foreach (int[] chunking in Chunkings)
        {
            float[][] logits = session.Run(config.Tokens(length), chunking);
            foreach (var golden in goldens) Check(golden, logits[golden.Position], $"{config.Name}, chunking [{string.Join(",", chunking)}]");
            first ??= logits;
            AssertSameBits(first, logits, $"{config.Name}, chunking [{string.Join(",", chunking)}]");
        }
        Assert.All(session.Cache.Pools, pool => Assert.Equal(pool.PageCount, pool.FreeCount));
    }

    private static void Check(Golden golden, float[] logits, string what)
    {
        int argMax = Array.IndexOf(logits, logits.Max());
        Assert.True(golden.ArgMax == argMax, $"{what}, position {golden.Position}: argmax {argMax}, expected {golden.ArgMax}; first {string.Join(" ", logits[..4])}");
        Assert.True(Math.Abs(golden.Max - logits[argMax]) < Tolerance, $"{what}, position {golden.Position}: max {logits[argMax]}, expected {golden.Max}");
        for (int i = 0; i < golden.First.Length; i++)
            Assert.True(Math.Abs(golden.First[i] - logits[i]) < Tolerance, $"{what}, position {golden.Position}, logit {i}: {logits[i]}, expected {golden.First[i]}");
        if (!float.IsNaN(golden.Sum))
            Assert.True(Math.Abs(golden.Sum - logits.Sum(l => (double)l)) < 10 * Tolerance, $"{what}, position {golden.Position}: sum {logits.Sum(l => (double)l)}, expected {golden.Sum}");
    }

    internal static void AssertSameBits(float[][] expected, float[][] actual, string what)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int p = 0; p < expected.Length; p++)
            for (int i = 0; i < expected[p].Length; i++)
                Assert.True(BitConverter.SingleToInt32Bits(expected[p][i]) == BitConverter.SingleToInt32Bits(actual[p][i]),
                    $"{what}: position {p}, logit {i}: {actual[p][i]:R} instead of {expected[p][i]:R}");
    }
}

// What must hold for any DeepSeek-V4 configuration, whatever the numbers: causality, independence of the batch, of the pieces and of page
// placement, and the same answer from every storage of the same weights (architecture description, 9.1).
using Inference.Backends;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class DeepSeekV4PropertyTests
{
    private static readonly TinyDeepSeekV4[] Configurations =
    [
        TinyDeepSeekV4.TA, TinyDeepSeekV4.TW, TinyDeepSeekV4.TH,
        TinyDeepSeekV4.TH with { Name = "T-H1", IndexTopK = 1 },
        TinyDeepSeekV4.TH with { Name = "T-H1000", IndexTopK = 1000 },
        TinyDeepSeekV4.TP,
        TinyDeepSeekV4.TA with { Name = "T-M all hash", HashLayers = 6, Vocab = 99 },
        TinyDeepSeekV4.TA with { Name = "T-M no hash", HashLayers = 0 },
        TinyDeepSeekV4.TA with { Name = "ratios 2 and 100", Ratios = [2, 4, 100, 1] },
        TinyDeepSeekV4.TF with { Name = "T-F fp8 fp4", Storage = TinyStorage.Fp8Fp4 },
    ];

    public static TheoryData<string, string> All
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (string backend in TestModels.BackendNames)
                foreach (var c in Configurations) data.Add(c.Name, backend);
            return data;
        }
    }

    public static TheoryData<string> Backends => [.. TestModels.BackendNames];

    private static TinyDeepSeekV4 Config(string name) => Configurations.Single(c => c.Name == name);

    [Theory, MemberData(nameof(All))]
    public void Pieces_of_any_size_give_the_same_bits(string name, string backend)
    {
        using var loaded = TestModels.Load(Config(name), backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        int[] tokens = Config(name).Tokens(40);
        float[][] whole = session.Run(tokens);
        foreach (int[] pieces in (int[][])[[1], [3, 100], [4, 4, 1], [7]])
            DeepSeekV4GoldenTests.AssertSameBits(whole, session.Run(tokens, pieces), $"{name} [{string.Join(",", pieces)}]");
    }

    [Theory, MemberData(nameof(All))]
    public void A_token_changes_no_logits_before_it(string name, string backend)
    {
        using var loaded = TestModels.Load(Config(name), backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        int[] tokens = Config(name).Tokens(24);
        float[][] before = session.Run(tokens);
        foreach (int changed in (int[])[1, 7, 8, 15, 23])
        {
            int[] other = [.. tokens];
            other[changed] = (other[changed] + 1) % 96;
            float[][] after = session.Run(other);
            DeepSeekV4GoldenTests.AssertSameBits(before[..changed], after[..changed], $"{name}, token {changed}");
            Assert.NotEqual(before[changed], after[changed]);
        }
    }

    [Theory, MemberData(nameof(All))]
    public void Sequences_of_one_step_do_not_see_each_other(string name, string backend)
    {
        using var loaded = TestModels.Load(Config(name), backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        int[][] prompts = [Config(name).Tokens(33), [.. Config(name).Tokens(40).Reverse()], [5, 6, 7]];
        float[][][] alone = [.. prompts.Select(p => session.Run(p))];

        // Different lengths and positions in each step, one of them ending early so that its pages are used again.
        var states = prompts.Select(_ => session.Begin()).ToArray();
        var together = prompts.Select(_ => new List<float[]>()).ToArray();
        int[] sizes = [5, 2, 1];
        while (prompts.Select((p, i) => states[i].Length < p.Length).Any(more => more))
        {
            int[] active = [.. Enumerable.Range(0, prompts.Length).Where(i => states[i].Length < prompts[i].Length)];
            float[][][] logits = session.Step([.. active.Select(i => (states[i],
                prompts[i][states[i].Length..Math.Min(prompts[i].Length, states[i].Length + sizes[i])]))]);
            for (int a = 0; a < active.Length; a++) together[active[a]].AddRange(logits[a]);
            foreach (int i in active)
                if (states[i].Length == prompts[i].Length) session.End(states[i]);
        }
        for (int i = 0; i < prompts.Length; i++) DeepSeekV4GoldenTests.AssertSameBits(alone[i], [.. together[i]], $"{name}, sequence {i}");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Quantised_matrices_mean_their_dequantised_values(string backend)
    {
        foreach (var storage in (TinyStorage[])[TinyStorage.Fp8Fp4, TinyStorage.Fp8F32Scales, TinyStorage.BF16])
        {
            var config = TinyDeepSeekV4.TF with { Storage = storage };
            using var stored = TestModels.Load(config, backend);
            using var plain = TestModels.Load(config, backend, dequantised: true);
            using var storedSession = new ModelSession(stored.Model, stored.Backend);
            using var plainSession = new ModelSession(plain.Model, plain.Backend);
            float[][] a = storedSession.Run(config.Tokens(20)), b = plainSession.Run(config.Tokens(20));
            for (int p = 0; p < a.Length; p++)
                for (int i = 0; i < a[p].Length; i++)
                    Assert.True(Math.Abs(a[p][i] - b[p][i]) < 1e-4f, $"{storage}, position {p}, logit {i}: {a[p][i]} stored, {b[p][i]} dequantised");
        }
    }

    [Fact]
    public void Cpu_agrees_with_the_reference()
    {
        foreach (var config in Configurations)
        {
            using var cpu = TestModels.Load(config, "cpu");
            using var reference = TestModels.Load(config, "reference");
            using var cpuSession = new ModelSession(cpu.Model, cpu.Backend);
            using var referenceSession = new ModelSession(reference.Model, reference.Backend);
            float[][] a = cpuSession.Run(config.Tokens(40)), b = referenceSession.Run(config.Tokens(40));
            for (int p = 0; p < a.Length; p++)
                for (int i = 0; i < a[p].Length; i++)
                    Assert.True(Math.Abs(a[p][i] - b[p][i]) < 1e-4f, $"{config.Name}, position {p}, logit {i}: cpu {a[p][i]}, reference {b[p][i]}");
        }
    }
}

// The bits of matrix products where the kernels change their ways: one token, few, many; pieces of K, blocks of rows, tails; threads. The conformance
// suite asks the same of every operator on small shapes; here are the shapes it has no time for.
using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed unsafe class ScheduleBitsTests
{
    public static TheoryData<string, int, int> Weights()
    {
        var data = new TheoryData<string, int, int>();
        foreach (var scheme in Schemes.Keys)
        {
            data.Add(scheme, 37, 1152); // 2 pieces of 512 and a quarter; odd rows
            data.Add(scheme, 70, 2128); // not whole chains: 16 x 133
            data.Add(scheme, 9, 90); // not whole vectors
        }
        return data;
    }

    internal static readonly Dictionary<string, WeightScheme> Schemes = new()
    {
        ["F32"] = WeightScheme.F32,
        ["BF16"] = WeightScheme.BF16,
        ["F16"] = WeightScheme.F16,
        ["FP8 128x128"] = new(DType.F8E4M3, DType.F8E8M0, 128, 128),
        ["FP8 128x128 F32"] = new(DType.F8E4M3, DType.F32, 128, 128),
        ["FP8 32x32"] = new(DType.F8E4M3, DType.F8E8M0, 32, 32),
        ["FP8 one scale"] = new(DType.F8E4M3, DType.F32, 1 << 20, 1 << 20),
        ["FP8 7x5"] = new(DType.F8E4M3, DType.F32, 7, 5),
        ["FP4 32"] = new(DType.F4E2M1, DType.F8E8M0, 1, 32),
        ["FP4 2x32"] = new(DType.F4E2M1, DType.F8E8M0, 2, 32),
    };

    [Theory]
    [MemberData(nameof(Weights))]
    public void A_token_has_the_same_bits_alone_and_beside_any_number_of_others(string schemeName, int rows, int columns)
    {
        using var one = new CpuBackend(1);
        using var shared = new CpuBackend(3, grainWork: 1);
        using var weight = new RandomMatrix(Schemes[schemeName], rows, columns, seed: 1);
        const int TokensMax = 150;
        var x = Floats(TokensMax * columns, 2);
        var alone = new float[TokensMax * rows];
        for (var t = 0; t < TokensMax; t++)
            Multiply(one, weight, x.AsSpan(t * columns, columns), 1).CopyTo(alone.AsSpan(t * rows));
        AssertClose(weight, x, alone, TokensMax);

        foreach (var tokens in new[] { 1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 128, 129, 150 })
        {
            var first = TokensMax - tokens; // places in the batch differ from call to call
            foreach (var backend in new[] { one, shared })
            {
                var batch = Multiply(backend, weight, x.AsSpan(first * columns, tokens * columns), tokens);
                AssertSameBits(alone.AsSpan(first * rows, tokens * rows), batch, $"{tokens} tokens, {backend.Threads} threads");
            }
        }
    }

    [Theory]
    [InlineData("BF16")]
    [InlineData("FP8 128x128")]
    [InlineData("FP4 32")]
    public void Experts_give_a_pair_the_bits_of_its_own_products(string schemeName)
    {
        const int Experts = 5, Inner = 96, Width = 256, PerToken = 3, Tokens = 60;
        using var alone = new CpuBackend(1);
        using var shared = new CpuBackend(3, grainWork: 1);
        var scheme = Schemes[schemeName];
        RandomMatrix[] gate = Matrices(scheme, Experts, Inner, Width, 10), up = Matrices(scheme, Experts, Inner, Width, 20), down = Matrices(scheme, Experts, Width, Inner, 30);
        var random = new Random(3);
        int[] ids = [.. Enumerable.Range(0, Tokens * PerToken).Select(i => i % PerToken == 0 ? 0 : random.Next(Experts))]; // expert 0 is crowded, and chosen twice by some
        float[] x = Floats(Tokens * Width, 4), weights = Floats(Tokens * PerToken, 5), sharedExpert = Floats(Tokens * Width, 6);

        var expected = new float[Tokens * Width];
        for (var t = 0; t < Tokens; t++)
            RunExperts(alone, t, 1).CopyTo(expected.AsSpan(t * Width));
        AssertSameBits(expected, RunExperts(shared, 0, Tokens), "all tokens at once");
        AssertSameBits(expected.AsSpan(7 * Width, 5 * Width), RunExperts(shared, 7, 5), "five tokens");

        // The same from linear layers, pair by pair.
        for (var t = 0; t < 3; t++)
        {
            var sum = sharedExpert.AsSpan(t * Width, Width).ToArray();
            for (var s = 0; s < PerToken; s++)
            {
                var e = ids[t * PerToken + s];
                var input = x.AsSpan(t * Width, Width);
                float[] g = Multiply(alone, gate[e], input, 1), u = Multiply(alone, up[e], input, 1);
                fixed (float* gp = g, upp = u)
                    ElementwiseKernels.SwiGlu(gp, upp, 10, weights[t * PerToken + s], gp, Inner);
                var y = Multiply(alone, down[e], g, 1);
                for (var d = 0; d < Width; d++)
                    sum[d] += y[d];
            }
            AssertSameBits(sum, expected.AsSpan(t * Width, Width), $"token {t} from linear layers");
        }
        foreach (var m in gate.Concat(up).Concat(down)) m.Dispose();

        float[] RunExperts(CpuBackend backend, int first, int tokens)
        {
            using var memory = new TensorMemory(backend);
            Tensor input = memory.F32(x.AsSpan(first * Width, tokens * Width), tokens, Width), chosen = memory.I32(ids.AsSpan(first * PerToken, tokens * PerToken), tokens, PerToken);
            var hidden = memory.Empty(tokens, PerToken * Inner).As(tokens, PerToken, Inner);
            var output = memory.F32(sharedExpert.AsSpan(first * Width, tokens * Width), tokens, Width);
            PreparedWeight[] Prepare(RandomMatrix[] all) => [.. all.Select(m => m.Prepare(backend))];
            backend.Enqueue(new ExpertGateUp(input, chosen, memory.F32(weights.AsSpan(first * PerToken, tokens * PerToken), tokens, PerToken), Prepare(gate), Prepare(up), 10, hidden));
            backend.Enqueue(new ExpertDownCombine(hidden, chosen, Prepare(down), output, output));
            return TensorMemory.Read(output);
        }
    }

    private static RandomMatrix[] Matrices(WeightScheme scheme, int count, int rows, int columns, int seed) =>
        [.. Enumerable.Range(0, count).Select(i => new RandomMatrix(scheme, rows, columns, seed + i))];

    private static float[] Multiply(CpuBackend backend, RandomMatrix weight, ReadOnlySpan<float> x, int tokens)
    {
        using var memory = new TensorMemory(backend);
        using var prepared = weight.Prepare(backend);
        var y = memory.Empty(tokens, weight.Rows);
        backend.Enqueue(new Linear(memory.F32(x, tokens, weight.Columns), prepared, y));
        return TensorMemory.Read(y);
    }

    /// <summary>Agreement with double on some elements: wrong but consistent bits must not pass.</summary>
    private static void AssertClose(RandomMatrix weight, float[] x, float[] y, int tokens)
    {
        using var prepared = new CpuWeight(weight.Data);
        for (var n = 0; n < weight.Rows; n += 5)
        {
            var t = n * 7 % tokens;
            double sum = 0, magnitude = 0;
            for (var k = 0; k < weight.Columns; k++)
            {
                var product = (double)prepared.At(n, k) * x[t * weight.Columns + k];
                sum += product;
                magnitude += Math.Abs(product);
            }
            Assert.InRange(y[t * weight.Rows + n], sum - 1e-6 * magnitude, sum + 1e-6 * magnitude);
        }
    }

    private static void AssertSameBits(ReadOnlySpan<float> expected, ReadOnlySpan<float> actual, string where)
    {
        for (var i = 0; i < expected.Length; i++)
            Assert.True(BitConverter.SingleToInt32Bits(expected[i]) == BitConverter.SingleToInt32Bits(actual[i]), $"{where}: element {i}, {expected[i]:R} and {actual[i]:R}");
    }

    private static float[] Floats(int count, int seed)
    {
        var random = new Random(seed);
        var values = new float[count];
        for (var i = 0; i < count; i++)
            values[i] = random.NextSingle() - 0.5f;
        return values;
    }
}

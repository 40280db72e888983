using BenchmarkDotNet.Attributes;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;

namespace Inference.Benchmarks;

/// <summary>One draw from the vocabulary of DeepSeek-V4, per kind of parameters. Logits are spread over about 24 units.</summary>
public class SamplerBenchmarks
{
    private const int Vocab = 129_280;
    private static readonly SamplingParams Plain = new(1, 0, 1, 0, 1, 0, 0, 1);
    private readonly Sampler _sampler = new(Vocab);
    private readonly float[] _logits = MakeLogits();
    private int _index;

    private static float[] MakeLogits()
    {
        var random = new Random(1);
        return [.. Enumerable.Range(0, Vocab).Select(_ => (float)(Enumerable.Range(0, 4).Sum(_ => random.NextDouble()) - 2) * 6)];
    }

    private int Draw(SamplingParams sampling) => _sampler.Next(_logits, sampling, _index++, null);

    [Benchmark] public int Greedy() => Draw(SamplingParams.Greedy);
    [Benchmark] public int Unrestricted() => Draw(Plain);
    [Benchmark] public int TopK40() => Draw(Plain with { TopK = 40 });
    [Benchmark] public int TopK1000() => Draw(Plain with { TopK = 1000 });
    [Benchmark] public int TopP95() => Draw(Plain with { TopP = 0.95f });
    [Benchmark] public int MinP05() => Draw(Plain with { MinP = 0.05f });
    [Benchmark] public TokenLogprobs Top20Logprobs() => Logprobs.Of(_logits, 0, 20);
}

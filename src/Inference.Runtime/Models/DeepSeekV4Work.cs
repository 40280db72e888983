// What a step of a DeepSeek-V4 model has to move and to compute at least: the floor under its time, for benchmarks.
//
// Counts each weight that takes part and each cached row that is read once per step, and the multiply-adds of matrices, attention and index scores.
// Left out, because small: norms, rotations, the choice of the best rows, hyper-connections beyond their matrices, compressor state, activations.
// Knows no backend and measures nothing. Sections: docs/models/deepseek-v4.md.
using Inference.Runtime.KvCache;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>One part of a step's work.</summary>
/// <param name="Bytes">Read from memory at least.</param>
/// <param name="Operations">Multiplications and additions.</param>
public readonly record struct WorkPart(string Name, double Bytes, double Operations);

/// <summary>The work of steps of a model.</summary>
public sealed class DeepSeekV4Work
{
    private readonly DeepSeekV4Config _config;
    private readonly IReadOnlyList<KvStateSpec> _states;
    private readonly long _denseBytes, _denseElements, _headBytes, _headElements, _routedBytes, _routedElements;

    internal DeepSeekV4Work(DeepSeekV4Weights weights, IReadOnlyList<KvStateSpec> states)
    {
        (_config, _states) = (weights.Config, states);
        foreach (var weight in weights.All)
        {
            if (ReferenceEquals(weight, weights.Embed) || weight.Name.StartsWith("mtp.", StringComparison.Ordinal)) continue;
            if (ReferenceEquals(weight, weights.Head)) (_headBytes, _headElements) = (weight.ByteLength, weight.ElementCount);
            else if (weight.Name.Contains(".ffn.experts.", StringComparison.Ordinal)) Add(ref _routedBytes, ref _routedElements, weight);
            else if (!weight.Name.EndsWith(".tid2eid", StringComparison.Ordinal)) Add(ref _denseBytes, ref _denseElements, weight);
        }
    }

    private static void Add(ref long bytes, ref long elements, WeightRef weight)
    {
        bytes += weight.ByteLength;
        elements += weight.ElementCount;
    }

    /// <summary>The parts of a step over some tokens of one sequence.</summary>
    /// <param name="start">Position of the first.</param>
    /// <param name="tokens">How many.</param>
    /// <param name="logits">Of how many the logits are wanted.</param>
    public IReadOnlyList<WorkPart> Step(int start, int tokens, int logits)
    {
        int h = _config.HeadCount, d = _config.HeadDim, end = start + tokens;
        double perRow = 4.0 * h * d; // score and sum, each a multiplication and an addition per channel
        double k = (double)_config.ExpertsPerToken / _config.ExpertCount;
        double touched = 1 - Math.Pow(1 - k, tokens); // of the experts, when tokens choose evenly
        List<WorkPart> parts =
        [
            new("dense weights", _denseBytes, 2.0 * _denseElements * tokens),
            new("routed experts", _routedBytes * touched, 2.0 * _routedElements * k * tokens),
            new("head", logits == 0 ? 0 : _headBytes, 2.0 * _headElements * logits),
        ];
        double window = Sum(start, end, p => Math.Min(p + 1, _config.SlidingWindow));
        parts.Add(new("window rows", RowBytes("window") * _config.LayerCount * Math.Min(end, _config.SlidingWindow + tokens - 1.0), perRow * _config.LayerCount * window));
        foreach (int ratio in _config.CompressRatios.Take(_config.LayerCount).Where(r => r > 0).Distinct().Order())
        {
            int layers = _config.CompressRatios.Take(_config.LayerCount).Count(r => r == ratio);
            double visible = Sum(start, end, p => (p + 1) / ratio);
            if (ratio != DeepSeekV4Config.OverlapRatio)
            {
                parts.Add(new($"rows {ratio}:1", RowBytes($"hca-rows-{ratio}") * layers * (end / ratio), perRow * layers * visible));
                continue;
            }
            double selected = Sum(start, end, p => Math.Min((p + 1) / ratio, _config.IndexTopK));
            double scored = Sum(start, end, p => (p + 1) / ratio > _config.IndexTopK ? (p + 1) / ratio : 0);
            parts.Add(new("index rows", scored == 0 ? 0 : RowBytes("index-rows") * layers * (end / ratio), 2.0 * _config.IndexHeadCount * _config.IndexHeadDim * layers * scored));
            parts.Add(new("selected rows", RowBytes("csa-rows") * layers * Math.Min(selected, end / ratio), perRow * layers * selected));
        }
        return parts;
    }

    private static double Sum(int start, int end, Func<int, int> of)
    {
        double sum = 0;
        for (int p = start; p < end; p++) sum += of(p);
        return sum;
    }

    private double RowBytes(string kind)
    {
        var spec = _states.Single(s => s.Name == kind);
        return (double)spec.PageBytes / spec.LayerCount / spec.RowsPerPage;
    }
}

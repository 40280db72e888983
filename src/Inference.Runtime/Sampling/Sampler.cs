using Inference.Runtime.Engine;

namespace Inference.Runtime.Sampling;

/// <summary>
/// Logits to the next token, as <see cref="SamplingParams"/> says. The draw at output index i is the inverse of the distribution function,
/// summed in the order of token ids, at Philox(seed, i): it depends on the logits, the parameters and (seed, i), and on nothing else that
/// runs. Keeps scratch memory and no state; one thread.
/// "Better" means: larger logit, then smaller id.
/// </summary>
/// <param name="never">Ids that are never drawn.</param>
internal sealed class Sampler(int vocabSize, params int[] never)
{
    private const int SmallTopK = 256;  // up to here one selecting pass beats weighing the whole vocabulary
    private const int BlockSize = 1024;  // of the vocabulary, summed apart so that the search can skip
    private readonly float[] _logits = new float[vocabSize];
    private readonly float[] _weights = new float[vocabSize];
    private readonly double[] _blockSums = new double[(vocabSize + BlockSize - 1) / BlockSize];
    private readonly Nucleus _nucleus = new();

    /// <exception cref="InvalidLogitsException">The logits are not usable numbers.</exception>
    public int Next(ReadOnlySpan<float> logits, SamplingParams sampling, int outputIndex, TokenHistory? history)
    {
        if (logits.Length != vocabSize) throw new ArgumentException($"{logits.Length} logits for a vocabulary of {vocabSize}.");
        logits = Adjusted(logits, sampling, history);
        var (best, max) = LogitMath.ArgMax(logits);
        if (sampling.Temperature == 0 || sampling.TopK == 1) return best;
        double point = Philox.Uniform(sampling.Seed, outputIndex);
        int topK = sampling.TopK == 0 ? vocabSize : Math.Min(sampling.TopK, vocabSize);
        return topK <= SmallTopK ? DrawFew(logits, max, topK, sampling, point) : DrawMany(logits, max, topK, sampling, point);
    }

    private ReadOnlySpan<float> Adjusted(ReadOnlySpan<float> logits, SamplingParams sampling, TokenHistory? history)
    {
        if (history is null && sampling.LogitBias is not { Count: > 0 } && never.Length == 0) return logits;
        logits.CopyTo(_logits);
        if (sampling.LogitBias is not null)
            foreach (var (token, bias) in sampling.LogitBias) _logits[token] += bias;
        history?.Penalise(_logits, sampling);
        foreach (int token in never) _logits[token] = float.NegativeInfinity;
        return _logits;
    }

    private static int DrawFew(ReadOnlySpan<float> logits, float max, int topK, SamplingParams sampling, double point)
    {
        Span<int> ids = stackalloc int[topK];
        LogitMath.TopIds(logits, topK, ids);
        Span<float> weights = stackalloc float[topK];
        double mass = 0;
        for (int i = 0; i < topK; i++) mass += weights[i] = LogitMath.Weight(logits[ids[i]], max, sampling.Temperature);
        int kept = KeptByMass(weights, sampling.TopP * mass, sampling.TopP);
        while (weights[kept - 1] < sampling.MinP) kept--;
        ids = ids[..kept];
        weights = weights[..kept];
        ids.Sort(weights);
        double sum = 0;
        foreach (float weight in weights) sum += weight;
        return ids[Find(weights, point * sum)];
    }

    // The fewest of the best whose weights reach the mass.
    private static int KeptByMass(ReadOnlySpan<float> descending, double mass, float topP)
    {
        if (topP == 1) return descending.Length;
        double sum = 0;
        for (int i = 0; i < descending.Length; i++)
            if ((sum += descending[i]) >= mass) return i + 1;
        return descending.Length;
    }

    private int DrawMany(ReadOnlySpan<float> logits, float max, int topK, SamplingParams sampling, double point)
    {
        LogitMath.Weights(logits, max, sampling.Temperature, _weights);
        if (topK < vocabSize || sampling.TopP < 1)
        {
            int last = _nucleus.LastKept(logits, max, _weights, topK, sampling);
            LogitMath.DropBehind(logits, logits[last], last, _weights);
        }
        if (sampling.MinP > 0) LogitMath.DropBelow(sampling.MinP, _weights);
        double sum = 0;
        for (int block = 0; block < _blockSums.Length; block++) sum += _blockSums[block] = LogitMath.Sum(Block(block));
        double target = point * sum;
        int at = 0;
        while (at + 1 < _blockSums.Length && !(_blockSums[at] > target)) target -= _blockSums[at++];
        while (_blockSums[at] == 0) at--;  // rounding led past the last weight
        return at * BlockSize + Find(Block(at), target);
    }

    private ReadOnlySpan<float> Block(int block) => _weights.AsSpan(block * BlockSize, Math.Min(BlockSize, vocabSize - block * BlockSize));

    // The first index whose running sum exceeds the target; the last with a weight if rounding hides it.
    private static int Find(ReadOnlySpan<float> weights, double target)
    {
        double sum = 0;
        int last = 0;
        for (int i = 0; i < weights.Length; i++)
        {
            if (weights[i] == 0) continue;
            sum += weights[i];
            last = i;
            if (sum > target) return i;
        }
        return last;
    }
}

namespace Inference.Runtime.Sampling;

/// <summary>
/// Where top-k and top-p cut, without sorting the vocabulary: tokens are counted and weighed in bins by their distance from the largest logit,
/// and only the bin in which the cut falls is sorted. Scratch memory only; one thread.
/// </summary>
internal sealed class Nucleus
{
    private const int BinCount = 2048;
    private const float BinsPerUnit = 64;  // the last bin holds all weights below exp(-32)
    private readonly int[] _count = new int[BinCount];
    private readonly double[] _mass = new double[BinCount];
    private ulong[] _ranks = [];

    /// <summary>The <see cref="LogitMath.Rank"/> of the worst token that both limits keep.</summary>
    /// <param name="weights">exp((logits - max) / temperature).</param>
    public ulong LastKept(ReadOnlySpan<float> logits, float max, ReadOnlySpan<float> weights, int topK, SamplingParams sampling)
    {
        FillBins(logits, max, weights, sampling.Temperature);
        int bin = 0, countBefore = 0;
        double massBefore = 0;
        while (countBefore + _count[bin] < topK)
        {
            countBefore += _count[bin];
            massBefore += _mass[bin++];
        }
        var ranks = SortedBin(logits, max, sampling.Temperature, bin)[..(topK - countBefore)];
        if (sampling.TopP == 1) return ranks[^1];
        double massKept = 0;
        foreach (ulong rank in ranks) massKept += weights[LogitMath.RankedId(rank)];
        (_count[bin], _mass[bin]) = (ranks.Length, massKept);
        return LastByMass(logits, max, weights, sampling, bin, sampling.TopP * (massBefore + massKept));
    }

    private ulong LastByMass(
        ReadOnlySpan<float> logits, float max, ReadOnlySpan<float> weights, SamplingParams sampling, int lastBin, double mass)
    {
        int bin = 0;
        double sum = 0;
        while (bin < lastBin && sum + _mass[bin] < mass) sum += _mass[bin++];
        var ranks = SortedBin(logits, max, sampling.Temperature, bin)[.._count[bin]];
        foreach (ulong rank in ranks)
            if ((sum += weights[LogitMath.RankedId(rank)]) >= mass) return rank;
        return ranks[^1];
    }

    private void FillBins(ReadOnlySpan<float> logits, float max, ReadOnlySpan<float> weights, float temperature)
    {
        Array.Clear(_count);
        Array.Clear(_mass);
        for (int i = 0; i < logits.Length; i++)
        {
            int bin = Bin(logits[i], max, temperature);
            _count[bin]++;
            _mass[bin] += weights[i];
        }
    }

    // Falls with the logit, so a bin's tokens are all better than those of the next.
    private static int Bin(float logit, float max, float temperature) =>
        (int)MathF.Min((max - logit) / temperature * BinsPerUnit, BinCount - 1);

    private Span<ulong> SortedBin(ReadOnlySpan<float> logits, float max, float temperature, int bin)
    {
        if (_ranks.Length < logits.Length) _ranks = new ulong[logits.Length];
        int count = 0;
        for (int i = 0; i < logits.Length; i++)
            if (Bin(logits[i], max, temperature) == bin) _ranks[count++] = LogitMath.Rank(logits[i], i);
        var ranks = _ranks.AsSpan(0, count);
        ranks.Sort();
        ranks.Reverse();
        return ranks;
    }
}

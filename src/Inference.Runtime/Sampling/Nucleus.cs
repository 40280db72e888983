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
    private int[] _bins = [];
    private ulong[] _ranks = [];

    /// <summary>Id of the worst token that both limits keep.</summary>
    /// <param name="weights">exp((logits - max) / temperature).</param>
    public int LastKept(ReadOnlySpan<float> logits, float max, ReadOnlySpan<float> weights, int topK, SamplingParams sampling)
    {
        FillBins(logits, max, weights, sampling.Temperature);
        int bin = 0, countBefore = 0;
        double massBefore = 0;
        while (countBefore + _count[bin] < topK)
        {
            countBefore += _count[bin];
            massBefore += _mass[bin++];
        }
        var ranks = SortedBin(logits, bin)[..(topK - countBefore)];
        if (sampling.TopP == 1) return LogitMath.RankedId(ranks[^1]);
        double massKept = 0;
        foreach (ulong rank in ranks) massKept += weights[LogitMath.RankedId(rank)];
        (_count[bin], _mass[bin]) = (ranks.Length, massKept);
        return LastByMass(logits, weights, bin, sampling.TopP * (massBefore + massKept));
    }

    private int LastByMass(ReadOnlySpan<float> logits, ReadOnlySpan<float> weights, int lastBin, double mass)
    {
        int bin = 0;
        double sum = 0;
        while (bin < lastBin && sum + _mass[bin] < mass) sum += _mass[bin++];
        int id = 0;
        foreach (ulong rank in SortedBin(logits, bin)[.._count[bin]])
        {
            id = LogitMath.RankedId(rank);
            if ((sum += weights[id]) >= mass) break;
        }
        return id;
    }

    private void FillBins(ReadOnlySpan<float> logits, float max, ReadOnlySpan<float> weights, float temperature)
    {
        if (_bins.Length < logits.Length) (_bins, _ranks) = (new int[logits.Length], new ulong[logits.Length]);
        LogitMath.Bins(logits, max, temperature, BinsPerUnit, BinCount - 1, _bins);
        Array.Clear(_count);
        Array.Clear(_mass);
        for (int i = 0; i < logits.Length; i++)
        {
            int bin = _bins[i];
            _count[bin]++;
            _mass[bin] += weights[i];
        }
    }

    // A bin's tokens, best first. All of them are better than those of the next bin.
    private Span<ulong> SortedBin(ReadOnlySpan<float> logits, int bin)
    {
        int count = 0;
        for (int i = _bins.AsSpan(0, logits.Length).IndexOf(bin); i >= 0;)
        {
            _ranks[count++] = LogitMath.Rank(logits[i], i);
            int next = _bins.AsSpan(i + 1, logits.Length - i - 1).IndexOf(bin);
            i = next < 0 ? -1 : i + 1 + next;
        }
        var ranks = _ranks.AsSpan(0, count);
        ranks.Sort();
        ranks.Reverse();
        return ranks;
    }
}

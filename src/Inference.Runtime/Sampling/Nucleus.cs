namespace Inference.Runtime.Sampling;

/// <summary>
/// Where top-k and top-p cut, without sorting the vocabulary: tokens are counted and weighed in bins by their distance from the largest logit,
/// and the bin in which the cut falls is taken apart by the digits of its tokens' ranks. Linear in the vocabulary whatever the logits are;
/// a request with an extreme temperature, which puts all tokens into one bin, costs little more than another. Scratch memory only; one thread.
/// </summary>
internal sealed class Nucleus
{
    private const int BinCount = 2048;
    private const float BinsPerUnit = 64;  // the last bin holds all weights below exp(-32)
    private const int DigitBits = 8;
    private readonly int[] _count = new int[BinCount];
    private readonly double[] _mass = new double[BinCount];
    private readonly int[] _digitCount = new int[1 << DigitBits];
    private readonly double[] _digitMass = new double[1 << DigitBits];
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
        int lastBin = bin, inLastBin = topK - countBefore;
        var (last, massOfLastBin) = Cut(Members(logits, bin), weights, inLastBin, double.PositiveInfinity);
        if (sampling.TopP == 1) return last;

        double mass = sampling.TopP * (massBefore + massOfLastBin), sum = 0;
        (_count[lastBin], _mass[lastBin]) = (inLastBin, massOfLastBin);
        for (bin = 0; bin < lastBin && sum + _mass[bin] < mass; bin++) sum += _mass[bin];
        return Cut(Members(logits, bin), weights, _count[bin], mass - sum).Id;
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

    // Ranks of a bin's tokens in the order of their ids. All of them are better than those of the next bin.
    private Span<ulong> Members(ReadOnlySpan<float> logits, int bin)
    {
        var bins = _bins.AsSpan(0, logits.Length);
        int count = 0;
        for (int i = 0; i < bins.Length; i++)
        {
            if (bins[i] != bin)
            {
                int skip = bins[i..].IndexOf(bin);
                if (skip < 0) break;
                i += skip;
            }
            _ranks[count++] = LogitMath.Rank(logits[i], i);
        }
        return _ranks.AsSpan(0, count);
    }

    // Goes through the ranks from the best until that many were met or their weights reach the mass: the id where that is, and the weights
    // up to it. Overwrites the ranks.
    private (int Id, double Mass) Cut(Span<ulong> ranks, ReadOnlySpan<float> weights, int count, double mass)
    {
        double sum = 0;
        while (ranks.Length > 1)
        {
            int shift = FirstDifferentDigit(ranks);
            FillDigits(ranks, weights, shift);
            int last = -1;
            for (int digit = _digitCount.Length - 1; digit >= 0; digit--)
            {
                if (_digitCount[digit] == 0) continue;
                last = digit;
                count -= _digitCount[digit];
                sum += _digitMass[digit];
                if (count <= 0 || sum >= mass) break;
            }
            // Rounding may hide the mass until no digit is left: then the cut is in the last that there was.
            count += _digitCount[last];
            sum -= _digitMass[last];
            ranks = Keep(ranks, shift, (ulong)last);
        }
        int id = LogitMath.RankedId(ranks[0]);
        return (id, sum + weights[id]);
    }

    private static int FirstDifferentDigit(ReadOnlySpan<ulong> ranks)
    {
        ulong different = 0;
        foreach (ulong rank in ranks) different |= rank ^ ranks[0];
        return Math.Max(0, 64 - DigitBits - (int)ulong.LeadingZeroCount(different));
    }

    private void FillDigits(ReadOnlySpan<ulong> ranks, ReadOnlySpan<float> weights, int shift)
    {
        Array.Clear(_digitCount);
        Array.Clear(_digitMass);
        foreach (ulong rank in ranks)
        {
            int digit = (int)(rank >> shift) & (_digitCount.Length - 1);
            _digitCount[digit]++;
            _digitMass[digit] += weights[LogitMath.RankedId(rank)];
        }
    }

    private static Span<ulong> Keep(Span<ulong> ranks, int shift, ulong digit)
    {
        int kept = 0;
        foreach (ulong rank in ranks)
            if ((rank >> shift & ((1 << DigitBits) - 1)) == digit) ranks[kept++] = rank;
        return ranks[..kept];
    }
}

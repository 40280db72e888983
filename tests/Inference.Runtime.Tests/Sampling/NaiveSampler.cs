using Inference.Runtime.Sampling;

namespace Inference.Runtime.Tests.Sampling;

/// <summary>What SamplingParams says, word for word, with a full sort: logits are adjusted in float32, as the engine's are, so that ties are
/// the same; probabilities are float64.</summary>
internal static class NaiveSampler
{
    /// <param name="Probabilities">By token id; 0 = not kept.</param>
    /// <param name="Margin">How close the nearest top-p or min-p decision was, as a share of all probability.</param>
    public sealed record Distribution(double[] Probabilities, double Margin);

    public static double[] Adjusted(ReadOnlySpan<float> logits, SamplingParams p, IReadOnlyList<int> prompt, IReadOnlyList<int> output)
    {
        var x = new double[logits.Length];
        for (int i = 0; i < x.Length; i++)
        {
            float logit = logits[i];
            if (p.LogitBias?.TryGetValue(i, out float bias) == true) logit += bias;
            if (prompt.Contains(i) || output.Contains(i)) logit = logit > 0 ? logit / p.RepetitionPenalty : logit * p.RepetitionPenalty;
            int count = output.Count(t => t == i);
            if (count > 0) logit -= p.PresencePenalty + p.FrequencyPenalty * count;
            x[i] = logit;
        }
        return x;
    }

    public static Distribution Of(double[] x, SamplingParams p)
    {
        var order = Enumerable.Range(0, x.Length).OrderByDescending(i => x[i]).ThenBy(i => i).ToList();
        if (p.TopK > 0) order = order.Take(p.TopK).ToList();
        double margin = 1;
        var weights = order.Select(i => Math.Exp((x[i] - x[order[0]]) / p.Temperature)).ToList();
        if (p.TopP < 1)
        {
            double total = weights.Sum(), sum = 0;
            int kept = 0;
            do
            {
                sum += weights[kept++];
                margin = Math.Min(margin, Math.Abs(sum / total - p.TopP));
            }
            while (sum < p.TopP * total && kept < weights.Count);
            (order, weights) = (order[..kept], weights[..kept]);
        }
        foreach (double w in weights.Where(_ => p.MinP > 0)) margin = Math.Min(margin, Math.Abs(w - p.MinP));
        var probabilities = new double[x.Length];
        for (int i = 0; i < order.Count; i++)
            if (weights[i] >= p.MinP) probabilities[order[i]] = weights[i];
        double mass = probabilities.Sum();
        for (int i = 0; i < x.Length; i++) probabilities[i] /= mass;
        return new(probabilities, margin);
    }

    /// <summary>The token at a point of the distribution function, and how far the nearest step of that function is.</summary>
    public static (int Token, double Margin) At(double[] probabilities, double point)
    {
        double sum = 0, margin = 1;
        int token = -1, last = -1;
        for (int i = 0; i < probabilities.Length; i++)
        {
            if (probabilities[i] == 0) continue;
            last = i;
            sum += probabilities[i];
            margin = Math.Min(margin, Math.Abs(sum - point));
            if (token < 0 && sum > point) token = i;
        }
        return (token < 0 ? last : token, margin);
    }
}

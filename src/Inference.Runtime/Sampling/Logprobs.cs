using Inference.Runtime.Engine;

namespace Inference.Runtime.Sampling;

/// <summary>Natural-log softmax of raw logits, for the chosen token and the most likely ones.</summary>
internal static class Logprobs
{
    public static TokenLogprobs Of(ReadOnlySpan<float> logits, int chosen, int top)
    {
        float max = LogitMath.ArgMax(logits).Value;
        double logSum = Math.Log(LogitMath.ExpSum(logits, max));
        top = Math.Min(top, logits.Length);
        Span<int> ids = top <= 256 ? stackalloc int[top] : new int[top];
        LogitMath.TopIds(logits, top, ids);
        var best = new TokenLogprob[top];
        for (int i = 0; i < top; i++) best[i] = new(ids[i], Logprob(logits[ids[i]]));
        return new(chosen, Logprob(logits[chosen]), best);

        float Logprob(float logit) => (float)((double)logit - max - logSum);
    }
}

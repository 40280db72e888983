namespace Inference.Runtime.Sampling;

/// <summary>
/// Which tokens a sequence has seen and how often it put them out: what the penalties read. Made per request, and only if its parameters
/// have a penalty; belongs to the engine's thread once the request is submitted.
/// </summary>
internal sealed class TokenHistory
{
    // Times in the output; 0 = in the prompt only. Order does not matter: each token's logit is changed once, by itself.
    private readonly Dictionary<int, int> _counts = [];

    private TokenHistory() { }

    /// <summary>Null if the parameters have no penalty.</summary>
    public static TokenHistory? For(SamplingParams sampling, IReadOnlyList<int> prompt)
    {
        bool repetition = sampling.RepetitionPenalty != 1;
        if (!repetition && sampling.PresencePenalty == 0 && sampling.FrequencyPenalty == 0) return null;
        var history = new TokenHistory();
        if (repetition)
            foreach (int token in prompt) history._counts.TryAdd(token, 0);
        return history;
    }

    public void Add(int outputToken) => _counts[outputToken] = _counts.GetValueOrDefault(outputToken) + 1;

    public void Penalise(Span<float> logits, SamplingParams sampling)
    {
        foreach (var (token, count) in _counts)
        {
            ref float logit = ref logits[token];
            logit = logit > 0 ? logit / sampling.RepetitionPenalty : logit * sampling.RepetitionPenalty;
            if (count > 0) logit -= sampling.PresencePenalty + sampling.FrequencyPenalty * count;
        }
    }
}

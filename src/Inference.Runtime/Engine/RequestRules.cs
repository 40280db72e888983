using Inference.Runtime.Sampling;

namespace Inference.Runtime.Engine;

/// <summary>
/// Whether a request can ever run on this engine. Looks at the request and at constants, at nothing that changes; the fields are named
/// as in the protocol.
/// </summary>
/// <param name="ContextMax">Most positions of one sequence.</param>
/// <param name="CacheTokensMax">Most positions that one sequence can have in the KV cache.</param>
internal sealed record RequestRules(int VocabSize, int ContextMax, int CacheTokensMax)
{
    public const int StopStringsMax = 16, StopStringCharsMax = 256, StopTokenIdsMax = 256, TopLogprobsMax = 20, LogitBiasMax = 1024;

    /// <exception cref="RequestRejectedException">It cannot.</exception>
    public void Check(GenerationRequest request)
    {
        CheckPrompt(request.PromptTokenIds);
        CheckLength(request.PromptTokenIds.Count, request.OutputTokensMax);
        CheckSampling(request.Sampling);
        AtMost(StopStringsMax, request.StopStrings.Count, "stopping.stop", "strings");
        foreach (string stop in request.StopStrings)
            if (string.IsNullOrEmpty(stop) || stop.Length > StopStringCharsMax)
                throw Invalid("stopping.stop", $"A stop string has 1 to {StopStringCharsMax} characters, not {stop?.Length ?? 0}.");
        AtMost(StopTokenIdsMax, request.StopTokenIds.Count, "stopping.stop_token_ids", "ids");
        foreach (int id in request.StopTokenIds) CheckId(id, "stopping.stop_token_ids");
        if (request.Priority is < GenerationRequest.PriorityMin or > GenerationRequest.PriorityMax)
            throw Invalid("priority", $"{request.Priority} is not in [{GenerationRequest.PriorityMin}, {GenerationRequest.PriorityMax}].");
        if (request.TopLogprobs is { } top) InRange(0, TopLogprobsMax, top, "output.top_logprobs");
    }

    private void CheckPrompt(IReadOnlyList<int> prompt)
    {
        if (prompt.Count == 0) throw Invalid("prompt", "The prompt has no tokens.");
        for (int i = 0; i < prompt.Count; i++) CheckId(prompt[i], "prompt");
    }

    private void CheckLength(int prompt, int output)
    {
        if (output < 0) throw Invalid("stopping.max_tokens", $"{output} tokens cannot be generated.");
        long context = SeededBug.Is(20) ? prompt + output : (long)prompt + output;
        long cache = output == 0 ? prompt : context - 1;  // the last token is never processed
        if (context <= ContextMax && (cache <= CacheTokensMax || SeededBug.Is(4))) return;
        string limit = context > ContextMax ? $"the context of {ContextMax} positions" : $"the KV cache of {CacheTokensMax} positions";
        long outputFitting = Math.Min(ContextMax, (long)CacheTokensMax + 1) - prompt;
        throw outputFitting >= 1
            ? Invalid("stopping.max_tokens",
                $"{prompt} prompt tokens and {output} tokens to generate exceed {limit}; at most {outputFitting} can be generated.")
            : Invalid("prompt", $"{prompt} prompt tokens exceed {limit}; with 1 token to generate at most {prompt + outputFitting - 1} fit.");
    }

    private void CheckSampling(SamplingParams sampling)
    {
        InRange(0, float.MaxValue, sampling.Temperature, "sampling.temperature");
        InRange(0, int.MaxValue, sampling.TopK, "sampling.top_k");
        InRange(float.Epsilon, 1, sampling.TopP, "sampling.top_p");
        InRange(0, 1, sampling.MinP, "sampling.min_p");
        InRange(1e-3f, 1e3f, sampling.RepetitionPenalty, "sampling.repetition_penalty");
        InRange(-2, 2, sampling.PresencePenalty, "sampling.presence_penalty");
        InRange(-2, 2, sampling.FrequencyPenalty, "sampling.frequency_penalty");
        if (sampling.LogitBias is not { } biases) return;
        AtMost(LogitBiasMax, biases.Count, "sampling.logit_bias", "entries");
        foreach (var (id, bias) in biases)
        {
            CheckId(id, "sampling.logit_bias");
            InRange(-1000, 1000, bias, "sampling.logit_bias");
        }
    }

    private void CheckId(int id, string field)
    {
        if ((uint)id >= (uint)VocabSize) throw Invalid(field, $"Token id {id} is not in the vocabulary of {VocabSize}.");
    }

    private static void InRange(float min, float max, float value, string field)
    {
        if (!(value >= min && value <= max)) throw Invalid(field, $"{value} is not in [{min}, {max}].");
    }

    private static void AtMost(int max, int count, string field, string what)
    {
        if (count > max) throw Invalid(field, $"{count} {what}, at most {max}.");
    }

    private static RequestRejectedException Invalid(string field, string message) =>
        new(RejectionReason.InvalidRequest, message, field);
}

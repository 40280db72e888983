using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Testing;

namespace Inference.Simulation;

/// <summary>What a request must yield, worked out from the request alone: no engine, scheduler or cache.</summary>
internal sealed record SoloRun(IReadOnlyList<int> Tokens, string Text, FinishReason Reason, int? StopTokenId, string? StopString)
{
    public static SoloRun Of(HashModel model, GenerationRequest request)
    {
        var sampler = new Sampler(model.Info.VocabSize);
        var history = TokenHistory.For(request.Sampling, request.PromptTokenIds);
        var logits = new float[model.Info.VocabSize];
        int[] prompt = [.. request.PromptTokenIds];
        var output = new List<int>();
        ulong hash = HashModel.HashOf(prompt);
        string text = "";
        while (output.Count < request.OutputTokensMax)
        {
            model.Logits(hash, output.Count > 0 ? output[^1] : prompt[^1], logits);
            if (float.IsNaN(logits[0])) return new(output, text, FinishReason.Error, null, null);
            int token = sampler.Next(logits, request.Sampling, output.Count, history);
            history?.Add(token);
            hash = HashModel.Next(hash, token);
            output.Add(token);
            if (request.StopTokenIds.Contains(token)) return new(output, text, FinishReason.Stop, token, null);
            text += LetterText.Letter(token);
            if (request.StopStrings.FirstOrDefault(s => text.EndsWith(s, StringComparison.Ordinal)) is { } stop)
                return new(output, request.IncludeStop ? text : text[..^stop.Length], FinishReason.Stop, null, stop);
        }
        return new(output, text, FinishReason.Length, null, null);
    }
}

using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Testing;

namespace Inference.Runtime.Tests.Engine;

/// <summary>What a request must yield, worked out from the request alone: no engine, scheduler or cache.</summary>
internal sealed record SoloRun(IReadOnlyList<int> Tokens, string Text, FinishReason Reason, int? StopTokenId, string? StopString)
{
    public static SoloRun Of(HashModel model, GenerationRequest request)
    {
        var sampler = new Sampler(model.Info.VocabSize);
        var history = TokenHistory.For(request.Sampling, request.PromptTokenIds);
        var logits = new float[model.Info.VocabSize];
        List<int> prefix = [.. request.PromptTokenIds], output = [];
        string text = "";
        while (output.Count < request.OutputTokensMax)
        {
            model.Logits(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(prefix), logits);
            if (float.IsNaN(logits[0])) return new(output, text, FinishReason.Error, null, null);
            int token = sampler.Next(logits, request.Sampling, output.Count, history);
            history?.Add(token);
            prefix.Add(token);
            output.Add(token);
            if (request.StopTokenIds.Contains(token)) return new(output, text, FinishReason.Stop, token, null);
            text += LetterText.Letter(token);
            if (request.StopStrings.FirstOrDefault(s => text.EndsWith(s, StringComparison.Ordinal)) is { } stop)
                return new(output, request.IncludeStop ? text : text[..^stop.Length], FinishReason.Stop, null, stop);
        }
        return new(output, text, FinishReason.Length, null, null);
    }
}

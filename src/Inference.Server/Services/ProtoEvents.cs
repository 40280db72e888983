using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>The engine's events and values as the contract spells them. Pure.</summary>
internal static class ProtoEvents
{
    public static V1.Started Started(GenerationStarted e, ReadRequest request, ServedModel model) => new()
    {
        RequestId = request.Generation.RequestId,
        Model = model.Name,
        PromptTokens = e.PromptTokens,
        CachedTokens = e.CachedTokens,
        Sampling = Sampling(request.Generation.Sampling),
        Stopping = Stopping(request.Generation, model),
        QueueTime = Duration.FromTimeSpan(e.QueueTime),
    };

    public static V1.SamplingOptions Sampling(SamplingParams s)
    {
        var options = new V1.SamplingOptions
        {
            Temperature = s.Temperature,
            TopK = s.TopK,
            TopP = s.TopP,
            MinP = s.MinP,
            RepetitionPenalty = s.RepetitionPenalty,
            PresencePenalty = s.PresencePenalty,
            FrequencyPenalty = s.FrequencyPenalty,
            Seed = s.Seed,
        };
        foreach (var (id, bias) in s.LogitBias ?? new Dictionary<int, float>()) options.LogitBias[(uint)id] = bias;
        return options;
    }

    private static V1.StoppingOptions Stopping(GenerationRequest g, ServedModel model) => new()
    {
        MaxTokens = g.OutputTokensMax,
        Stop = { g.StopStrings },
        StopTokenIds = { g.StopTokenIds.Select(id => (uint)id) },
        IncludeStop = g.IncludeStop,
        IgnoreEos = !model.Defaults.EndTokenIds.All(g.StopTokenIds.Contains),
    };

    public static V1.Delta Delta(GenerationDelta e, ReadRequest request, ServedModel model)
    {
        var delta = new V1.Delta { Index = (uint)e.Index, Text = e.Text };
        if (!request.OmitTokenIds)
            foreach (int id in e.TokenIds) delta.TokenIds.Add((uint)id);
        if (!request.OmitBytes) delta.Bytes = ByteString.CopyFrom(e.Bytes.Span);
        foreach (var logprobs in e.Logprobs ?? []) delta.Logprobs.Add(Logprobs(logprobs, model));
        return delta;
    }

    private static V1.TokenLogprobs Logprobs(TokenLogprobs l, ServedModel model)
    {
        var logprobs = new V1.TokenLogprobs { TokenId = (uint)l.TokenId, Logprob = l.Logprob };
        foreach (var top in l.Top)
            logprobs.Top.Add(new V1.TokenLogprob
            {
                TokenId = (uint)top.TokenId,
                Logprob = top.Logprob,
                Bytes = ByteString.CopyFrom(model.Tokenizer.TokenBytes(top.TokenId).Span),
            });
        return logprobs;
    }

    /// <param name="failure">What an ending with an error is told as; null for the other endings.</param>
    public static V1.Finished Finished(GenerationFinished e, RequestException? failure)
    {
        var finished = new V1.Finished
        {
            Reason = Reason(e.Reason),
            Usage = new V1.Usage { PromptTokens = e.Usage.PromptTokens, CachedTokens = e.Usage.CachedTokens, CachedDiskTokens = e.Usage.DiskTokens, OutputTokens = e.Usage.OutputTokens },
            Timings = new V1.Timings { Queue = Duration.FromTimeSpan(e.Timings.Queue), Total = Duration.FromTimeSpan(e.Timings.Total) },
        };
        if (e.Usage.OutputTokens > 0) finished.Timings.TimeToFirstToken = Duration.FromTimeSpan(e.Timings.TimeToFirstToken);
        if (e.StopString is not null) finished.Stop = e.StopString;
        else if (e.StopTokenId is { } id) finished.StopTokenId = (uint)id;
        if (failure is not null)
            finished.Error = new V1.Error { Reason = failure.Reason, Message = failure.Message, Retryable = StatusMapping.IsRetryable(failure.Reason) };
        return finished;
    }

    private static V1.FinishReason Reason(FinishReason reason) => reason switch
    {
        FinishReason.Stop => V1.FinishReason.Stop,
        FinishReason.Length => V1.FinishReason.Length,
        FinishReason.Cancelled => V1.FinishReason.Cancelled,
        FinishReason.DeadlineExceeded or FinishReason.FirstTokenDeadlineExceeded or FinishReason.DeadlineUnreachable => V1.FinishReason.DeadlineExceeded,
        _ => V1.FinishReason.Error,
    };
}

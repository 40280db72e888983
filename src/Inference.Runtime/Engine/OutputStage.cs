using Inference.Runtime.Sampling;
using Inference.Runtime.Scheduling;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>
/// From a sequence's logits to its next token, text and logprobs. Whatever goes wrong here is that sequence's end and nobody else's.
/// The engine's thread.
/// </summary>
internal sealed class OutputStage(int vocabSize, int[] idsNeverSampled, ILogger log)
{
    private readonly Sampler _sampler = new(vocabSize, idsNeverSampled);

    /// <summary>Draws the token, and leaves what the client is to be told of it in <see cref="ActiveRequest.Delta"/>.</summary>
    public ChunkOutcome Next(ActiveRequest active, ReadOnlySpan<float> logits)
    {
        int index = active.Sequence.OutputCount - (SeededBug.Is(13) && active.Sequence.Preemptions > 0 ? 1 : 0);
        try
        {
            int token = _sampler.Next(logits, active.Request.Sampling, index, active.History);
            active.History?.Add(token);
            if (active.IsStopToken(token))
            {
                active.StopTokenId = token;
                return new(token, Stops: true);
            }
            var piece = active.Text.Push(token);
            var logprobs = active.Request.TopLogprobs is { } top ? Logprobs.Of(logits, token, top) : null;
            active.Delta = new(index, [token], piece.Text, piece.Bytes, logprobs is null ? null : [logprobs]);
            active.StopString = piece.StopString;
            return new(token, Stops: piece.StopString is not null);
        }
        catch (InvalidLogitsException e)
        {
            EngineLog.SequenceFailed(log, e, active.Request.RequestId, index);
            return new(0, false, $"Output token {index}: {e.Message}");
        }
        catch (Exception e) when (!SeededBug.Is(22))
        {
            EngineLog.SequenceFailed(log, e, active.Request.RequestId, index);
            return new(0, false, $"Output token {index} could not be made: internal error.");
        }
    }

    /// <summary>The text held back until the end.</summary>
    public string Rest(ActiveRequest active)
    {
        if (active.StopString is not null) return "";
        try
        {
            return active.Text.Flush();
        }
        catch (Exception e)
        {
            EngineLog.SequenceFailed(log, e, active.Request.RequestId, active.Sequence.OutputCount);
            return "";
        }
    }
}

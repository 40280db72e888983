using System.Text;
using Inference.Runtime.Engine;
using Inference.Testing;

namespace Inference.Simulation;

/// <summary>A client that keeps what it read, and insists on the order that the contract promises.</summary>
internal sealed class StreamRecord(GenerationHandle handle, GenerationRequest request)
{
    private readonly StringBuilder _text = new();

    public GenerationRequest Request => request;
    public GenerationHandle Handle => handle;
    public bool Started { get; private set; }
    public List<int> Tokens { get; } = [];
    public string Text => _text.ToString();
    public GenerationFinished? End { get; private set; }
    public List<TokenLogprobs> Logprobs { get; } = [];

    /// <summary>Reads one event if there is one.</summary>
    public bool TryRead()
    {
        if (!handle.Events.TryRead(out var e)) return false;
        Enter(e);
        return true;
    }

    public async Task<StreamRecord> ReadToEndAsync(CancellationToken cancellation)
    {
        await foreach (var e in handle.Events.ReadAllAsync(cancellation)) Enter(e);
        if (End is null) throw new LawBrokenException(Law.DeliveredOnce, $"request {request.RequestId} has no end");
        return this;
    }

    private void Enter(GenerationEvent e)
    {
        if (End is not null) throw new LawBrokenException(Law.DeliveredOnce, $"request {request.RequestId}: {e} after the end");
        switch (e)
        {
            case GenerationStarted:
                if (Started) throw new LawBrokenException(Law.DeliveredOnce, $"request {request.RequestId} started twice");
                Started = true;
                break;
            case GenerationDelta delta:
                if (!Started || delta.Index != Tokens.Count)
                    throw new LawBrokenException(Law.DeliveredOnce, $"request {request.RequestId}: index {delta.Index} after {Tokens.Count} tokens");
                Tokens.AddRange(delta.TokenIds);
                _text.Append(delta.Text);
                if (delta.Logprobs is not null) Logprobs.AddRange(delta.Logprobs);
                break;
            case GenerationFinished end:
                _text.Append(end.Text);
                End = end;
                break;
        }
    }

    /// <summary>It says what the request alone determines, or a beginning of it if it was ended from outside.</summary>
    public void MustAgreeWith(SoloRun solo)
    {
        var end = End!;
        // An end token is counted and named, but is not part of the answer.
        var visible = solo.StopTokenId is null ? solo.Tokens : [.. solo.Tokens.Take(solo.Tokens.Count - 1)];
        if (end.Reason is FinishReason.Stop or FinishReason.Length)
        {
            Must((solo.Reason, solo.StopTokenId, solo.StopString) == (end.Reason, end.StopTokenId, end.StopString), "ends otherwise than it must");
            Must(visible.SequenceEqual(Tokens), "has other tokens than it must");
            Must(solo.Text == Text, "has another text than it must");
            Must(solo.Tokens.Count == end.Usage.OutputTokens, "counts other tokens than it must");
            return;
        }
        Must(Tokens.Count <= visible.Count && visible.Take(Tokens.Count).SequenceEqual(Tokens), "does not begin as it must");
        // Ended from outside: what was held back as a possible stop string turned out to be text.
        Must(string.Concat(Tokens.Select(LetterText.Letter)) == Text, "has another text than its tokens say");
        Must(Tokens.Count == end.Usage.OutputTokens, "counts other tokens than it has");
        bool ownFault = end.Error?.StartsWith("Output token", StringComparison.Ordinal) == true;
        if (ownFault && solo.Reason == FinishReason.Error) Must(solo.Tokens.Count == Tokens.Count, "failed elsewhere than it must");
    }

    /// <summary>Its tokens are those that the request determines, as far as they came.</summary>
    public void MustBegin(SoloRun solo) => Must(Tokens.SequenceEqual(solo.Tokens.Take(Tokens.Count)), "does not begin as it must");

    private void Must(bool holds, string otherwise)
    {
        if (!holds) throw new LawBrokenException(Law.AnswerDetermined, $"request {request.RequestId} ({End!.Reason}, {Tokens.Count} tokens: {string.Join(' ', Tokens)}) {otherwise}");
    }
}

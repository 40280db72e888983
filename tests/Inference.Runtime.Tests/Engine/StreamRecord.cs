using System.Text;
using Inference.Runtime.Engine;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

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
        if (End is null) Assert.Fail($"request {request.RequestId} has no end");
        return this;
    }

    private void Enter(GenerationEvent e)
    {
        if (End is not null) Assert.Fail($"request {request.RequestId}: {e} after the end");
        switch (e)
        {
            case GenerationStarted:
                if (Started) Assert.Fail("started twice");
                Started = true;
                break;
            case GenerationDelta delta:
                if (!Started || delta.Index != Tokens.Count) Assert.Fail($"request {request.RequestId}: index {delta.Index} after {Tokens.Count} tokens");
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
        var visible = solo.StopTokenId is null ? solo.Tokens : solo.Tokens.Take(solo.Tokens.Count - 1);
        if (end.Reason is FinishReason.Stop or FinishReason.Length)
        {
            Assert.Equal((solo.Reason, solo.StopTokenId, solo.StopString), (end.Reason, end.StopTokenId, end.StopString));
            Assert.Equal(visible, Tokens);
            Assert.Equal(solo.Text, Text);
            Assert.Equal(solo.Tokens.Count, end.Usage.OutputTokens);
            return;
        }
        Assert.Equal(visible.Take(Tokens.Count), Tokens);
        // Ended from outside: what was held back as a possible stop string turned out to be text.
        Assert.Equal(string.Concat(Tokens.Select(LetterText.Letter)), Text);
        Assert.Equal(Tokens.Count, end.Usage.OutputTokens);
        if (end.Reason == FinishReason.Error && solo.Reason == FinishReason.Error) Assert.Equal(solo.Tokens.Count, Tokens.Count);
    }
}

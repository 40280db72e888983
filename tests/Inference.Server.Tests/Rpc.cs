using Google.Rpc;
using Grpc.Core;
using Xunit;

namespace Inference.Server.Tests;

/// <summary>What tests do with calls over and over.</summary>
internal static class Rpc
{
    /// <summary>A request of token ids that runs for <paramref name="maxTokens"/> tokens whatever the model says.</summary>
    public static V1.GenerateRequest Ids(int maxTokens, params uint[] ids) => new()
    {
        TokenIds = new V1.TokenIds { Ids = { ids.Length == 0 ? [5u, 6u, 7u] : ids } },
        Stopping = new V1.StoppingOptions { MaxTokens = maxTokens, IgnoreEos = true },
    };

    public static async Task<List<V1.GenerateEvent>> ReadAsync(AsyncServerStreamingCall<V1.GenerateEvent> call)
    {
        var events = new List<V1.GenerateEvent>();
        await foreach (var e in call.ResponseStream.ReadAllAsync()) events.Add(e);
        return events;
    }

    /// <summary>The call fails; its status and the details in it.</summary>
    public static async Task<Failure> FailureAsync(Func<Task> call)
    {
        var e = await Assert.ThrowsAsync<RpcException>(call);
        var status = e.GetRpcStatus();
        return new Failure(e.StatusCode, e.Status.Detail, status?.GetDetail<ErrorInfo>(), status?.GetDetail<BadRequest>(), status?.GetDetail<RetryInfo>());
    }
}

internal sealed record Failure(StatusCode Code, string Message, ErrorInfo? Info, BadRequest? BadRequest, RetryInfo? Retry)
{
    public string? Reason => Info?.Reason;

    public IReadOnlyList<string> Fields => BadRequest is null ? [] : [.. BadRequest.FieldViolations.Select(v => v.Field)];

    public void Is(StatusCode code, string reason)
    {
        Assert.True(code == Code && reason == Info?.Reason, $"Expected {code}/{reason}, got {Code}/{Info?.Reason}: {Message}");
        Assert.Equal("inference", Info!.Domain);
    }
}

using System.Globalization;
using Google.Protobuf;
using Grpc.Core;
using Inference.Runtime.Engine;
using Inference.Server.Errors;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Server.Telemetry;

namespace Inference.Server.Services;

/// <summary>
/// inference.v1.Completions: read the request, submit it, pass its events on, say how it ended. It holds no state between calls, and whatever
/// ends a call (its end, the client, the deadline, a fault here), the engine is told before the handler returns: no work outlives a call.
/// </summary>
internal sealed class CompletionService(EngineHost host, ServerOptions options, EngineMetrics metrics, ILogger<CompletionService> logger)
    : V1.Completions.CompletionsBase
{
    /// <summary>Metadata key of the request's id, both ways: proxies and logs see it without reading messages.</summary>
    private const string RequestIdKey = "x-request-id";

    private static readonly WriteOptions WithMore = new(WriteFlags.BufferHint);

    public override async Task Generate(V1.GenerateRequest request, IServerStreamWriter<V1.GenerateEvent> responseStream, ServerCallContext context)
    {
        var model = host.Require(request.Model);
        string tenant = CallTenant.Of(context);
        model.Engine.CheckRoom(tenant);
        using var turn = request.HasSessionId ? new SessionTurn(model.Sessions, model.Sessions.Begin(tenant, request.SessionId)) : null;
        var read = RequestReader.Read(request, model, Proposed(context), tenant, context.Deadline, DateTimeOffset.UtcNow, turn?.Session);
        using var handle = Submit(model, read, context);
        await context.WriteResponseHeadersAsync(new Metadata { { RequestIdKey, handle.RequestId } });
        ulong sequence = 0;
        uint tokens = 0;
        await foreach (var e in EventsAsync(handle, read, context))
        {
            switch (e)
            {
                case GenerationStarted started:
                    await SendAsync(new V1.GenerateEvent { Started = ProtoEvents.Started(started, read, model) }, last: false);
                    break;
                case GenerationDelta delta:
                    tokens = (uint)(delta.Index + delta.TokenIds.Count);
                    turn?.Add(delta);
                    await SendAsync(new V1.GenerateEvent { Delta = ProtoEvents.Delta(delta, read, model) }, last: false);
                    break;
                case GenerationFinished finished:
                    if (finished.Text.Length > 0)
                        await SendAsync(new V1.GenerateEvent { Delta = new V1.Delta { Index = tokens, Text = finished.Text } }, last: false);
                    if (turn is not null) await turn.EndAsync(finished, read, model);
                    var failure = Ended(finished, read, model);
                    await SendAsync(new V1.GenerateEvent { Finished = ProtoEvents.Finished(finished, failure) }, last: true);
                    if (failure is not null) throw failure;
                    return;
            }
        }

        async ValueTask SendAsync(V1.GenerateEvent e, bool last)
        {
            e.Sequence = sequence++;
            // Events that wait already go out together.
            responseStream.WriteOptions = !last && handle.Events.TryPeek(out _) ? WithMore : null;
            var write = responseStream.WriteAsync(e, context.CancellationToken);
            if (write.IsCompletedSuccessfully) return;
            try
            {
                await write.WaitAsync(options.WriteStallLimit);
            }
            catch (TimeoutException)
            {
                ServerLog.WriteStalled(logger, handle.RequestId, options.WriteStallLimit.TotalSeconds);
                context.GetHttpContext().Abort();
                throw new RequestException(ErrorReason.ReaderStalled, $"No bytes were taken for {options.WriteStallLimit.TotalSeconds} s.");
            }
        }
    }

    public override async Task<V1.CompleteResponse> Complete(V1.GenerateRequest request, ServerCallContext context)
    {
        var model = host.Require(request.Model);
        string tenant = CallTenant.Of(context);
        model.Engine.CheckRoom(tenant);
        using var turn = request.HasSessionId ? new SessionTurn(model.Sessions, model.Sessions.Begin(tenant, request.SessionId)) : null;
        var read = RequestReader.Read(request, model, Proposed(context), tenant, context.Deadline, DateTimeOffset.UtcNow, turn?.Session);
        using var handle = Submit(model, read, context);
        await context.WriteResponseHeadersAsync(new Metadata { { RequestIdKey, handle.RequestId } });
        var response = new V1.CompleteResponse();
        var text = new System.Text.StringBuilder();
        var bytes = new MemoryStream();
        await foreach (var e in EventsAsync(handle, read, context))
        {
            switch (e)
            {
                case GenerationStarted started:
                    response.Started = ProtoEvents.Started(started, read, model);
                    break;
                case GenerationDelta delta:
                    turn?.Add(delta);
                    var part = ProtoEvents.Delta(delta, read, model);
                    text.Append(part.Text);
                    part.Bytes.WriteTo(bytes);
                    response.TokenIds.Add(part.TokenIds);
                    response.Logprobs.Add(part.Logprobs);
                    break;
                case GenerationFinished finished:
                    if (turn is not null) await turn.EndAsync(finished, read, model);
                    if (Ended(finished, read, model) is { } failure) throw failure;
                    response.Text = text.Append(finished.Text).ToString();
                    response.Bytes = ByteString.CopyFrom(bytes.GetBuffer(), 0, (int)bytes.Length);
                    response.Finished = ProtoEvents.Finished(finished, null);
                    break;
            }
        }
        return response;
    }

    /// <exception cref="RequestRejectedException">No room, or it can never run.</exception>
    private GenerationHandle Submit(ServedModel model, ReadRequest read, ServerCallContext context)
    {
        // Encoding a long prompt takes a while.
        context.CancellationToken.ThrowIfCancellationRequested();
        try
        {
            return model.Engine.Submit(read.Generation);
        }
        catch (RequestRejectedException e) when (e.Reason == RejectionReason.Unavailable)
        {
            host.Require(model.Name);
            throw;
        }
    }

    private static string? Proposed(ServerCallContext context) => context.RequestHeaders.GetValue(RequestIdKey);

    /// <summary>The events as they come. The engine looks at deadlines between two steps, and the gRPC library 14 ms late, because it does not trust
    /// the clock; here they are told when they pass.</summary>
    private static async IAsyncEnumerable<GenerationEvent> EventsAsync(GenerationHandle handle, ReadRequest read, ServerCallContext context)
    {
        using var patience = CancellationTokenSource.CreateLinkedTokenSource(context.CancellationToken);
        var (firstToken, end) = (read.Generation.FirstTokenDeadline ?? DateTimeOffset.MaxValue, read.Generation.Deadline ?? DateTimeOffset.MaxValue);
        patience.CancelAfter(Until(firstToken < end ? firstToken : end));
        while (true)
        {
            try
            {
                if (!await handle.Events.WaitToReadAsync(patience.Token)) yield break;
            }
            catch (OperationCanceledException) when (!context.CancellationToken.IsCancellationRequested)
            {
                throw firstToken < end ? LateFirstToken() : LateEnd();
            }
            while (handle.Events.TryRead(out var e))
            {
                if (e is GenerationDelta && firstToken < DateTimeOffset.MaxValue)
                {
                    firstToken = DateTimeOffset.MaxValue;
                    patience.CancelAfter(Until(end));
                }
                yield return e;
            }
        }
    }

    private static TimeSpan Until(DateTimeOffset due) => due == DateTimeOffset.MaxValue
        ? Timeout.InfiniteTimeSpan
        : TimeSpan.FromMilliseconds(Math.Clamp((due - DateTimeOffset.UtcNow).TotalMilliseconds, 0, int.MaxValue));

    private static RequestException LateEnd() => new(ErrorReason.DeadlineExceeded, "The deadline of the call passed.");

    private static RequestException LateFirstToken() => new(ErrorReason.FirstTokenTimeout, "The first token did not come within first_token_timeout.");

    /// <summary>Notes the end, and says what the call's status will be; null = OK.</summary>
    private RequestException? Ended(GenerationFinished e, ReadRequest read, ServedModel model)
    {
        metrics.Ended(e);
        ServerLog.RequestEnded(
            logger, read.Generation.RequestId, e.Reason.ToString(), e.Usage.PromptTokens, e.Usage.CachedTokens, e.Usage.OutputTokens,
            (long)e.Timings.Total.TotalMilliseconds);
        switch (e.Reason)
        {
            case FinishReason.Cancelled:
                return new RequestException(ErrorReason.Cancelled, "The call was cancelled.");
            case FinishReason.DeadlineExceeded:
                return LateEnd();
            case FinishReason.FirstTokenDeadlineExceeded:
                return LateFirstToken();
            case FinishReason.DeadlineUnreachable:
                return Unreachable(e.Estimate!);
            case FinishReason.Error:
                ServerLog.GenerationFailed(logger, read.Generation.RequestId, e.Error);
                return Failure(e, model.Engine.State);
            default:
                return null;
        }
    }

    private static RequestException Unreachable(DeadlineEstimate estimate)
    {
        string tokens = estimate.Tokens.ToString(CultureInfo.InvariantCulture);
        string needed = Milliseconds(estimate.Needed), left = Milliseconds(estimate.Left);
        return new(
            ErrorReason.DeadlineUnreachable,
            $"{tokens} prompt tokens are to be computed before the first token, which takes {needed} ms at twice the speed that was measured; the deadline is in {left} ms. Give more time, or a shorter prompt.")
        {
            Metadata = new Dictionary<string, string> { ["prompt_tokens"] = tokens, ["needed_ms"] = needed, ["left_ms"] = left },
        };

        static string Milliseconds(TimeSpan time) => time.TotalMilliseconds.ToString("0.###", CultureInfo.InvariantCulture);
    }

    private static RequestException Failure(GenerationFinished e, EngineState state) => state switch
    {
        EngineState.Draining or EngineState.Stopped => new(ErrorReason.DrainLimit, "This server stopped before the answer's end. Go to another."),
        EngineState.Failed => new(ErrorReason.EngineFailed, "The engine failed; this server ends. Go to another."),
        _ => new(ErrorReason.GenerationFailed, e.Error ?? "The answer could not be generated."),
    };
}

using Google.Protobuf.WellKnownTypes;
using Grpc.Core;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>inference.v1.Sessions: reads and checks; what a session is and does is <see cref="KvSessions"/>'s. Keeps nothing.</summary>
internal sealed class SessionsService(EngineHost host) : V1.Sessions.SessionsBase
{
    public override async Task<V1.Session> CreateSession(V1.CreateSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(request.Model), CallTenant.Of(context));
        var tokens = request.Content is null ? [] : Content(request.Content, model, null);
        var made = model.Sessions.Create(tenant, request.HasSessionId ? request.SessionId : null);
        if (tokens.Count == 0) return Proto(made, model);
        try
        {
            return Proto(await model.Sessions.AppendAsync(tenant, made.Id, tokens, Template(tokens, model, context), context.CancellationToken), model);
        }
        catch
        {
            // A call that fails has made nothing.
            await model.Sessions.DeleteAsync(tenant, made.Id);
            throw;
        }
    }

    public override async Task<V1.Session> GetSession(V1.GetSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        return Proto(await model.Sessions.GetAsync(tenant, request.SessionId), model);
    }

    public override async Task<V1.ListSessionsResponse> ListSessions(V1.ListSessionsRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        var sessions = await model.Sessions.ListAsync(tenant);
        return new V1.ListSessionsResponse { Sessions = { sessions.Select(s => Proto(s, model)) } };
    }

    public override async Task<V1.Session> AppendToSession(V1.AppendToSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        using var turn = model.Sessions.Begin(tenant, request.SessionId);
        var tokens = Content(request.Content ?? new(), model, turn);
        return Proto(await model.Sessions.AppendAsync(turn, tokens, Template(tokens, model, context), context.CancellationToken), model);
    }

    public override Task<V1.Session> ForkSession(V1.ForkSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        var fork = model.Sessions.Fork(
            tenant, request.SessionId, request.HasNewSessionId ? request.NewSessionId : null, request.HasTokens ? request.Tokens : null);
        return GetSession(new V1.GetSessionRequest { SessionId = fork.Id }, context);
    }

    public override async Task<V1.Session> TruncateSession(V1.TruncateSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        return Proto(await model.Sessions.TruncateAsync(tenant, request.SessionId, request.Tokens), model);
    }

    public override async Task<V1.Session> PinSession(V1.PinSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        var checks = new FieldChecks();
        double seconds = request.Duration is { } d ? d.Seconds + d.Nanos * 1e-9 : double.NaN;
        if (!(seconds >= 0 && seconds <= model.Sessions.PinMax.TotalSeconds))
            checks.Add("duration", $"must be set, from 0 (end the pin) to {model.Sessions.PinMax.TotalSeconds} s.");
        checks.ThrowIfAny();
        return Proto(
            await model.Sessions.PinAsync(tenant, request.SessionId, TimeSpan.FromSeconds(seconds), Template([], model, context), context.CancellationToken),
            model);
    }

    public override async Task<V1.Session> SaveSession(V1.SaveSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        return Proto(await model.Sessions.SaveAsync(tenant, request.SessionId, Template([], model, context), context.CancellationToken), model);
    }

    public override async Task<V1.Session> RestoreSession(V1.RestoreSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        return Proto(await model.Sessions.RestoreAsync(tenant, request.SessionId, Template([], model, context), context.CancellationToken), model);
    }

    public override async Task<V1.DeleteSessionResponse> DeleteSession(V1.DeleteSessionRequest request, ServerCallContext context)
    {
        var (model, tenant) = (host.Require(""), CallTenant.Of(context));
        await model.Sessions.DeleteAsync(tenant, request.SessionId);
        return new V1.DeleteSessionResponse();
    }

    private static IReadOnlyList<int> Content(V1.SessionContent content, ServedModel model, KvSessionTurn? turn)
    {
        var checks = new FieldChecks();
        var prompt = PromptReader.Check(content, model, turn, checks);
        checks.ThrowIfAny();
        return prompt.Encode(model);
    }

    // By which a session's tokens are computed.
    private static GenerationRequest Template(IReadOnlyList<int> tokens, ServedModel model, ServerCallContext context) => new()
    {
        RequestId = RequestReader.NewId(),
        PromptTokenIds = tokens,
        Sampling = SamplingParams.Greedy,
        OutputTokensMax = 0,
        Deadline = context.Deadline == DateTime.MaxValue ? null : new DateTimeOffset(context.Deadline, TimeSpan.Zero),
    };

    private static V1.Session Proto(KvSessionInfo s, ServedModel model)
    {
        var session = new V1.Session
        {
            SessionId = s.Id,
            Model = model.Name,
            Tokens = s.Tokens,
            CreateTime = Timestamp.FromDateTimeOffset(s.CreatedAt),
            UpdateTime = Timestamp.FromDateTimeOffset(s.UsedAt),
            Busy = s.Busy,
            Memory = new V1.TierUse { Tokens = s.MemoryTokens, Bytes = s.MemoryBytes },
            Disk = new V1.TierUse { Tokens = s.DiskTokens, Bytes = s.DiskBytes },
            Saved = s.SavedTokens is not null,
            SavedTokens = s.SavedTokens ?? 0,
        };
        if (s.PinnedUntil is { } until) session.PinnedUntil = Timestamp.FromDateTimeOffset(until);
        return session;
    }
}

using System.Security.Cryptography;
using Inference.Runtime.KvCache;
using Inference.Runtime.Sampling;

namespace Inference.Runtime.Engine;

/// <summary>How many sessions a server holds for its clients.</summary>
/// <param name="SessionsMax">Most sessions at once, over all tenants.</param>
/// <param name="TokensMax">Most tokens of all sessions together (4 bytes each; their state is the cache's business).</param>
/// <param name="PinMax">The longest time that a pin may be asked for.</param>
public sealed record KvSessionLimits(int SessionsMax = 1024, long TokensMax = 1L << 28, TimeSpan? PinMax = null);

/// <summary>
/// Conversations that clients hold by name: a session is a list of tokens, and nothing else has to be kept. The state of its tokens is in the
/// cache like that of any other prefix; if it had to give way it is computed again and the answers are the same, bit for bit. So creating, forking
/// and truncating cost nothing, and a session cannot be wrong, only slow; a pin is the promise that it is not slow.
///
/// One writer at a time changes a session (<see cref="Begin"/>); a change that fails leaves it as it was. Safe for use from several threads;
/// owns the sessions, but not the cache, which is touched on the engine's thread only.
/// </summary>
public sealed class KvSessions : IDisposable
{
    private readonly InferenceEngine _engine;
    private readonly TimeProvider _time;
    private readonly KvSessionLimits _limits;
    private readonly Lock _lock = new();
    private readonly Dictionary<(string Tenant, string Id), KvSession> _sessions = [];
    private long _tokens;

    public KvSessions(InferenceEngine engine, TimeProvider time, KvSessionLimits? limits = null)
    {
        (_engine, _time, _limits) = (engine, time, limits ?? new());
        if (engine.Saved is null) return;
        foreach (var saved in engine.Saved.Load())
        {
            var session = new KvSession(saved.Tenant, saved.Id, engine.Options.PrefixesOf(saved.Tenant), saved.CreatedAt) { UsedAt = saved.UsedAt, Saved = saved.Tokens };
            session.Set(saved.Tokens, saved.AnswerOpen);
            _sessions.Add((saved.Tenant, saved.Id), session);
            _tokens += saved.Tokens.Length;
        }
        _ = _engine.OnThread(MatchSaved);
    }

    /// <summary>The longest time that a pin may be asked for.</summary>
    public TimeSpan PinMax => _limits.PinMax ?? TimeSpan.FromDays(1);

    /// <summary>An empty session.</summary>
    /// <param name="id">1 to 128 letters, digits, dots, dashes and underscores; null = made up.</param>
    /// <exception cref="KvSessionException">The name is taken, or there are too many sessions.</exception>
    public KvSessionInfo Create(string tenant, string? id = null)
    {
        var session = new KvSession(tenant, id ?? Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16)), _engine.Options.PrefixesOf(tenant), _time.GetUtcNow());
        Enter(session);
        return session.Info();
    }

    /// <summary>Another session of the same tokens, or of the first <paramref name="length"/> of them.</summary>
    /// <exception cref="KvSessionException">There is no such session or length, the name is taken, or there are too many sessions.</exception>
    public KvSessionInfo Fork(string tenant, string id, string? newId = null, int? length = null)
    {
        KvSession fork;
        lock (_lock)
        {
            var from = Find(tenant, id);
            CheckLength(from, length);
            fork = new KvSession(tenant, newId ?? Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16)), _engine.Options.PrefixesOf(tenant), _time.GetUtcNow());
            fork.Set(length is { } n ? from.Tokens[..n] : from.Tokens, from.AnswerOpen && (length ?? from.Tokens.Length) == from.Tokens.Length);
        }
        Enter(fork);
        return fork.Info();
    }

    /// <summary>Begins a change: nobody else can change the session until the result is disposed.</summary>
    /// <exception cref="KvSessionException">There is no such session, or it is being changed.</exception>
    public KvSessionTurn Begin(string tenant, string id)
    {
        lock (_lock)
        {
            var session = Find(tenant, id);
            if (session.Busy)
                throw new KvSessionException(KvSessionFault.Busy, $"Session '{id}' is being changed by another call; fork it, or wait for that call's end.");
            session.Busy = true;
            return new(this, session);
        }
    }

    /// <summary>Adds tokens and computes them.</summary>
    /// <param name="template">The request by which they are computed: all but prompt, tenant and number of tokens to generate.</param>
    /// <exception cref="KvSessionException">There is no such session, or it is being changed.</exception>
    /// <exception cref="RequestRejectedException">They can never fit, or there is no room now.</exception>
    public async Task<KvSessionInfo> AppendAsync(
        string tenant, string id, IReadOnlyList<int> tokens, GenerationRequest template, CancellationToken cancel)
    {
        using var turn = Begin(tenant, id);
        return await AppendAsync(turn, tokens, template, cancel).ConfigureAwait(false);
    }

    /// <inheritdoc cref="AppendAsync(string, string, IReadOnlyList{int}, GenerationRequest, CancellationToken)"/>
    public async Task<KvSessionInfo> AppendAsync(KvSessionTurn turn, IReadOnlyList<int> tokens, GenerationRequest template, CancellationToken cancel)
    {
        int[] all = [.. turn.Tokens, .. tokens];
        if (all.Length > 0) await ComputeAsync(turn.Session.Tenant, all, template, cancel).ConfigureAwait(false);
        turn.Commit(all, answerOpen: false);
        await RepinAsync(turn.Session).ConfigureAwait(false);
        return await InfoAsync(turn.Session).ConfigureAwait(false);
    }

    /// <summary>Cuts a session to its first tokens.</summary>
    /// <exception cref="KvSessionException">There is no such session or length, or it is being changed.</exception>
    public async Task<KvSessionInfo> TruncateAsync(string tenant, string id, int length)
    {
        using var turn = Begin(tenant, id);
        CheckLength(turn.Session, length);
        turn.Commit(turn.Tokens[..length], turn.Session.AnswerOpen && length == turn.Tokens.Length);
        await RepinAsync(turn.Session).ConfigureAwait(false);
        return await InfoAsync(turn.Session).ConfigureAwait(false);
    }

    /// <summary>
    /// Keeps a session's state in memory for a time, computing it first if it is not there; zero ends the pin. A pin gives way to nothing but a
    /// request that would not fit otherwise with the cache to itself. It follows the session as it grows.
    /// </summary>
    /// <exception cref="KvSessionException">There is no such session, it is being changed, or the pins of all sessions would take more than half of
    /// the cache.</exception>
    public async Task<KvSessionInfo> PinAsync(string tenant, string id, TimeSpan limit, GenerationRequest template, CancellationToken cancel)
    {
        using var turn = Begin(tenant, id);
        var session = turn.Session;
        if (limit <= TimeSpan.Zero)
        {
            await UnpinAsync(session).ConfigureAwait(false);
            return await InfoAsync(session).ConfigureAwait(false);
        }
        await ComputeMissingAsync(session, template, cancel).ConfigureAwait(false);
        if (!await _engine.OnThread(cache => Repin(cache, session)).ConfigureAwait(false))
            throw new KvSessionException(
                KvSessionFault.NoRoom, $"Session '{id}' cannot be pinned: pins take at most half of the cache, and half of its kept prefixes; end other pins first.");
        session.PinEnds?.Dispose();
        session.PinnedUntil = _time.GetUtcNow() + limit;
        session.PinEnds = _time.CreateTimer(_ => _ = UnpinAsync(session), null, limit, Timeout.InfiniteTimeSpan);
        return await InfoAsync(session).ConfigureAwait(false);
    }

    /// <summary>
    /// Writes a session's tokens and state to disk, where they outlive the process; complete when they are durable. What was saved of it before is
    /// replaced, or still there if this fails.
    /// </summary>
    /// <exception cref="KvSessionException">There is no such session, it is being changed, there is no disk tier, or the disk is full or fails.</exception>
    public async Task<KvSessionInfo> SaveAsync(string tenant, string id, GenerationRequest template, CancellationToken cancel)
    {
        if (_engine.Saved is not { } saved) throw NoDisk();
        using var turn = Begin(tenant, id);
        var session = turn.Session;
        await ComputeMissingAsync(session, template, cancel).ConfigureAwait(false);
        bool done = session.Tokens.Length == 0 || await (await _engine.OnThread(cache => SaveStateAsync(cache, session)).ConfigureAwait(false)).ConfigureAwait(false);
        if (!done)
            throw new KvSessionException(
                KvSessionFault.DiskFailed, $"Session '{id}' could not be saved: the disk tier has no room for it, or fails; see the server's log, and --kv-disk-bytes.");
        try
        {
            lock (saved) saved.Save(new SavedSession(tenant, id, session.CreatedAt, session.UsedAt, session.AnswerOpen, session.Tokens));
        }
        catch (IOException e)
        {
            throw new KvSessionException(KvSessionFault.DiskFailed, $"Session '{id}' could not be saved: {e.Message}");
        }
        var before = session.Saved;
        session.Saved = session.Tokens;
        if (before is not null && !before.AsSpan().SequenceEqual(session.Tokens)) await _engine.OnThread(MatchSaved).ConfigureAwait(false);
        return await InfoAsync(session).ConfigureAwait(false);
    }

    /// <summary>Brings a session's state into memory: from disk where it is there, the rest is computed.</summary>
    /// <exception cref="KvSessionException">There is no such session, or it is being changed.</exception>
    public async Task<KvSessionInfo> RestoreAsync(string tenant, string id, GenerationRequest template, CancellationToken cancel)
    {
        using var turn = Begin(tenant, id);
        await ComputeMissingAsync(turn.Session, template, cancel).ConfigureAwait(false);
        return await InfoAsync(turn.Session).ConfigureAwait(false);
    }

    /// <summary>A session, with what the cache holds of it.</summary>
    /// <exception cref="KvSessionException">There is no such session.</exception>
    public Task<KvSessionInfo> GetAsync(string tenant, string id)
    {
        KvSession session;
        lock (_lock) session = Find(tenant, id);
        return InfoAsync(session);
    }

    /// <summary>A tenant's sessions by name, with what the cache holds of them.</summary>
    public async Task<IReadOnlyList<KvSessionInfo>> ListAsync(string tenant)
    {
        KvSession[] sessions;
        lock (_lock) sessions = [.. _sessions.Values.Where(s => s.Tenant == tenant).OrderBy(s => s.Id, StringComparer.Ordinal)];
        // One after the other: looking for a million tokens takes a millisecond or two of the engine's thread.
        var infos = new List<KvSessionInfo>(sessions.Length);
        foreach (var session in sessions) infos.Add(await InfoAsync(session).ConfigureAwait(false));
        return infos;
    }

    /// <summary>Forgets a session; what others share with it stays.</summary>
    /// <exception cref="KvSessionException">There is no such session, or it is being changed.</exception>
    public async Task DeleteAsync(string tenant, string id)
    {
        using var turn = Begin(tenant, id);
        await UnpinAsync(turn.Session).ConfigureAwait(false);
        try
        {
            if (turn.Session.Saved is not null)
                lock (_engine.Saved!) _engine.Saved.Delete(tenant, id);
        }
        catch (IOException e)
        {
            throw new KvSessionException(KvSessionFault.DiskFailed, $"Session '{id}' could not be deleted: {e.Message}");
        }
        lock (_lock)
        {
            _sessions.Remove((tenant, id));
            _tokens -= turn.Session.Tokens.Length;
        }
        if (turn.Session.Saved is not null) await _engine.OnThread(MatchSaved).ConfigureAwait(false);
    }

    /// <summary>After a generation on it: its tokens were committed, the pin moves along.</summary>
    public Task RepinAsync(KvSessionTurn turn) => RepinAsync(turn.Session);

    internal void Commit(KvSession session, int[] tokens, bool answerOpen)
    {
        lock (_lock)
        {
            CheckRoom(tokens.Length - session.Tokens.Length);
            _tokens += tokens.Length - session.Tokens.Length;
            session.Set(tokens, answerOpen);
            session.UsedAt = _time.GetUtcNow();
        }
    }

    internal void End(KvSession session)
    {
        lock (_lock) session.Busy = false;
    }

    private void Enter(KvSession session)
    {
        if (!IsId(session.Id))
            throw new KvSessionException(KvSessionFault.Invalid, "A session's name has 1 to 128 letters, digits, dots, dashes and underscores.");
        lock (_lock)
        {
            if (_sessions.ContainsKey((session.Tenant, session.Id)))
                throw new KvSessionException(KvSessionFault.Exists, $"There is a session '{session.Id}' already; delete it, or choose another name.");
            if (_sessions.Count >= _limits.SessionsMax)
                throw new KvSessionException(KvSessionFault.NoRoom, $"This server holds at most {_limits.SessionsMax} sessions; delete one first.");
            CheckRoom(session.Tokens.Length);
            _sessions.Add((session.Tenant, session.Id), session);
            _tokens += session.Tokens.Length;
        }
    }

    private void CheckRoom(int tokens)
    {
        if (_tokens + tokens > _limits.TokensMax)
            throw new KvSessionException(
                KvSessionFault.NoRoom, $"The sessions of this server hold {_tokens} tokens, {tokens} more would exceed {_limits.TokensMax}; delete or truncate some.");
    }

    private static void CheckLength(KvSession session, int? length)
    {
        if (length < 0 || length > session.Tokens.Length)
            throw new KvSessionException(KvSessionFault.Invalid, $"Session '{session.Id}' has {session.Tokens.Length} tokens, it cannot be cut at {length}.");
    }

    private KvSession Find(string tenant, string id) => _sessions.GetValueOrDefault((tenant, id))
        ?? throw new KvSessionException(KvSessionFault.NotFound, $"There is no session '{id}' here.");

    private static bool IsId(string id) => id.Length is > 0 and <= 128 && id.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '-' or '_');

    private static KvSessionException NoDisk() => new(
        KvSessionFault.NoDisk, "This server has no disk for sessions; start it with --kv-disk FOLDER.");

    // A session that goes on processes its last token again, or for the first time.
    private async Task ComputeMissingAsync(KvSession session, GenerationRequest template, CancellationToken cancel)
    {
        if (session.Tokens.Length > 0 && (await InfoAsync(session).ConfigureAwait(false)).MemoryTokens < session.Tokens.Length - 1)
            await ComputeAsync(session.Tenant, session.Tokens, template, cancel).ConfigureAwait(false);
    }

    // Brings tokens into the cache, as a request of its own that generates nothing.
    private async Task ComputeAsync(string tenant, int[] tokens, GenerationRequest template, CancellationToken cancel)
    {
        using var handle = _engine.Submit(template with
        {
            PromptTokenIds = tokens,
            Tenant = tenant,
            OutputTokensMax = 0,
            Sampling = SamplingParams.Greedy,
        });
        await foreach (var e in handle.Events.ReadAllAsync(cancel).ConfigureAwait(false))
        {
            if (e is not GenerationFinished { Reason: not FinishReason.Length } end) continue;
            throw end.Reason switch
            {
                FinishReason.Cancelled or FinishReason.DeadlineExceeded => new OperationCanceledException(cancel),
                _ => new KvSessionException(KvSessionFault.Failed, end.Error ?? "The session's tokens could not be computed."),
            };
        }
    }

    // ---- on the engine's thread ----

    private Task<KvSessionInfo> InfoAsync(KvSession session) => _engine.OnThread(cache => Info(cache, session));

    private KvSessionInfo Info(KvCacheManager cache, KvSession session)
    {
        KvSessionInfo info;
        int[] tokens;
        lock (_lock) (info, tokens) = (session.Info(), session.Tokens);
        if (tokens.Length == 0 || cache.Prefixes is not { } prefixes) return info;
        if (prefixes.Find(session.PathOf(tokens), tokens, tokens.Length) is { } snapshot)
            info = info with { MemoryTokens = snapshot.Length, MemoryBytes = prefixes.BytesOf(snapshot) };
        if (prefixes.Tier?.Find(session.PathOf(tokens), tokens, tokens.Length) is { } chain)
            info = info with { DiskTokens = chain.Length, DiskBytes = prefixes.Tier.BytesOf(chain) };
        return info;
    }

    private static Task<bool> SaveStateAsync(KvCacheManager cache, KvSession session)
    {
        var (prefixes, tokens) = (cache.Prefixes!, session.Tokens);
        if (prefixes.Find(session.PathOf(tokens), tokens, tokens.Length) is not { } snapshot) return Task.FromResult(false);
        prefixes.Pin(snapshot);
        return prefixes.Tier!.SaveAsync(snapshot, () => prefixes.Unpin(snapshot));
    }

    // The disk keeps the states of saved sessions, and no others: those of sessions that were deleted or saved anew go like any other state.
    private bool MatchSaved(KvCacheManager cache)
    {
        var tier = cache.Prefixes!.Tier!;
        KvSession[] sessions;
        lock (_lock) sessions = [.. _sessions.Values.Where(s => s.Saved is { Length: > 0 })];
        var wanted = sessions.Select(s => tier.Find(PrefixPath.Begin(s.PrefixesOf), s.Saved, s.Saved!.Length)?.Snapshot).ToHashSet();
        foreach (var chain in tier.Saved())
            if (!wanted.Contains(chain.Snapshot)) tier.Release(chain);
        return true;
    }

    private Task RepinAsync(KvSession session) =>
        session.PinnedUntil is null ? Task.CompletedTask : _engine.OnThread(cache => Repin(cache, session));

    // Pins what the cache holds of the session's tokens, instead of what was pinned before. False if that is too much.
    private static bool Repin(KvCacheManager cache, KvSession session)
    {
        var tokens = session.Tokens;
        var snapshot = tokens.Length == 0 ? null : cache.Prefixes?.Find(session.PathOf(tokens), tokens, tokens.Length);
        if (snapshot == session.Pinned) return snapshot is not null || tokens.Length == 0;
        if (snapshot is null) return tokens.Length == 0;
        if (snapshot.Pins == 0 && !cache.MayPin(snapshot, session.Pinned)) return false;
        cache.Prefixes!.Pin(snapshot);
        if (session.Pinned is { } before) cache.Prefixes.Unpin(before);
        session.Pinned = snapshot;
        return true;
    }

    private Task<bool> UnpinAsync(KvSession session)
    {
        session.PinEnds?.Dispose();
        (session.PinEnds, session.PinnedUntil) = (null, null);
        return _engine.OnThread(cache =>
        {
            if (session.Pinned is { } pinned) cache.Prefixes!.Unpin(pinned);
            session.Pinned = null;
            return true;
        });
    }

    public void Dispose()
    {
        lock (_lock)
            foreach (var session in _sessions.Values) session.PinEnds?.Dispose();
    }
}

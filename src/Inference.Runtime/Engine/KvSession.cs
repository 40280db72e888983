using Inference.Runtime.KvCache;

namespace Inference.Runtime.Engine;

/// <summary>A session's facts. Changed by <see cref="KvSessions"/> under its lock, but for what is marked as the engine thread's.</summary>
internal sealed class KvSession(string tenant, string id, string prefixesOf, DateTimeOffset now)
{
    private PrefixPath? _path;
    private int[]? _pathTokens;

    public string Tenant { get; } = tenant;
    public string Id { get; } = id;

    /// <summary><see cref="EngineOptions.PrefixesOf"/>.</summary>
    public string PrefixesOf { get; } = prefixesOf;

    public DateTimeOffset CreatedAt { get; } = now;
    public DateTimeOffset UsedAt { get; set; } = now;

    /// <summary>Never changed in place: a fork may have the same array.</summary>
    public int[] Tokens { get; private set; } = [];

    /// <summary>The last tokens are an answer without an end token: a conversation that goes on has to close it first.</summary>
    public bool AnswerOpen { get; private set; }

    /// <summary>A call is changing it.</summary>
    public bool Busy { get; set; }

    /// <summary>The tokens that are on disk; null: not saved.</summary>
    public int[]? Saved { get; set; }

    public DateTimeOffset? PinnedUntil { get; set; }
    public ITimer? PinEnds { get; set; }

    /// <summary>The engine thread's.</summary>
    public PrefixCache.Snapshot? Pinned { get; set; }

    public void Set(int[] tokens, bool answerOpen) => (Tokens, AnswerOpen) = (tokens, answerOpen);

    /// <summary>The names of the tokens' blocks, kept between calls. The engine thread's.</summary>
    public PrefixPath PathOf(int[] tokens)
    {
        if (_path is null || _pathTokens != tokens) _path = _path is not null && tokens.AsSpan().StartsWith(_pathTokens) ? _path : PrefixPath.Begin(PrefixesOf);
        _pathTokens = tokens;
        return _path;
    }

    public KvSessionInfo Info() => new(Id, Tokens.Length, CreatedAt, UsedAt, PinnedUntil, Busy, Saved?.Length);
}

/// <summary>A session as its client sees it.</summary>
/// <param name="Tokens">Its length.</param>
/// <param name="PinnedUntil">Null: not pinned.</param>
/// <param name="Busy">A call is changing it.</param>
/// <param name="SavedTokens">Tokens that were saved; null: not saved.</param>
/// <param name="MemoryTokens">The first so many tokens need not be computed when it goes on.</param>
/// <param name="MemoryBytes">Of their state; shared with others where they begin alike.</param>
/// <param name="DiskTokens">The first so many need only be read from disk.</param>
/// <param name="DiskBytes">Of their state on disk.</param>
public sealed record KvSessionInfo(
    string Id, int Tokens, DateTimeOffset CreatedAt, DateTimeOffset UsedAt, DateTimeOffset? PinnedUntil, bool Busy, int? SavedTokens,
    int MemoryTokens = 0, long MemoryBytes = 0, int DiskTokens = 0, long DiskBytes = 0);

/// <summary>The right to change a session, until disposed.</summary>
public sealed class KvSessionTurn : IDisposable
{
    private readonly KvSessions _owner;

    internal KvSessionTurn(KvSessions owner, KvSession session) => (_owner, Session) = (owner, session);

    internal KvSession Session { get; }

    /// <summary>As they are now; not to be changed.</summary>
    public int[] Tokens => Session.Tokens;

    /// <summary>The last answer has no end token.</summary>
    public bool AnswerOpen => Session.AnswerOpen;

    /// <summary>The session has these tokens from now on.</summary>
    /// <param name="answerOpen">They end with an answer that has no end token.</param>
    /// <exception cref="KvSessionException">The sessions' tokens would be too many; the session is as it was.</exception>
    public void Commit(int[] tokens, bool answerOpen) => _owner.Commit(Session, tokens, answerOpen);

    public void Dispose() => _owner.End(Session);
}

/// <summary>Why a session could not be had or changed.</summary>
public enum KvSessionFault
{
    NotFound,
    Exists,
    /// <summary>Another call is changing it.</summary>
    Busy,
    /// <summary>A name or length is no good.</summary>
    Invalid,
    /// <summary>A limit is reached.</summary>
    NoRoom,
    /// <summary>Needs a disk tier and there is none.</summary>
    NoDisk,
    /// <summary>The disk is full or reports an error.</summary>
    DiskFailed,
    /// <summary>The model failed.</summary>
    Failed,
}

/// <summary>A session could not be had or changed; it is as it was.</summary>
public sealed class KvSessionException(KvSessionFault fault, string message) : Exception(message)
{
    public KvSessionFault Fault { get; } = fault;
}

namespace Inference.Runtime.Scheduling;

/// <summary>
/// The accepted requests that have not had a step: refuses more than a number of them, or of their prompt tokens. Once it has seen more than one
/// tenant it also leaves room for those that have little there: none may have more than <see cref="Greed"/> times its weight of what is free, so one
/// that floods gets eight ninths of the queue, two get eight seventeenths each, and a newcomer finds a place.
/// Entered by the submitting threads, left by the engine's thread when a request starts or ends. Also guesses, from how often places became free while others waited, when to try again.
/// </summary>
internal sealed class AdmissionGate(int queueMax, long tokensMax, IReadOnlyDictionary<string, double> weights)
{
    internal const double Greed = 8;

    private static readonly TimeSpan RetryMin = TimeSpan.FromMilliseconds(100), RetryMax = TimeSpan.FromMinutes(1);
    private readonly Lock _lock = new();
    private readonly Dictionary<string, (int Requests, long Tokens)> _tenants = new(StringComparer.Ordinal);
    private int _waiting;
    private long _tokens;
    private string? _tenant;  // the first that came
    private bool _several;
    private long _interval = TimeSpan.TicksPerSecond;  // smoothed; the first guess holds until something was measured
    private long _lastLeft = -1;

    public int QueueMax { get; } = queueMax;

    public int Waiting => Volatile.Read(ref _waiting);

    public long WaitingTokens => Volatile.Read(ref _tokens);

    public TimeSpan RetryAfter =>
        TimeSpan.FromTicks(Math.Clamp(Volatile.Read(ref _interval), RetryMin.Ticks, RetryMax.Ticks));

    /// <summary>Null if it was let in; else what stands against it, for the client.</summary>
    public string? TryEnter(string tenant, int tokens)
    {
        lock (_lock)
        {
            string? full = Full(tenant, tokens);
            if (full is null) Move(tenant, _tenants.GetValueOrDefault(tenant), 1, tokens);
            return full;
        }
    }

    /// <summary>What would stand against the shortest request of this tenant now; null: nothing.</summary>
    public string? Full(string tenant)
    {
        lock (_lock) return Full(tenant, 1);
    }

    private string? Full(string tenant, int tokens)
    {
        var held = _tenants.GetValueOrDefault(tenant);
        _several |= tenant != (_tenant ??= tenant);
        double part = Greed * weights.GetValueOrDefault(tenant, 1);
        if (_waiting >= QueueMax) return $"{_waiting} requests are waiting already.";
        if (_tokens + tokens > tokensMax) return $"{_tokens} prompt tokens are waiting already; {tokens} more exceed the limit of {tokensMax}.";
        if (_several && held.Requests >= part * (QueueMax - _waiting))
            return $"{held.Requests} requests of this tenant are waiting already; the {QueueMax - _waiting} places left are kept for others.";
        if (_several && held.Tokens > 0 && held.Tokens + tokens > part * (tokensMax - _tokens))
            return $"{held.Tokens} prompt tokens of this tenant are waiting already; the room for {tokensMax - _tokens} is kept for others.";
        return null;
    }

    /// <summary>A place became free, at a time in ticks that never goes back.</summary>
    public void Leave(string tenant, int tokens, long now)
    {
        lock (_lock)
        {
            Undo(tenant, tokens);
            if (_lastLeft >= 0) Volatile.Write(ref _interval, _interval + (now - _lastLeft - _interval) / 8);
            _lastLeft = _waiting > 0 ? now : -1;
        }
    }

    /// <summary>An entry that came to nothing.</summary>
    public void Undo(string tenant, int tokens)
    {
        lock (_lock)
        {
            if (!_tenants.TryGetValue(tenant, out var held)) throw new InvalidOperationException("More requests left the queue than entered it.");
            Move(tenant, held, -1, -tokens);
        }
    }

    private void Move(string tenant, (int Requests, long Tokens) held, int requests, long tokens)
    {
        held = (held.Requests + requests, held.Tokens + tokens);
        if (held.Requests == 0) _tenants.Remove(tenant);
        else _tenants[tenant] = held;
        Volatile.Write(ref _waiting, _waiting + requests);
        Volatile.Write(ref _tokens, _tokens + tokens);
    }
}

namespace Inference.Runtime.Scheduling;

/// <summary>
/// What each tenant has had of the engine, in tokens divided by its weight, so that the next place can go to whoever has had least
/// (a virtual token counter: Sheng et al., "Fairness in serving large language models", OSDI 2024). A request's prompt is charged when it starts, less
/// what the cache held; each token of its answer when it is made; what was charged and never computed comes back at its end.
///
/// A tenant that comes to wait is lifted to the virtual time, the account of the last that was served: nobody saves up shares while it asks for
/// nothing. When nobody at all waits there is nothing to share, so whoever comes next finds every account settled.
/// Owned by the <see cref="Scheduler"/>. Invariant: while two tenants wait, neither resting nor without room, their accounts differ by no more than
/// the requests cost that one of them has running at a time, over its weight.
/// </summary>
internal sealed class TenantAccounts(IReadOnlyDictionary<string, double> weights)
{
    /// <summary>Accounts of tenants without a request that are remembered; a flood of made-up names must not fill the memory.</summary>
    internal const int IdleMax = 1024;

    private readonly Dictionary<string, TenantAccount> _accounts = new(StringComparer.Ordinal);
    private readonly List<TenantAccount> _dropped = [];
    private double _time;
    private int _waiting, _idle;

    public int Count => _accounts.Count;

    /// <summary>The virtual time: never goes back.</summary>
    public double Time => _time;

    /// <summary>Null if it has no request and owes nothing.</summary>
    public TenantAccount? Find(string tenant) => _accounts.GetValueOrDefault(tenant);

    /// <summary>A request joins the line.</summary>
    public TenantAccount Enter(string tenant)
    {
        if (_waiting++ == 0) Settle();
        if (!_accounts.TryGetValue(tenant, out var account))
        {
            _accounts.Add(tenant, account = new(tenant, weights.GetValueOrDefault(tenant, 1)));
            _idle++;
        }
        if (account.Waiting++ == 0) account.Had = Math.Max(account.Had, _time);
        if (account.Live++ == 0) _idle--;
        return account;
    }

    /// <summary>A request leaves the line to run.</summary>
    /// <param name="tokens">Of its prompt that are to be computed.</param>
    public void Start(TenantAccount account, int tokens)
    {
        _waiting--;
        account.Waiting--;
        _time = Math.Max(_time, account.Had);
        account.Charge(tokens);
    }

    /// <summary>A request ends.</summary>
    /// <param name="started">It had left the line.</param>
    public void Leave(TenantAccount account, bool started)
    {
        if (!started)
        {
            _waiting--;
            account.Waiting--;
        }
        if (--account.Live > 0) return;
        _idle++;
        if (account.Had <= _time) Drop(account);
        else if (_idle > IdleMax) DropIdle();
    }

    private void Settle()
    {
        foreach (var account in _accounts.Values) _time = Math.Max(_time, account.Had);
        DropIdle();
    }

    private void DropIdle()
    {
        if (_idle == 0) return;
        foreach (var account in _accounts.Values)
            if (account.Live == 0) _dropped.Add(account);
        foreach (var account in _dropped) Drop(account);
        _dropped.Clear();
    }

    private void Drop(TenantAccount account)
    {
        _accounts.Remove(account.Tenant);
        _idle--;
    }
}

/// <summary>One tenant's account; see <see cref="TenantAccounts"/>.</summary>
internal sealed class TenantAccount(string tenant, double weight)
{
    public string Tenant { get; } = tenant;

    public double Weight { get; } = weight;

    /// <summary>Tokens it has had, over its weight, on the scale of the virtual time.</summary>
    public double Had { get; internal set; }

    /// <summary>Requests that have not ended.</summary>
    public int Live { get; internal set; }

    /// <summary>Requests that have not started.</summary>
    public int Waiting { get; internal set; }

    /// <summary>The last pass over the line that saw it.</summary>
    internal long Seen { get; set; }

    /// <summary>Negative: gives back.</summary>
    public void Charge(int tokens) => Had += tokens / Weight;
}

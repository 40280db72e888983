using System.Runtime.InteropServices;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Inference.Testing;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Simulation;

/// <summary>
/// One seeded life of a scheduler with a cache that keeps no numbers: a drawn configuration and workload of several tenants under virtual time,
/// every plan and every page checked after each step (<see cref="SchedulerLaws"/>, <see cref="PageLedger"/>), then a second phase without arrivals,
/// stalls or cancellations in which everyone must end within a computed bound.
/// </summary>
internal sealed class SchedulerSimulation : ISimulation
{
    private readonly Random _random;
    private readonly SchedulerLimits _limits;
    private readonly KvCacheManager _cache;
    private readonly Scheduler _scheduler;
    private readonly SchedulerLaws _laws;
    private readonly PageLedger _ledger;
    private readonly bool _stalls;
    private readonly int _tenants, _ticksPerToken;
    private readonly List<Sequence> _all = [], _live = [];
    private readonly HashSet<Sequence> _ended = [];
    private readonly List<SchedulerEvent> _events = [];
    private readonly List<ChunkOutcome> _outcomes = [];
    private long _now;
    private int _step;

    public SchedulerSimulation(int seed, int traceLines = 0)
    {
        Trace = new(traceLines);
        _random = new(seed);
        int sequences = _random.Next(1, 9);
        _tenants = _random.Next(1, SchedulerLaws.TenantsMax + 1);
        _limits = new(sequences, sequences + _random.Next(0, 40), _random.Next(3) switch { 0 => 0, 1 => _random.Next(1, 12), _ => 256 })
        {
            PreemptionsMax = _random.Next(4) switch { 0 => 0, 1 => 1, _ => 3 },
            PriorityAhead = _random.Next(2) * _random.Next(1, 300),
            TenantWeights = SchedulerLaws.Tenants.ToDictionary(t => t, _ => _random.Next(2) == 0 ? 1 : _random.Next(1, 9) / 2.0),
        };
        var states = new HashModel(pageRows: 1 << _random.Next(0, 4), farRatio: _random.Next(2) == 0 ? 128 : 16).KvStates;
        _cache = new(states, new(_random.Next(8, 160), sequences, _limits.StepTokensMax, _random.Next(2) * _random.Next(1, 9)), null);
        _scheduler = new(_limits, _cache);
        _stalls = _random.Next(2) == 0;
        _ticksPerToken = _random.Next(4);
        _laws = new(Laws, _scheduler, _cache, _limits, _tenants, _stalls, _ticksPerToken);
        _ledger = new(_cache, Laws);
    }

    public Laws Laws { get; } = new();
    public Trace Trace { get; }
    public long Steps => _step;
    public IEnumerable<(string, long)> Reached =>
        [("preempted", _laws.Preemptions), ("preempted for the last time", _laws.Kept), ("prefix hits", _laws.Hits), ("overtakings", _laws.Overtakings), ("hopeless deadlines", _laws.Hopeless)];

    public void Run()
    {
        int requests = _random.Next(1, 24);
        double arrivalRate = Math.Max(0.02, _random.NextDouble());
        while (_all.Count < requests || _random.Next(8) != 0)
        {
            while (_all.Count < requests && _random.NextDouble() < arrivalRate) Submit();
            Disturb();
            Step();
        }
        foreach (var sequence in _live)
            if (sequence.Stalled) _events.Add(SchedulerEvent.Resumed(sequence));
        // The first gets on in each step; what it loses when one goes ahead that keeps its pages it loses once for each of those.
        int limit = _step + _live.Sum(s => s.PositionsMax) * 2 + 1;
        while (_ended.Count < _all.Count)
        {
            Laws.Check(Law.EverythingComesBack, _step < limit, $"not everyone ended within the work that was left");
            Step();
        }
        CheckEmpty();
    }

    private void CheckEmpty()
    {
        while (_cache.Prefixes?.Reclaim() == true) { }
        foreach (var pool in _cache.Pools)
            Laws.Check(Law.EverythingComesBack, pool.FreeCount == pool.PageCount, $"{pool.Spec.Name}: {pool.FreeCount} of {pool.PageCount} pages came back");
        Laws.Check(Law.EverythingComesBack, (_cache.Prefixes?.NodeCount ?? 0) == 0, $"nodes are kept that nothing stands on");
        foreach (var s in _all)
            Laws.Check(Law.CountersAgree, s.Account.Live == 0 && s.Account.Waiting == 0, $"tenant {s.Tenant} counts {s.Account.Live} live and {s.Account.Waiting} waiting requests in the end");
    }

    public void Dispose() => _cache.Dispose();

    private void Submit()
    {
        int positions = _random.Next(1, Math.Min(_cache.SequenceTokensMax, 300) + 1);
        int output = _random.Next(16) == 0 ? 0 : _random.Next(1, Math.Min(positions, 60) + 1);
        long deadline = _random.Next(6) == 0 ? _now + _random.Next(0, 400) : long.MaxValue;
        // Few different tokens: many prompts begin alike.
        int[] prompt = new int[positions + 1 - Math.Max(1, output)];
        if (_random.Next(2) == 0) prompt[_random.Next(prompt.Length)] = 1;
        string tenant = SchedulerLaws.Tenants[_random.Next(_tenants)];
        var path = _cache.Prefixes is null ? null : PrefixPath.Begin(tenant);
        var sequence = new Sequence(_all.Count + 1, prompt, output, deadline, _cache.CreateTable(), path)
        {
            Tenant = tenant,
            Priority = _random.Next(2) == 0 ? 0 : _random.Next(-2, 3),
            FirstTokenDeadline = _random.Next(8) == 0 ? _now + _random.Next(0, 300) : long.MaxValue,
        };
        _all.Add(sequence);
        _live.Add(sequence);
        _laws.Submitted(sequence, _live, _step);
        _events.Add(SchedulerEvent.Submitted(sequence));
    }

    private void Disturb()
    {
        foreach (var sequence in _live)
        {
            if (_random.Next(60) == 0) _events.Add(SchedulerEvent.Cancelled(sequence));
            // Only a sequence that has sent something can have a reader that does not read.
            else if (_stalls && sequence.Started && _random.Next(sequence.Stalled ? 6 : 20) == 0)
                _events.Add(sequence.Stalled ? SchedulerEvent.Resumed(sequence) : SchedulerEvent.Stalled(sequence));
        }
        // One that comes too late has nothing to end.
        if (_all.Count > 0 && _random.Next(30) == 0) _events.Add(SchedulerEvent.Cancelled(_all[_random.Next(_all.Count)]));
    }

    private void Step()
    {
        _step++;
        _now += _random.Next(0, 20);
        if (Trace.KeepsLines) foreach (var e in _events) Trace.Line($"step {_step} at {_now}: {e.Kind} {Describe(e.Sequence)}");
        _laws.BeforeStep(_events, _now, _step);
        var batch = _laws.Measured(_events.Count, () => _scheduler.Step(CollectionsMarshal.AsSpan(_events), _now));
        if (Trace.KeepsLines) TracePlan(batch);
        foreach (var sequence in batch.Finished) Ended(sequence);
        foreach (var e in _events)
            if (e.Kind == SchedulerEventKind.Ended) Laws.Check(Law.CancelFrees, e.Sequence.State == SequenceState.Finished, $"sequence {e.Sequence.Arrival} outlived its cancellation");
        _events.Clear();
        _laws.CheckPlan(batch, _all, _live);
        foreach (var chunk in batch.Chunks)
        {
            Trace.Mix(chunk.Sequence.Arrival);
            Trace.Mix(chunk.Count);
        }
        if (batch.Chunks.Count > 0) Retire(batch);
        _ledger.Check(_live);
        if (_step % 4 == 0) _ledger.CheckPrefixes(_live);
    }

    private void Retire(ScheduledBatch batch)
    {
        _outcomes.Clear();
        foreach (var chunk in batch.Chunks)
            if (chunk.Samples) _outcomes.Add(Outcome());
        foreach (var sequence in _scheduler.Retire(CollectionsMarshal.AsSpan(_outcomes), batch.TokenCount * _ticksPerToken)) Ended(sequence);
    }

    private ChunkOutcome Outcome() => _random.Next(40) switch
    {
        0 => new(1, Stops: true),
        1 => new(0, false, "failed"),
        _ => new(_random.Next(100), false),
    };

    private void Ended(Sequence sequence)
    {
        if (Trace.KeepsLines) Trace.Line($"  ends: {Describe(sequence)} {sequence.Finish}");
        Trace.Mix(sequence.Arrival);
        Trace.Mix((int)sequence.Finish!.Value);
        Laws.Check(Law.DeliveredOnce, _ended.Add(sequence), $"sequence {sequence.Arrival} ended twice");
        _live.Remove(sequence);
        _laws.Ended(sequence);
        for (int kind = 0; kind < _cache.Pools.Count; kind++)
            Laws.Check(Law.CancelFrees, sequence.Table.Pages(kind).Count == 0, $"sequence {sequence.Arrival} ended ({sequence.Finish}) and has pages");
    }

    private void TracePlan(ScheduledBatch batch)
    {
        foreach (var s in batch.Preempted) Trace.Line($"  loses its pages: {Describe(s)}");
        foreach (var s in batch.Started) Trace.Line($"  starts: {Describe(s)}, {s.CachedTokens} cached");
        foreach (var c in batch.Chunks) Trace.Line($"  runs: {c.Sequence.Arrival}, tokens {c.Start} to {c.Start + c.Count}{(c.Samples ? ", samples" : "")}");
    }

    private static string Describe(Sequence s) => $"{s.Arrival} of {s.Tenant} ({s.PromptLength}+{s.OutputTokensMax}, at {s.Processed} of {s.Length}, {s.State}{(s.Stalled ? ", stalled" : "")})";
}

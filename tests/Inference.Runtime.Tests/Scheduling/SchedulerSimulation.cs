using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Inference.Testing;
using Xunit;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Runtime.Tests.Scheduling;

/// <summary>
/// One seeded life of a scheduler with a cache that keeps no numbers: a drawn configuration and workload of several tenants under virtual time,
/// every plan and every page checked after each step, then a second phase without arrivals, stalls or cancellations in which everyone must end
/// within a computed bound. What the checks know of the order they find out themselves, from the requests and the plans.
/// </summary>
internal sealed class SchedulerSimulation : IDisposable
{
    private static readonly string[] Tenants = ["a", "b", "c"];
    private readonly Random _random;
    private readonly SchedulerLimits _limits;
    private readonly KvCacheManager _cache;
    private readonly Scheduler _scheduler;
    private readonly bool _stalls;
    private readonly int _tenants, _ticksPerToken;
    private readonly List<Sequence> _all = [], _live = [];
    private readonly Dictionary<Sequence, Wait> _waits = [];
    private readonly Dictionary<string, Service> _services = [];
    private readonly HashSet<Sequence> _ended = [];
    private readonly Dictionary<Sequence, int> _planned = [];
    private readonly List<SchedulerEvent> _events = [];
    private readonly Dictionary<(string, string), (double, double)> _windows = [];
    private long _now, _served, _servedBeside;
    private int _step;
    private ulong _trace = 14695981039346656037;

    /// <summary>What is known of a request from its submission on.</summary>
    private sealed class Wait
    {
        public required int Bound { get; init; }      // step by which it must have ended, where nobody stalls and nobody goes ahead by right
        public required long Served { get; init; }    // tokens computed for anyone before it came
        public required long Running { get; init; }   // tokens that those running then may still have computed
        public required long OwnRunning { get; init; }
        public required double Debt { get; init; }    // what its tenant had had beyond the virtual time, in tokens
        public long Ahead { get; set; }               // tokens asked for by its tenant's requests that start before it
        public long Overtaken { get; set; }           // tokens asked for by its tenant's requests that start before it and came after it
        public int FirstOvertaken { get; set; } = int.MaxValue;
        public int StartedIn { get; set; } = int.MaxValue;
    }

    private sealed class Service
    {
        public long Tokens { get; set; }              // computed for it, not counting those computed again
        public int CostMax { get; set; }              // of its requests
    }

    public SchedulerSimulation(int seed)
    {
        _random = new(seed);
        int sequences = _random.Next(1, 9);
        _tenants = _random.Next(1, Tenants.Length + 1);
        _limits = new(sequences, sequences + _random.Next(0, 40), _random.Next(3) switch { 0 => 0, 1 => _random.Next(1, 12), _ => 256 })
        {
            PreemptionsMax = _random.Next(4) switch { 0 => 0, 1 => 1, _ => 3 },
            PriorityAhead = _random.Next(2) * _random.Next(1, 300),
            TenantWeights = Tenants.ToDictionary(t => t, _ => _random.Next(2) == 0 ? 1 : _random.Next(1, 9) / 2.0),
        };
        var states = new HashModel(pageRows: 1 << _random.Next(0, 4)).KvStates;
        _cache = new(states, new(_random.Next(8, 160), sequences, _limits.StepTokensMax, _random.Next(2) * _random.Next(1, 9)), null);
        _scheduler = new(_limits, _cache);
        _stalls = _random.Next(2) == 0;
        _ticksPerToken = _random.Next(4);
        foreach (string tenant in Tenants) _services.Add(tenant, new());
    }

    public int Steps => _step;
    public int Preemptions { get; private set; }
    public int Hits { get; private set; }
    public int Overtakings { get; private set; }
    public int Hopeless { get; private set; }
    public int Kept { get; private set; }
    public int Windows { get; private set; }
    public int Waits { get; private set; }

    /// <summary>Runs to the end; returns a hash of all plans.</summary>
    public ulong Run()
    {
        int requests = _random.Next(1, 24);
        double arrivalRate = _random.NextDouble();
        while (_all.Count < requests || _random.Next(8) != 0)
        {
            while (_all.Count < requests && _random.NextDouble() < arrivalRate) Submit();
            Disturb();
            Step();
        }
        foreach (var sequence in _all.Where(s => s.Stalled)) _events.Add(SchedulerEvent.Resumed(sequence));
        // The first gets on in each step; what it loses when one goes ahead that keeps its pages it loses once for each of those.
        int limit = _step + _live.Sum(s => s.PositionsMax) * 2 + 1;
        while (_ended.Count < _all.Count)
        {
            Assert.True(_step < limit, "not everyone ended within the work that was left");
            Step();
        }
        while (_cache.Prefixes?.Reclaim() == true) { }
        Assert.All(_cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
        Assert.Equal(0, _cache.Prefixes?.NodeCount ?? 0);
        Assert.All(_all, s => Assert.Equal((0, 0), (s.Account.Live, s.Account.Waiting)));
        return _trace;
    }

    public void Dispose() => _cache.Dispose();

    private void Submit()
    {
        int positions = _random.Next(1, Math.Min(_cache.SequenceTokensMax, 300) + 1);
        int output = _random.Next(1, Math.Min(positions, 60) + 1);
        long deadline = _random.Next(6) == 0 ? _now + _random.Next(0, 400) : long.MaxValue;
        // Few different tokens: many prompts begin alike.
        int[] prompt = new int[positions + 1 - output];
        if (_random.Next(2) == 0) prompt[_random.Next(prompt.Length)] = 1;
        string tenant = Tenants[_random.Next(_tenants)];
        var path = _cache.Prefixes is null ? null : PrefixPath.Begin(tenant);
        var sequence = new Sequence(_all.Count + 1, prompt, output, deadline, _cache.CreateTable(), path)
        {
            Tenant = tenant,
            Priority = _random.Next(2) == 0 ? 0 : _random.Next(-2, 3),
            FirstTokenDeadline = _random.Next(8) == 0 ? _now + _random.Next(0, 300) : long.MaxValue,
        };
        _all.Add(sequence);
        _live.Add(sequence);
        _services[tenant].CostMax = Math.Max(_services[tenant].CostMax, sequence.PositionsMax + 1);
        var account = _scheduler.Accounts.Find(tenant);
        _waits[sequence] = new()
        {
            Bound = _step + _live.Sum(s => s.PositionsMax) * 2 * (1 + _limits.PreemptionsMax),
            Served = _served,
            Running = _live.Where(s => s.Started).Sum(Left),
            OwnRunning = _live.Where(s => s.Started && s.Tenant == tenant).Sum(Left),
            Debt = account is null ? 0 : Math.Max(0, account.Had - _scheduler.Accounts.Time) * account.Weight,
        };
        _events.Add(SchedulerEvent.Submitted(sequence));

        static long Left(Sequence s) => s.PositionsMax + 1 - Math.Max(s.ProcessedMax, s.CachedTokens);
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
    }

    private void Step()
    {
        _step++;
        _now += _random.Next(0, 20);
        var decoding = _scheduler.Running.Where(s => s.State == SequenceState.Decoding).ToList();
        var batch = _scheduler.Step([.. _events], _now);
        var cancelled = _events.Where(e => e.Kind == SchedulerEventKind.Ended).Select(e => e.Sequence).ToList();
        _events.Clear();
        Preemptions += batch.Preempted.Count;
        foreach (var sequence in batch.Finished) EnterEnd(sequence);
        Assert.All(cancelled, s => Assert.Equal(SequenceState.Finished, s.State));
        CheckStarts(batch);
        CheckPlan(batch, decoding);
        CheckShares(batch);
        CheckProgress();
        CheckNothingIdles(batch);
        PageLedger.Check(_cache, _all);
        CountService(batch);
        CheckFairness();
        if (batch.Chunks.Count == 0) return;
        var finished = _scheduler.Retire([.. batch.Chunks.Where(c => c.Samples).Select(_ => Outcome())], batch.TokenCount * _ticksPerToken);
        foreach (var sequence in finished) EnterEnd(sequence);
        PageLedger.Check(_cache, _all);
    }

    private ChunkOutcome Outcome() => _random.Next(40) switch
    {
        0 => new(1, Stops: true),
        1 => new(0, false, "failed"),
        _ => new(_random.Next(100), false),
    };

    private void EnterEnd(Sequence sequence)
    {
        if (!_ended.Add(sequence)) Assert.Fail($"sequence {sequence.Arrival} ended twice");
        Check(sequence.State == SequenceState.Finished, "an ended sequence is not finished");
        Check(sequence.OutputCount <= sequence.OutputTokensMax, "too many tokens");
        Check(_stalls || _tenants > 1 || _limits.PriorityAhead > 0 || _step <= _waits[sequence].Bound, "a sequence waited longer than for the work ahead of it");
        _live.Remove(sequence);
        if (sequence.Finish == FinishReason.FirstTokenDeadlineExceeded)
            Check(sequence.OutputCount == 0 && sequence.FirstTokenDeadline <= _now, "a first token came and was too late");
        if (sequence.Finish != FinishReason.DeadlineUnreachable) return;
        Hopeless++;
        Check(!sequence.Started && sequence.Estimate!.Tokens * _ticksPerToken > 2 * sequence.Estimate.Left.Ticks, "a request was refused that could have been in time, or after work");
        Check(sequence.Estimate!.Needed.Ticks == sequence.Estimate.Tokens * _ticksPerToken / 2, "the time was not estimated at twice the measured speed");
    }

    private void CheckPlan(ScheduledBatch batch, List<Sequence> decoding)
    {
        _planned.Clear();
        int tokens = 0;
        foreach (var chunk in batch.Chunks)
        {
            var sequence = chunk.Sequence;
            tokens += chunk.Count;
            Check(_planned.TryAdd(sequence, chunk.Count), "a sequence is planned twice");
            Check(chunk.Count > 0 && chunk.Start == sequence.Processed && !sequence.Stalled, "a chunk is not the next one");
            Check(sequence.State == SequenceState.Prefilling || chunk is { Count: 1, Samples: true }, "a decode is not of one token");
            Check(chunk.Samples == (chunk.Start + chunk.Count == sequence.Length), "sampling in the middle");
            Check(sequence.Due > _now, "an expired sequence runs");
            Mix(sequence.Arrival);
            Mix(chunk.Count);
        }
        Check(tokens == batch.TokenCount && tokens <= _limits.StepTokensMax, "the token budget is broken");
        Check(_scheduler.Running.Count <= _limits.SequencesMax, "too many sequences run");
        foreach (var s in decoding)
            Check(_planned.ContainsKey(s) || s.Stalled || s.State == SequenceState.Finished || batch.Preempted.Contains(s), "a decode was left out");
        foreach (var s in batch.Preempted)
        {
            Check(s.Preemptions <= _limits.PreemptionsMax, "a sequence lost its pages once too often");
            if (s.Preemptions == _limits.PreemptionsMax) Kept++;
        }
    }

    // Who starts goes past those of its tenant that came before it only while they have no room, and by no more than they ask for.
    private void CheckStarts(ScheduledBatch batch)
    {
        bool beside = _scheduler.Waiting.Any(s => s.TriedIn == _step && s.Yields);
        foreach (var started in batch.Started)
        {
            Check(started.CachedTokens < started.PromptLength, "a whole prompt was taken from the cache");
            if (started.CachedTokens > 0) Hits++;
            var wait = _waits[started];
            wait.StartedIn = _step;
            if (!beside) CheckWait(started, wait);
            foreach (var other in _live.Where(s => !s.Started && !s.Stalled && s.Tenant == started.Tenant))
            {
                _waits[other].Ahead += started.PositionsMax + 1;
                if (!GoesAhead(other, started)) continue;
                Overtakings++;
                _waits[other].FirstOvertaken = Math.Min(_waits[other].FirstOvertaken, _step);
                if (other.Yields)
                    Check(_scheduler.Running.Any(s => s.State == SequenceState.Prefilling && _waits[s].StartedIn <= _waits[other].FirstOvertaken),
                        "a request is overtaken for nothing, and no prompt runs that was there before");
                else _waits[other].Overtaken += started.PositionsMax;
                Check(_waits[other].Overtaken <= other.PositionsMax, "a request was overtaken by more than it asks for");
            }
        }
    }

    private static bool GoesAhead(Sequence one, Sequence other)
    {
        long a = one.Rank, b = other.Rank;
        return a != b ? a < b : one.Arrival < other.Arrival;
    }

    // The bound of docs/adr/0006: what was computed for others between its submission and its start.
    private void CheckWait(Sequence sequence, Wait wait)
    {
        Waits++;
        double weight = _limits.TenantWeights[sequence.Tenant], cost = sequence.PositionsMax + 1;
        double bound = wait.Running + 2 * wait.Ahead + cost;
        foreach (string other in Tenants.Take(_tenants).Where(t => t != sequence.Tenant))
            bound += _limits.TenantWeights[other] / weight * (wait.Ahead + wait.OwnRunning + wait.Debt) + (double)_services[other].CostMax * _limits.SequencesMax;
        long others = _served - wait.Served;
        Check(others - _servedBeside <= bound, $"{others} tokens were computed before a request started; {bound} is the bound");
    }

    // Half of what decodes leave belongs to the shortest prompt, the other half to the first.
    private void CheckShares(ScheduledBatch batch)
    {
        if (batch.Preempted.Count > 0) return;
        var prompts = _scheduler.Running.Where(s => s is { State: SequenceState.Prefilling, Stalled: false }).ToList();
        if (prompts.Count == 0) return;
        int budget = _limits.StepTokensMax - _scheduler.Running.Count(s => s is { State: SequenceState.Decoding, Stalled: false });
        var shortest = prompts.MinBy(s => s.ToGo)!;
        Check(_planned.GetValueOrDefault(shortest) >= Math.Min(shortest.ToGo, budget / 2), "the shortest prompt got less than half");
        Check(_planned.GetValueOrDefault(prompts[0]) >= Math.Min(prompts[0].ToGo, budget - budget / 2), "the first prompt got less than half");
        Check(batch.TokenCount == Math.Min(_limits.StepTokensMax, _limits.StepTokensMax - budget + prompts.Sum(s => s.ToGo)), "tokens of the step were left");
    }

    private void CheckProgress()
    {
        var first = _scheduler.Running.FirstOrDefault(s => !s.Stalled);
        if (first is not null) Check(_planned.ContainsKey(first), "the first running sequence did not get on");
        else
            foreach (var s in _scheduler.Waiting) Check(s.Stalled, "someone could run and nobody does");
        var running = _scheduler.Running.Select(s => (s.Preemptions < _limits.PreemptionsMax, s.Turn)).ToList();
        Check(running.SequenceEqual(running.Order()), "the running ones are out of order");
    }

    // Work-conserving: a place, tokens and pages are free, and yet someone waits: then for a prefix, or because it may not overtake any more.
    private void CheckNothingIdles(ScheduledBatch batch)
    {
        if (batch.TokenCount == _limits.StepTokensMax || _scheduler.Running.Count == _limits.SequencesMax || batch.Preempted.Count > 0) return;
        foreach (var s in _scheduler.Waiting.Where(s => !s.Stalled))
        {
            if (!HasRoom(s) || WaitsForPrefix(s)) continue;
            Check(_scheduler.Waiting.Any(w => w != s && !w.Stalled && (w.Started || w.Bypassed + s.PositionsMax > w.PositionsMax)), $"step {_step}: {s.Arrival} of {s.Length}+{s.OutputTokensMax} could start and does not; {_limits}; {_stalls} waiting {string.Join(' ', _scheduler.Waiting.Select(w => $"{w.Arrival}:{w.Length},{w.Stalled},{w.Started},{w.Bypassed},{w.TriedIn},{w.SkippedAt}"))} running {string.Join(' ', _scheduler.Running.Select(w => $"{w.Arrival}:{w.Length}-{w.Processed},{w.Stalled}"))}");
        }
    }

    private bool HasRoom(Sequence candidate)
    {
        for (int kind = 0; kind < _cache.Pools.Count; kind++)
        {
            var pool = _cache.Pools[kind];
            if (pool.Spec.Retention != KvRetention.All)
            {
                if (pool.FreeCount < pool.Spec.PagesFor(Math.Min(candidate.Length, _limits.StepTokensMax))) return false;
                continue;
            }
            int free = pool.FreeCount - pool.Spec.PagesFor(Horizon(candidate));
            foreach (var running in _scheduler.Running) free -= _cache.PagesMissing(running.Table, kind, Horizon(running));
            if (free < 0) return false;
        }
        // What it could resume from asks for other pages, and is found only where it has not started.
        return _cache.Prefixes is null;
    }

    private int Horizon(Sequence s) =>
        s.Preemptions >= _limits.PreemptionsMax ? s.PositionsMax : Math.Min(s.Length + _limits.HeadroomTokens, s.PositionsMax);

    private bool WaitsForPrefix(Sequence candidate) => _cache.Prefixes is not null && _scheduler.Running.Any(
        s => s.State == SequenceState.Prefilling && s.AllTokens.Span.CommonPrefixLength(candidate.AllTokens.Span) >= _cache.Prefixes.BlockTokens);

    private void CountService(ScheduledBatch batch)
    {
        long before = _served;
        foreach (var chunk in batch.Chunks)
        {
            int computed = Math.Min(chunk.Count, chunk.Start + chunk.Count - Math.Max(chunk.Start, chunk.Sequence.ProcessedMax));
            if (computed <= 0) continue;
            _services[chunk.Sequence.Tenant].Tokens += computed;
            _served += computed;
        }
        if (_scheduler.Waiting.Any(s => s.TriedIn == _step && s.Yields)) _servedBeside += _served - before;
    }

    // While two tenants wait, and neither for room, their services over their weights differ by no more than a round of their requests.
    private void CheckFairness()
    {
        for (int i = 0; i < _tenants; i++)
            for (int j = 0; j < i; j++)
            {
                var (a, b) = (Tenants[i], Tenants[j]);
                if (!Backlogged(a) || !Backlogged(b))
                {
                    _windows.Remove((a, b));
                    continue;
                }
                double hadA = _services[a].Tokens / _limits.TenantWeights[a], hadB = _services[b].Tokens / _limits.TenantWeights[b];
                if (_windows.TryAdd((a, b), (hadA, hadB))) continue;
                Windows++;
                var (fromA, fromB) = _windows[(a, b)];
                double round = 2 * _limits.SequencesMax * (_services[a].CostMax / _limits.TenantWeights[a] + _services[b].CostMax / _limits.TenantWeights[b]);
                Check(Math.Abs(hadA - fromA - (hadB - fromB)) <= round, $"{a} had {hadA - fromA} and {b} {hadB - fromB} while both waited; {round} is the bound");
            }
    }

    private bool Backlogged(string tenant)
    {
        bool waits = false;
        foreach (var s in _scheduler.Waiting)
        {
            if (s.Tenant != tenant || s.Started) continue;
            if (s.TriedIn == _step) return false;
            waits = true;
        }
        return waits;
    }

    private static void Check(bool holds, string otherwise)
    {
        if (!holds) Assert.Fail(otherwise);
    }

    private void Mix(long value) => _trace = (_trace ^ (ulong)value) * 1099511628211;
}

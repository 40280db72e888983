using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Simulation;

/// <summary>
/// What a scheduler's plans must satisfy, of docs/adr/0006 and beyond. What it knows of the order it finds out itself, from the requests and the
/// plans: ranks, service, who overtook whom.
/// </summary>
internal sealed class SchedulerLaws(
    Laws laws, Scheduler scheduler, KvCacheManager cache, SchedulerLimits limits, int tenants, bool stalls, int ticksPerToken)
{
    public const int TenantsMax = 3;
    public static readonly string[] Tenants = ["a", "b", "c"];

    private readonly Dictionary<Sequence, Wait> _waits = [];
    private readonly Dictionary<Sequence, int> _planned = [];
    private readonly List<Sequence> _decoding = [];
    private readonly Service[] _services = [.. Tenants.Select(_ => new Service())];
    private readonly (double, double)?[,] _windows = new (double, double)?[TenantsMax, TenantsMax];
    private long _now, _served, _servedBeside;
    private int _step, _steady;

    /// <summary>What is known of a request from its submission on.</summary>
    private sealed class Wait
    {
        public required int Bound { get; init; }      // step by which it must have ended, where nobody stalls and nobody goes ahead by right
        public required long Served { get; init; }    // tokens computed for anyone before it came
        public required long Running { get; init; }   // tokens that those running then may still have computed
        public required long OwnRunning { get; init; }
        public required double Debt { get; init; }    // what its tenant had had beyond the virtual time, in tokens
        public long Rank { get; set; }                // among its tenant's requests
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

    public int Preemptions { get; private set; }
    public int Hits { get; private set; }
    public int Overtakings { get; private set; }
    public int Hopeless { get; private set; }
    public int Kept { get; private set; }

    public void Submitted(Sequence sequence, List<Sequence> live, int step)
    {
        var service = ServiceOf(sequence.Tenant);
        service.CostMax = Math.Max(service.CostMax, sequence.PositionsMax + 1);
        var account = scheduler.Accounts.Find(sequence.Tenant);
        _waits[sequence] = new()
        {
            Bound = step + live.Sum(s => s.PositionsMax) * 2 * (1 + limits.PreemptionsMax),
            Served = _served,
            Running = live.Where(s => s.Started).Sum(Left),
            OwnRunning = live.Where(s => s.Started && s.Tenant == sequence.Tenant).Sum(Left),
            Debt = account is null ? 0 : Math.Max(0, account.Had - scheduler.Accounts.Time) * account.Weight,
        };

        static long Left(Sequence s) => s.PositionsMax + 1 - Math.Max(s.ProcessedMax, s.CachedTokens);
    }

    public void BeforeStep(List<SchedulerEvent> events, long now, int step)
    {
        (_now, _step) = (now, step);
        _decoding.Clear();
        foreach (var s in scheduler.Running)
            if (s.State == SequenceState.Decoding) _decoding.Add(s);
        foreach (var e in events)
            if (e.Kind == SchedulerEventKind.Submitted) _waits[e.Sequence].Rank = now - e.Sequence.Priority * limits.PriorityAhead;
    }

    /// <summary>Plans a step, and looks whether memory was allocated for a plan of decodes only, without events and without new pages.</summary>
    public ScheduledBatch Measured(int events, Func<ScheduledBatch> plan)
    {
        bool decodes = events == 0 && scheduler.Waiting.Count == 0 && scheduler.Running.Count > 0 && _decoding.Count == scheduler.Running.Count;
        // Lists have grown to what it takes, and no prefix was given up in exchange for a page.
        bool steady = decodes && _steady == _decoding.Count && cache.Prefixes is null;
        _steady = decodes ? _decoding.Count : 0;
        int free = steady ? FreePages() : 0;
        long before = GC.GetAllocatedBytesForCurrentThread();
        var batch = plan();
        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        steady = steady && batch.Finished.Count == 0 && batch.Preempted.Count == 0 && FreePages() == free;
        laws.Check(Law.StepAllocatesNothing, steady, allocated == 0, "a step of decodes allocated memory");
        return batch;
    }

    private int FreePages()
    {
        int free = 0;
        foreach (var pool in cache.Pools) free += pool.FreeCount;
        return free;
    }

    public void CheckPlan(ScheduledBatch batch, List<Sequence> all, List<Sequence> live)
    {
        Preemptions += batch.Preempted.Count;
        CheckChunks(batch);
        CheckStarts(batch, all, live);
        CheckShares(batch);
        CheckProgress();
        CheckNothingIdles(batch);
        CountService(batch);
        CheckFairness();
    }

    public void Ended(Sequence sequence)
    {
        laws.Check(Law.DeliveredOnce, sequence.State == SequenceState.Finished, $"sequence {sequence.Arrival} ended and is {sequence.State}");
        laws.Check(Law.EndsInTime, sequence.OutputCount <= sequence.OutputTokensMax, $"sequence {sequence.Arrival} has {sequence.OutputCount} of {sequence.OutputTokensMax} tokens");
        laws.Check(Law.NoStarvation, !stalls && tenants == 1 && limits.PriorityAhead == 0, _step <= _waits[sequence].Bound, "a sequence waited longer than for the work ahead of it");
        laws.Check(Law.EndsInTime, sequence.Finish == FinishReason.FirstTokenDeadlineExceeded, sequence.OutputCount == 0 && sequence.FirstTokenDeadline <= _now, "a first token came and was too late");
        laws.Check(Law.EndsInTime, sequence.Finish == FinishReason.DeadlineExceeded, sequence.Deadline <= _now, "a deadline was enforced before its time");
        if (sequence.Finish != FinishReason.DeadlineUnreachable) return;
        Hopeless++;
        var estimate = sequence.Estimate!;
        laws.Check(Law.UnservableRefused, !sequence.Started && estimate.Tokens * ticksPerToken > 2 * estimate.Left.Ticks, $"sequence {sequence.Arrival} was refused that could have been in time, or after work");
        laws.Check(Law.UnservableRefused, estimate.Needed.Ticks == estimate.Tokens * ticksPerToken / 2, $"the time was not estimated at twice the measured speed");
    }

    private void CheckChunks(ScheduledBatch batch)
    {
        _planned.Clear();
        int tokens = 0;
        foreach (var chunk in batch.Chunks)
        {
            var s = chunk.Sequence;
            tokens += chunk.Count;
            laws.Check(Law.PlanWithinLimits, _planned.TryAdd(s, chunk.Count), $"sequence {s.Arrival} is planned twice");
            laws.Check(Law.PlanWithinLimits, chunk.Count > 0 && chunk.Start == s.Processed && !s.Stalled, $"the chunk of sequence {s.Arrival} is not the next one");
            laws.Check(Law.PlanWithinLimits, s.State == SequenceState.Prefilling || chunk is { Count: 1, Samples: true }, $"the decode of sequence {s.Arrival} is not of one token");
            laws.Check(Law.PlanWithinLimits, chunk.Samples == (s.OutputTokensMax > 0 && chunk.Start + chunk.Count == s.Length), $"sequence {s.Arrival} samples in the middle");
            laws.Check(Law.EndsInTime, s.Due > _now, $"sequence {s.Arrival} runs and is expired");
            for (int kind = 0; kind < cache.Pools.Count; kind++) CheckWritable(chunk, kind);
        }
        laws.Check(Law.PlanWithinLimits, tokens == batch.TokenCount && tokens <= limits.StepTokensMax, $"{tokens} tokens, {batch.TokenCount} counted, {limits.StepTokensMax} at most");
        laws.Check(Law.PlanWithinLimits, scheduler.Running.Count <= limits.SequencesMax, $"{scheduler.Running.Count} sequences run");
        foreach (var s in _decoding)
            laws.Check(Law.PlanWithinLimits, _planned.ContainsKey(s) || s.Stalled || s.State == SequenceState.Finished || batch.Preempted.Contains(s), $"the decode of sequence {s.Arrival} was left out");
        foreach (var s in batch.Preempted)
        {
            laws.Check(Law.PreemptionBounded, s.Preemptions <= limits.PreemptionsMax, $"sequence {s.Arrival} lost its pages {s.Preemptions} times");
            if (s.Preemptions == limits.PreemptionsMax) Kept++;
        }
    }

    // The rows of the chunk lie on pages that one table has.
    private void CheckWritable(ScheduledChunk chunk, int kind)
    {
        var pool = cache.Pools[kind];
        var pages = chunk.Sequence.Table.Pages(kind);
        int first = chunk.Sequence.Table.FirstPage(kind), rowsEnd = (chunk.Start + chunk.Count) / pool.Spec.Ratio;
        for (int row = chunk.Start / pool.Spec.Ratio; row < rowsEnd; row = (row / pool.Spec.RowsPerPage + 1) * pool.Spec.RowsPerPage)
        {
            int page = pages[row / pool.Spec.RowsPerPage - first];
            if (page == BlockTable.NoPage && row < rowsEnd - 1) continue;
            laws.Check(Law.OneWriter, pool.References(page) - pool.KeptReferences(page) == 1, $"{pool.Spec.Name}: sequence {chunk.Sequence.Arrival} writes to page {page}, which another has");
        }
    }

    // Who starts goes past those of its tenant that came before it only while they have no room, and by no more than they ask for.
    private void CheckStarts(ScheduledBatch batch, List<Sequence> all, List<Sequence> live)
    {
        if (batch.Started.Count == 0) return;
        bool beside = AnyYields();
        foreach (var s in scheduler.Waiting)
            laws.Check(Law.NoStarvation, s.Started && !s.Stalled, batch.Preempted.Contains(s), $"someone new starts before sequence {s.Arrival}, which has started");
        foreach (var started in batch.Started)
        {
            laws.Check(Law.PrefixContent, started.CachedTokens < started.PromptLength, $"the whole prompt of sequence {started.Arrival} was taken from the cache");
            if (started.CachedTokens > 0) CheckHit(started, all);
            var wait = _waits[started];
            wait.StartedIn = _step;
            if (!beside) CheckWait(started, wait);
            foreach (var other in live)
                if (!other.Started && !other.Stalled && other.Tenant == started.Tenant) CheckOvertaking(started, other, _waits[other]);
        }
    }

    // A tenant is served from what was computed for it.
    private void CheckHit(Sequence started, List<Sequence> all)
    {
        Hits++;
        int common = 0;
        foreach (var other in all)
            if (other != started && other.Tenant == started.Tenant) common = Math.Max(common, started.AllTokens.Span.CommonPrefixLength(other.AllTokens.Span));
        laws.Check(Law.PrefixContent, started.CachedTokens <= common, $"sequence {started.Arrival} has {started.CachedTokens} tokens from the cache, and its tenant computed {common}");
    }

    private void CheckOvertaking(Sequence started, Sequence other, Wait wait)
    {
        wait.Ahead += started.PositionsMax + 1;
        if (!GoesAhead(other, started)) return;
        Overtakings++;
        wait.FirstOvertaken = Math.Min(wait.FirstOvertaken, _step);
        if (other.Yields)
        {
            bool prompt = false;
            foreach (var s in scheduler.Running) prompt |= s.State == SequenceState.Prefilling && _waits[s].StartedIn <= wait.FirstOvertaken;
            laws.Check(Law.NoStarvation, prompt, $"sequence {other.Arrival} is overtaken for nothing, and no prompt runs that was there before");
        }
        else wait.Overtaken += started.PositionsMax;
        laws.Check(Law.NoStarvation, wait.Overtaken <= other.PositionsMax, $"sequence {other.Arrival} was overtaken by {wait.Overtaken} tokens and asks for {other.PositionsMax}");
    }

    private bool GoesAhead(Sequence one, Sequence other)
    {
        long a = _waits[one].Rank, b = _waits[other].Rank;
        return a != b ? a < b : one.Arrival < other.Arrival;
    }

    private bool AnyYields()
    {
        foreach (var s in scheduler.Waiting)
            if (s.TriedIn == _step && s.Yields) return true;
        return false;
    }

    // The bound of docs/adr/0006: what was computed for others between its submission and its start.
    private void CheckWait(Sequence sequence, Wait wait)
    {
        double weight = limits.TenantWeights[sequence.Tenant], cost = sequence.PositionsMax + 1;
        double bound = wait.Running + 2 * wait.Ahead + cost;
        for (int t = 0; t < tenants; t++)
            if (Tenants[t] != sequence.Tenant)
                bound += limits.TenantWeights[Tenants[t]] / weight * (wait.Ahead + wait.OwnRunning + wait.Debt) + (double)_services[t].CostMax * limits.SequencesMax;
        long others = _served - wait.Served;
        laws.Check(Law.NoStarvation, others - _servedBeside <= bound, $"{others} tokens were computed before sequence {sequence.Arrival} started; {bound} is the bound");
    }

    // Half of what decodes leave belongs to the shortest prompt, the other half to the first.
    private void CheckShares(ScheduledBatch batch)
    {
        if (batch.Preempted.Count > 0) return;
        int budget = limits.StepTokensMax, toGo = 0;
        Sequence? first = null, shortest = null;
        foreach (var s in scheduler.Running)
        {
            if (s.Stalled) continue;
            if (s.State == SequenceState.Decoding) budget--;
            if (s.State != SequenceState.Prefilling) continue;
            first ??= s;
            if (s.ToGo < (shortest?.ToGo ?? int.MaxValue)) shortest = s;
            toGo += s.ToGo;
        }
        if (shortest is null) return;
        laws.Check(Law.Fairness, _planned.GetValueOrDefault(shortest) >= Math.Min(shortest.ToGo, budget / 2), $"the shortest prompt got less than half");
        laws.Check(Law.Fairness, _planned.GetValueOrDefault(first!) >= Math.Min(first!.ToGo, budget - budget / 2), $"the first prompt got less than half");
        laws.Check(Law.WorkConserving, batch.TokenCount == Math.Min(limits.StepTokensMax, limits.StepTokensMax - budget + toGo), $"tokens of the step were left");
    }

    private void CheckProgress()
    {
        Sequence? first = null, before = null;
        foreach (var s in scheduler.Running)
        {
            if (!s.Stalled) first ??= s;
            bool ordered = before is null || (before.Preemptions < limits.PreemptionsMax, before.Turn).CompareTo((s.Preemptions < limits.PreemptionsMax, s.Turn)) < 0;
            laws.Check(Law.PlanWithinLimits, ordered, $"the running ones are out of order");
            before = s;
        }
        if (first is not null) laws.Check(Law.Progress, _planned.ContainsKey(first), $"the first running sequence, {first.Arrival}, did not get on");
        else
            foreach (var s in scheduler.Waiting) laws.Check(Law.Progress, s.Stalled, $"sequence {s.Arrival} could run and nobody does");
    }

    // A place, tokens and pages are free, and yet someone waits: then for a prefix, or because it may not overtake any more.
    private void CheckNothingIdles(ScheduledBatch batch)
    {
        if (batch.TokenCount == limits.StepTokensMax || scheduler.Running.Count == limits.SequencesMax || batch.Preempted.Count > 0) return;
        foreach (var s in scheduler.Waiting)
        {
            if (s.Stalled || !HasRoom(s) || WaitsForPrefix(s)) continue;
            bool held = false;
            foreach (var w in scheduler.Waiting) held |= w != s && !w.Stalled && (w.Started || w.Bypassed + s.PositionsMax > w.PositionsMax);
            laws.Check(Law.WorkConserving, held, $"step {_step}: sequence {s.Arrival} of {s.Length}+{s.OutputTokensMax} could start and does not; {limits}");
        }
    }

    private bool HasRoom(Sequence candidate)
    {
        // What it could resume from asks for other pages, and is found only where it has not started.
        if (cache.Prefixes is not null) return false;
        for (int kind = 0; kind < cache.Pools.Count; kind++)
        {
            var pool = cache.Pools[kind];
            if (pool.Spec.Retention != KvRetention.All)
            {
                if (pool.FreeCount < pool.Spec.PagesBetween(0, Math.Min(candidate.Length, limits.StepTokensMax))) return false;
                continue;
            }
            int free = pool.FreeCount - pool.Spec.PagesFor(Horizon(candidate));
            foreach (var running in scheduler.Running) free -= cache.PagesMissing(running.Table, kind, Horizon(running));
            if (free < 0) return false;
        }
        return true;
    }

    private int Horizon(Sequence s) => s.Preemptions >= limits.PreemptionsMax ? s.PositionsMax : Math.Min(s.Length + limits.HeadroomTokens, s.PositionsMax);

    private bool WaitsForPrefix(Sequence candidate)
    {
        if (cache.Prefixes is null) return false;
        foreach (var s in scheduler.Running)
            if (s.State == SequenceState.Prefilling && s.AllTokens.Span.CommonPrefixLength(candidate.AllTokens.Span) >= cache.Prefixes.BlockTokens) return true;
        return false;
    }

    private void CountService(ScheduledBatch batch)
    {
        long before = _served;
        foreach (var chunk in batch.Chunks)
        {
            int computed = Math.Min(chunk.Count, chunk.Start + chunk.Count - Math.Max(chunk.Start, chunk.Sequence.ProcessedMax));
            if (computed <= 0) continue;
            ServiceOf(chunk.Sequence.Tenant).Tokens += computed;
            _served += computed;
        }
        if (AnyYields()) _servedBeside += _served - before;
    }

    // While two tenants wait, and neither for room, their services over their weights differ by no more than a round of their requests.
    private void CheckFairness()
    {
        for (int i = 0; i < tenants; i++)
            for (int j = 0; j < i; j++)
            {
                var (a, b) = (Tenants[i], Tenants[j]);
                if (!Backlogged(a) || !Backlogged(b))
                {
                    _windows[i, j] = null;
                    continue;
                }
                double hadA = _services[i].Tokens / limits.TenantWeights[a], hadB = _services[j].Tokens / limits.TenantWeights[b];
                if (_windows[i, j] is not { } from)
                {
                    _windows[i, j] = (hadA, hadB);
                    continue;
                }
                double round = 2 * limits.SequencesMax * (_services[i].CostMax / limits.TenantWeights[a] + _services[j].CostMax / limits.TenantWeights[b]);
                double difference = Math.Abs(hadA - from.Item1 - (hadB - from.Item2));
                laws.Check(Law.Fairness, difference <= round, $"{a} had {hadA - from.Item1} and {b} {hadB - from.Item2} while both waited; {round} is the bound");
            }
    }

    private bool Backlogged(string tenant)
    {
        bool waits = false;
        foreach (var s in scheduler.Waiting)
        {
            if (s.Tenant != tenant || s.Started) continue;
            if (s.TriedIn == _step) return false;
            waits = true;
        }
        return waits;
    }

    private Service ServiceOf(string tenant) => _services[tenant[0] - 'a'];
}

using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;

namespace Inference.Runtime.Scheduling;

/// <param name="SequencesMax">Most sequences that hold pages.</param>
/// <param name="StepTokensMax">Most tokens of one step; at least <paramref name="SequencesMax"/>.</param>
/// <param name="HeadroomTokens">A sequence is admitted only if it and every running one could grow by this much (or to its end, if that is
/// nearer) with the pages that are free: less means fuller steps and more preemptions.</param>
internal sealed record SchedulerLimits(int SequencesMax, int StepTokensMax, int HeadroomTokens = KvStateSpec.BlockTokens)
{
    /// <summary>Times that a sequence can lose its pages; then it is given room to its end, and keeps it.</summary>
    public int PreemptionsMax { get; init; } = 3;

    /// <summary>Ticks by which a level of priority puts a request ahead of its tenant's others.</summary>
    public long PriorityAhead { get; init; } = EngineOptions.PriorityAheadDefault.Ticks;

    /// <summary>Shares of the tenants that have another than 1.</summary>
    public IReadOnlyDictionary<string, double> TenantWeights { get; init; } = new Dictionary<string, double>();
}

/// <summary>
/// Who runs in the next step, with how many tokens, and who loses its pages when they run out. A pure state machine: events and a time in,
/// a plan out. It never reads a clock, waits, locks, or looks at a token's value, and the same calls always give the same plans.
/// The decisions and their proofs: docs/adr/0006-who-runs-next.md.
///
/// The line: the next place goes to the tenant that has had least for its weight (<see cref="TenantAccounts"/>); among a tenant's requests to the one
/// submitted first, a level of priority counting as <see cref="SchedulerLimits.PriorityAhead"/> of time. Whoever is first and has no room is
/// overtaken only by requests that together ask for no more tokens than it does, not counting what is done beside a prompt that ran before. So before
/// a request starts, others get at most what was running, twice what was ahead of it, its own length, and for each other tenant the share that
/// its weight gives it meanwhile and one round of its requests.
/// Running: those who started keep the order in which they did. Every one that decodes is in every step. Prompts share the rest of the step: half of
/// it goes to the shortest, the other half, and what is left, to the first. So a prompt with n tokens to go gets its first token within
/// ceil((n + s) / h) steps, where h is half of what decodes leave and s what shorter ones have to go; and the first always gets on.
/// When pages run out the last one goes back to the line, ahead of all who have not started, and later processes its tokens again. Who has lost
/// its pages <see cref="SchedulerLimits.PreemptionsMax"/> times comes back with room to its end, and keeps it. Therefore everyone ends.
/// A stalled sequence (its reader does not read) takes part in nothing and is the first to lose its pages and its place among the running ones.
///
/// Owns the sequences' states and, through the <see cref="KvCacheManager"/>, their pages. One thread; <see cref="Step"/> and
/// <see cref="Retire"/> alternate. Invariant: a sequence is in the line, running or finished, and only a running one holds pages.
/// </summary>
internal sealed class Scheduler
{
    private readonly SchedulerLimits _limits;
    // Of those that are first, one after the other, and cannot start: how many are looked at in a step.
    private const int SkippedMax = 64;

    private readonly KvCacheManager _cache;
    private readonly TenantAccounts _accounts;
    private readonly StepSpeed _speed;
    private readonly List<Sequence> _waiting = [];  // in the order of Goes: of a tenant, not between tenants
    private readonly List<Sequence> _running = [];  // in the order of Goes
    private readonly List<Sequence> _visited = [];  // copy of _running while victims leave it
    private readonly List<Sequence> _arrived = [];
    private readonly List<Sequence> _skipped = [];  // first in the line in this step, and without room
    private readonly List<Sequence> _expired = [];
    private readonly ScheduledBatch _batch = new();
    private long _nextDeadline = long.MaxValue, _steps, _turns, _looks;
    private bool _stepOpen;

    public Scheduler(SchedulerLimits limits, KvCacheManager cache)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(limits.SequencesMax, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(limits.StepTokensMax, limits.SequencesMax);
        ArgumentOutOfRangeException.ThrowIfNegative(limits.HeadroomTokens);
        (_limits, _cache, _accounts, _speed) = (limits, cache, new(limits.TenantWeights), new(limits.StepTokensMax));
    }

    public IReadOnlyList<Sequence> Waiting => _waiting;

    /// <summary>First those that no longer lose their pages, then the others, each in the order in which they started.</summary>
    public IReadOnlyList<Sequence> Running => _running;

    internal TenantAccounts Accounts => _accounts;

    /// <summary>No sequence's deadline lies before this time.</summary>
    public long NextDeadline => _nextDeadline;

    /// <summary>Makes the plan of the next step. If it has chunks they are run and <see cref="Retire"/> is called before the next plan.</summary>
    public ScheduledBatch Step(ReadOnlySpan<SchedulerEvent> events, long now)
    {
        if (_stepOpen) throw new InvalidOperationException("The last plan has not been retired.");
        _batch.Clear();
        foreach (var e in events) Apply(e, now);
        EndExpired(now);
        EndHopelessArrivals(now);
        int prefillBudget = _limits.StepTokensMax - CountDecodes();
        Admit(prefillBudget, now);
        SharePrefill(prefillBudget);
        PlanRunning();
        _stepOpen = _batch.Chunks.Count > 0;
        if (_batch.TokenCount > _limits.StepTokensMax || _running.Count > _limits.SequencesMax)
            throw new InvalidOperationException($"A plan of {_batch.TokenCount} tokens for {_running.Count} sequences breaks {_limits}.");
        return _batch;
    }

    /// <summary>Enters what came of the plan: one outcome per chunk that samples, in their order. Returns those that ended by it.</summary>
    /// <param name="ticks">How long the step took; 0 = not measured.</param>
    public IReadOnlyList<Sequence> Retire(ReadOnlySpan<ChunkOutcome> outcomes, long ticks = 0)
    {
        if (!_stepOpen) throw new InvalidOperationException("There is no plan to retire.");
        _stepOpen = false;
        _batch.Finished.Clear();
        int next = 0, last = 0;
        foreach (var chunk in _batch.Chunks)
        {
            var sequence = chunk.Sequence;
            sequence.Processed += chunk.Count;
            last = Math.Max(last, sequence.Processed - 1);
            sequence.ProcessedMax = Math.Max(sequence.ProcessedMax, sequence.Processed);
            _cache.Prefixes?.Enter(
                sequence.Table, sequence.Prefix!, sequence.AllTokens, chunk.Start, sequence.Processed, sequence.PromptLength);
            _cache.Trim(sequence.Table, sequence.Processed);
            if (chunk.Samples) Enter(sequence, outcomes[next++]);
            else if (sequence.Processed == sequence.Length) End(sequence, FinishReason.Length);
        }
        if (next != outcomes.Length) throw new ArgumentException($"{outcomes.Length} outcomes for {next} chunks that sample.");
        _speed.Observe(_batch.TokenCount, last, ticks);
        return _batch.Finished;
    }

    private void Enter(Sequence sequence, in ChunkOutcome outcome)
    {
        if (outcome.Error is not null)
        {
            End(sequence, FinishReason.Error, outcome.Error);
            return;
        }
        sequence.Append(outcome.TokenId);
        sequence.Account.Charge(1);
        sequence.State = SequenceState.Decoding;
        if (outcome.Stops) End(sequence, FinishReason.Stop);
        else if (sequence.OutputCount == sequence.OutputTokensMax) End(sequence, FinishReason.Length);
    }

    private void Apply(in SchedulerEvent e, long now)
    {
        var sequence = e.Sequence;
        if (e.Kind == SchedulerEventKind.Submitted)
        {
            if (sequence.PositionsMax > _cache.SequenceTokensMax)
                throw new InvalidOperationException($"A sequence of {sequence.PositionsMax} positions can never have its pages.");
            sequence.Rank = now - sequence.Priority * (SeededBug.Is(17) ? TimeSpan.TicksPerDay : _limits.PriorityAhead);
            sequence.Account = _accounts.Enter(sequence.Tenant);
            _nextDeadline = Math.Min(_nextDeadline, sequence.Due);
            Insert(_waiting, sequence);
            _arrived.Add(sequence);
            return;
        }
        if (sequence.State == SequenceState.Finished && !SeededBug.Is(2)) return;
        if (e.Kind == SchedulerEventKind.Ended) End(sequence, e.Reason, e.Error);
        else sequence.Stalled = e.Kind == SchedulerEventKind.Stalled;
    }

    private void EndExpired(long now)
    {
        if (now < _nextDeadline) return;
        foreach (var sequence in _waiting)
            if (sequence.Due <= now) _expired.Add(sequence);
        foreach (var sequence in _running)
            if (sequence.Due <= now) _expired.Add(sequence);
        foreach (var sequence in _expired)
            End(sequence, sequence.Deadline <= now ? FinishReason.DeadlineExceeded : FinishReason.FirstTokenDeadlineExceeded);
        _expired.Clear();
        _nextDeadline = long.MaxValue;
        foreach (var sequence in _waiting) _nextDeadline = Math.Min(_nextDeadline, sequence.Due);
        foreach (var sequence in _running) _nextDeadline = Math.Min(_nextDeadline, sequence.Due);
    }

    private void EndHopelessArrivals(long now)
    {
        foreach (var sequence in _arrived)
            if (sequence.State == SequenceState.Waiting) EndIfHopeless(sequence, now);
        _arrived.Clear();
    }

    // What is certain: its tokens that nobody has computed take their time, even with the engine for itself. Half of the time that was measured is
    // granted; neither the others in the line nor the length of its answer are held against it, they may come to nothing.
    private bool EndIfHopeless(Sequence sequence, long now)
    {
        if (sequence.Started || sequence.Due == long.MaxValue || LeastTicks(sequence.ToGo) <= sequence.Due - now) return false;
        var hit = Prefix(sequence);
        int tokens = sequence.ToGo - (hit?.Length ?? 0);
        bool mayResume = !CanStart(sequence) || ComputedByAnother(sequence, hit) || OnDisk(sequence, hit) is not null;
        if (mayResume || LeastTicks(tokens) <= sequence.Due - now) return false;
        sequence.Estimate = new(tokens, TimeSpan.FromTicks((long)LeastTicks(tokens)), TimeSpan.FromTicks(sequence.Due - now));
        End(sequence, FinishReason.DeadlineUnreachable);
        return true;
    }

    private double LeastTicks(int tokens) => tokens * _speed.TicksPerToken / 2;

    private int CountDecodes()
    {
        int count = 0;
        foreach (var sequence in _running)
            if (sequence is { State: SequenceState.Decoding, Stalled: false }) count++;
        return count;
    }

    // Half of the budget to the shortest prompts, the rest in order. There are never more prompts than tokens, so the halves of two are not empty.
    private void SharePrefill(int budget)
    {
        foreach (var sequence in _running) sequence.Share = 0;
        int left = budget / 2, rest = budget - left;
        while (left > 0 && ShortestWithoutShare() is { } shortest)
        {
            shortest.Share = Math.Min(shortest.ToGo, left);
            left -= shortest.Share;
        }
        rest += left;
        foreach (var sequence in _running)
        {
            if (!Prefills(sequence)) continue;
            int more = Math.Min(sequence.ToGo - sequence.Share, rest);
            sequence.Share += more;
            rest -= more;
        }
    }

    private Sequence? ShortestWithoutShare()
    {
        Sequence? shortest = null;
        foreach (var sequence in _running)
            if (Prefills(sequence) && sequence.Share == 0 && sequence.ToGo < (shortest?.ToGo ?? int.MaxValue)) shortest = sequence;
        return shortest;
    }

    private static bool Prefills(Sequence sequence) => sequence is { State: SequenceState.Prefilling, Stalled: false };

    // Whether SharePrefill would give a prompt of so many tokens, the last to start, any of them.
    private bool HasTokensFor(int tokens, int budget)
    {
        long all = 0, shorter = 0;
        foreach (var sequence in _running)
        {
            if (!Prefills(sequence)) continue;
            all += sequence.ToGo;
            if (sequence.ToGo <= tokens) shorter += sequence.ToGo;
        }
        return shorter < budget / 2 || all < budget;
    }

    // In their order, so that whoever loses its pages to one ahead of it has not been planned yet.
    private void PlanRunning()
    {
        _visited.Clear();
        _visited.AddRange(_running);
        foreach (var sequence in _visited)
        {
            if (sequence.Stalled || sequence.State == SequenceState.Waiting) continue;
            int count = sequence.State == SequenceState.Decoding ? 1 : sequence.Share;
            if (count > 0 && MakeRoom(sequence, sequence.Processed + count)) Plan(sequence, count);
        }
    }

    // Takes pages from stalled sequences, then from the last, until there is room; false if that was the sequence itself.
    private bool MakeRoom(Sequence sequence, int length)
    {
        while (!_cache.TryExtend(sequence.Table, length))
        {
            if (_cache.Prefixes?.Reclaim() == true || LetGoOfTwins() || PreemptStalled() || _cache.Prefixes?.Tier?.AbortOne() == true) continue;
            var victim = _running[^1];
            if ((_running.Count == 1 || KeepsPages(victim)) && _cache.Prefixes?.Reclaim(pinned: true) == true) continue;
            if (_running.Count == 1) throw new InvalidOperationException($"A sequence alone has no room for {length} positions.");
            Preempt(victim);
            if (victim == sequence) return false;
        }
        return true;
    }

    // A block that two sequences computed takes pages twice as long as one of them stands on the other's. It can enter its own later.
    private bool LetGoOfTwins()
    {
        bool any = false;
        foreach (var sequence in _running)
        {
            if (sequence.Prefix is not { Apart: true } path) continue;
            _cache.Prefixes!.StandNowhere(path);
            any = true;
        }
        return any;
    }

    private void Admit(int budget, long now)
    {
        _skipped.Clear();
        _steps++;
        while (FirstInLine() is { } sequence)
        {
            if (EndIfHopeless(sequence, now)) continue;
            if (_running.Count == _limits.SequencesMax && !PreemptStalled()) return;
            if (TryStart(sequence, budget, out bool beside)) continue;
            if (sequence.Started || _skipped.Count == SkippedMax) return;
            Skip(sequence, beside);
        }
    }

    private bool TryStart(Sequence sequence, int budget, out bool beside)
    {
        beside = false;
        if (!MayOvertake(sequence)) return false;
        var hit = Prefix(sequence);
        var onDisk = OnDisk(sequence, hit);
        int length = Math.Max(hit?.Length ?? 0, onDisk?.Length ?? 0);
        beside = ComputedByAnother(sequence, hit) || (!sequence.Started && !HasTokensFor(sequence.ToGo - length, budget));
        if (beside || (onDisk is not null && _cache.Prefixes!.Tier!.MustWaitFor(onDisk)) || !MakeRoomFor(sequence, ref hit, budget)) return false;
        if (onDisk is null) Start(sequence, hit);
        else _cache.Prefixes!.Tier!.Begin(sequence.Prefix!, sequence.AllTokens, onDisk, hit?.Length ?? 0);
        return true;
    }

    // beside: it waits for tokens or for a prefix, not for pages. As long as a prompt is being computed that ran before the first went past, what
    // the others do they do beside that prompt, and the waiting one loses nothing.
    private void Skip(Sequence sequence, bool beside)
    {
        if (sequence.SkippedAt == 0) sequence.SkippedAt = _turns;
        sequence.Yields = false;
        foreach (var running in _running) sequence.Yields |= beside && Prefills(running) && running.Turn <= sequence.SkippedAt;
        sequence.TriedIn = _steps;
        _skipped.Add(sequence);
    }

    // Those who have started, then of each tenant the first that rests neither by itself nor because it has just been tried.
    private Sequence? FirstInLine()
    {
        _looks++;
        Sequence? first = null;
        foreach (var sequence in _waiting)
        {
            if (!CanStart(sequence) || sequence.TriedIn == _steps) continue;
            if (sequence.Started) return sequence;
            var account = sequence.Account;
            if (account.Seen == _looks) continue;
            account.Seen = _looks;
            if (first is null || account.Had < first.Account.Had) first = sequence;
        }
        return first;
    }

    // What keeps a sequence from starting that is its own affair: others do not wait for it.
    private static bool CanStart(Sequence sequence) => !sequence.Stalled && sequence.Prefix?.Restore is not { IsReading: true };

    // Nobody is overtaken by more than it asks for itself.
    private bool MayOvertake(Sequence candidate)
    {
        foreach (var sequence in _skipped)
            if (!sequence.Yields && sequence.Bypassed + candidate.PositionsMax > sequence.PositionsMax) return false;
        return true;
    }

    private PrefixCache.Snapshot? Prefix(Sequence sequence) =>
        _cache.Prefixes?.Find(sequence.Prefix!, sequence.AllTokens, sequence.Length - 1);

    // Gives up kept prefixes, then stalled sequences, then, for a sequence that would have all pages for itself, even the prefix it could resume
    // from, which takes a page more than computing it again. One that overtakes takes only what is free.
    private bool MakeRoomFor(Sequence candidate, ref PrefixCache.Snapshot? hit, int budget)
    {
        while (!HasRoomFor(candidate, hit, budget))
        {
            if (_skipped.Count > 0) return false;
            if (_cache.Prefixes?.Reclaim(except: hit) == true) continue;
            if (PreemptStalled())
            {
                hit = Prefix(candidate);  // what is kept of the preempted may have taken its place
                continue;
            }
            if (_running.Count > 0) return false;
            if (_cache.Prefixes?.Reclaim(except: hit, pinned: true) == true) continue;
            if (hit is null) return false;
            // Once more from the start: without it as an exception, it too gives way.
            hit = null;
        }
        return true;
    }

    private void Start(Sequence sequence, PrefixCache.Snapshot? hit)
    {
        int cached = hit?.Length ?? 0;
        if (hit is not null) _cache.Prefixes!.Resume(hit, sequence.Table, sequence.Prefix!);
        _waiting.Remove(sequence);
        sequence.State = SequenceState.Prefilling;
        sequence.Processed = cached;
        if (!sequence.Started)
        {
            foreach (var skipped in _skipped)
                if (!skipped.Yields) skipped.Bypassed += sequence.PositionsMax;
            sequence.Turn = ++_turns;
            sequence.CachedTokens = cached;
            sequence.DiskTokens = sequence.Prefix?.Restore is { } r ? Math.Max(0, Math.Min(cached, r.Length) - r.Had) : 0;
            _accounts.Start(sequence.Account, sequence.PromptLength - cached);
            _batch.Started.Add(sequence);
        }
        Insert(_running, sequence);
    }

    // A running prompt that begins alike is on its way to a prefix at least one block longer than what is kept: asks it for a snapshot where
    // the two part, and lets it go ahead, so that the common part is computed once.
    private bool ComputedByAnother(Sequence candidate, PrefixCache.Snapshot? hit)
    {
        if (_cache.Prefixes is null) return false;
        int kept = hit?.Length ?? 0;
        foreach (var running in _running)
        {
            if (running.State != SequenceState.Prefilling || running.Stalled || running.Prefix!.Lost) continue;
            if (running.Prefix.Root != candidate.Prefix!.Root) continue;
            int common = running.AllTokens.Span.CommonPrefixLength(candidate.AllTokens.Span[..^1]);
            if (common < kept + _cache.Prefixes.BlockTokens || running.Processed >= common) continue;
            if (!running.Prefix.Wanted.Contains(common)) running.Prefix.Wanted.Add(common);
            return true;
        }
        return false;
    }

    // A prefix that is worth reading and was not tried yet.
    private KvChain? OnDisk(Sequence sequence, PrefixCache.Snapshot? hit)
    {
        if (_cache.Prefixes?.Tier is not { } tier || sequence.Prefix!.Restore is not null) return null;
        var chain = tier.Find(sequence.Prefix, sequence.AllTokens, sequence.Length - 1);
        return chain is not null && chain.Length >= (hit?.Length ?? 0) + tier.WorthTokens ? chain : null;
    }

    // Pages for all its tokens and some growth, after what the running ones still need for theirs; of kinds with limited retention, what the
    // first step needs. A hit brings the pages of its whole blocks, and takes copies of those it would write into.
    private bool HasRoomFor(Sequence candidate, PrefixCache.Snapshot? hit, int budget)
    {
        int firstStepEnd = Math.Min(candidate.Length, (hit?.Length ?? 0) + budget);
        for (int kind = 0; kind < _cache.Pools.Count; kind++)
        {
            var pool = _cache.Pools[kind];
            int copies = hit is null ? 0 : _cache.Prefixes!.CopiesNeeded(hit, kind);
            int free = pool.FreeCount - copies + (SeededBug.Is(6) ? pool.KeptCount : 0);
            if (pool.Spec.Retention == KvRetention.All)
            {
                free -= pool.Spec.PagesFor(Horizon(candidate)) - pool.Spec.PagesFor(hit?.Length ?? 0);
                foreach (var sequence in _running) free -= _cache.PagesMissing(sequence.Table, kind, Horizon(sequence));
            }
            else
            {
                free -= pool.Spec.PagesBetween(hit?.Length ?? 0, firstStepEnd);
            }
            if (free < 0) return false;
        }
        return true;
    }

    private int Horizon(Sequence sequence) => KeepsPages(sequence)
        ? sequence.PositionsMax
        : (int)Math.Min((long)sequence.Length + _limits.HeadroomTokens, sequence.PositionsMax);

    private bool KeepsPages(Sequence sequence) => sequence.Preemptions >= _limits.PreemptionsMax;

    private void Plan(Sequence sequence, int count)
    {
        _cache.Prefixes?.Prepare(
            sequence.Table, sequence.Prefix!, sequence.Processed, sequence.Processed + count, sequence.PromptLength, spare: _running.Count);
        bool samples = sequence.OutputTokensMax > 0 && sequence.Processed + count == sequence.Length;
        _batch.Chunks.Add(new(sequence, sequence.Processed, count, samples));
        _batch.TokenCount += count;
    }

    private bool PreemptStalled()
    {
        for (int i = _running.Count - 1; i >= 0; i--)
        {
            if (!_running[i].Stalled) continue;
            Preempt(_running[i]);
            return true;
        }
        return false;
    }

    private void Preempt(Sequence sequence)
    {
        // With a disk its state may come back from there.
        if (_cache.Prefixes?.Tier is not null)
            _cache.Prefixes.EnterEnd(sequence.Table, sequence.Prefix!, sequence.AllTokens, sequence.Processed);
        Release(sequence);
        sequence.State = SequenceState.Waiting;
        if (!sequence.Stalled) sequence.Preemptions++;
        Insert(_waiting, sequence);
        _batch.Preempted.Add(sequence);
    }

    private void End(Sequence sequence, FinishReason reason, string? error = null)
    {
        // What was computed stays for a follow-up, also when the client went away; not when the sequence's numbers are in doubt.
        if (reason != FinishReason.Error)
            _cache.Prefixes?.EnterEnd(sequence.Table, sequence.Prefix!, sequence.AllTokens, sequence.Processed);
        Release(sequence);
        if (sequence.Started) sequence.Account.Charge(-Math.Max(0, sequence.PromptLength - Math.Max(sequence.CachedTokens, sequence.ProcessedMax)));
        _accounts.Leave(sequence.Account, sequence.Started);
        sequence.State = SequenceState.Finished;
        (sequence.Finish, sequence.Error) = (reason, error);
        _batch.Finished.Add(sequence);
    }

    private void Release(Sequence sequence)
    {
        bool found = (sequence.State == SequenceState.Waiting ? _waiting : _running).Remove(sequence);
        if (!found) throw new InvalidOperationException($"Sequence {sequence.Arrival} is {sequence.State} but not in its list.");
        if (sequence.Prefix is not null) _cache.Prefixes?.Leave(sequence.Prefix);
        if (!SeededBug.Is(1) || sequence.State != SequenceState.Prefilling) _cache.Free(sequence.Table);
        sequence.Processed = 0;
    }

    private void Insert(List<Sequence> line, Sequence sequence)
    {
        int at = line.Count;
        while (at > 0 && Goes(sequence, line[at - 1])) at--;
        line.Insert(at, sequence);
    }

    // A total order: whether one goes ahead of the other, if they are of one tenant or have started.
    private bool Goes(Sequence one, Sequence other)
    {
        if (KeepsPages(one) != KeepsPages(other)) return KeepsPages(one);
        if (one.Turn != other.Turn) return one.Turn < other.Turn;
        if (one.Rank != other.Rank) return one.Rank < other.Rank;
        return one.Arrival < other.Arrival;
    }
}

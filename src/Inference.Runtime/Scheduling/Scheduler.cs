using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;

namespace Inference.Runtime.Scheduling;

/// <param name="SequencesMax">Most sequences that hold pages.</param>
/// <param name="StepTokensMax">Most tokens of one step; at least <paramref name="SequencesMax"/>.</param>
/// <param name="HeadroomTokens">A sequence is admitted only if it and every running one could grow by this much (or to its end, if that is
/// nearer) with the pages that are free: less means fuller steps and more preemptions.</param>
internal sealed record SchedulerLimits(int SequencesMax, int StepTokensMax, int HeadroomTokens = KvStateSpec.BlockTokens);

/// <summary>
/// Who runs in the next step, with how many tokens, and who loses its pages when they run out. A pure state machine: events and a time in,
/// a plan out. It never reads a clock, waits, locks, or looks at a token's value, and the same calls always give the same plans.
///
/// Continuous batching with chunked prefill: every sequence that decodes is in every step; prompts share the rest of the token budget,
/// oldest first, so a long prompt delays no decode by more than one step of <see cref="SchedulerLimits.StepTokensMax"/> tokens. Admission is
/// first come, first served, and nobody overtakes. When pages run out the youngest running sequence goes back to its place in the line and
/// later processes its tokens again; the oldest always gets on, therefore everyone ends. A stalled sequence (its reader does not read) takes
/// part in nothing and is the first to lose its pages and its place among the running ones.
///
/// Owns the sequences' states and, through the <see cref="KvCacheManager"/>, their pages. One thread; <see cref="Step"/> and
/// <see cref="Retire"/> alternate. Invariant: a sequence is in the queue, running or finished, and only a running one holds pages.
/// </summary>
internal sealed class Scheduler
{
    private readonly SchedulerLimits _limits;
    private readonly KvCacheManager _cache;
    private readonly List<Sequence> _waiting = [];  // by arrival
    private readonly List<Sequence> _running = [];  // by arrival
    private readonly List<Sequence> _visited = [];  // copy of _running while victims leave it
    private readonly List<Sequence> _expired = [];
    private readonly ScheduledBatch _batch = new();
    private long _nextDeadline = long.MaxValue;
    private bool _stepOpen;

    public Scheduler(SchedulerLimits limits, KvCacheManager cache)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(limits.SequencesMax, 1);
        ArgumentOutOfRangeException.ThrowIfLessThan(limits.StepTokensMax, limits.SequencesMax);
        ArgumentOutOfRangeException.ThrowIfNegative(limits.HeadroomTokens);
        (_limits, _cache) = (limits, cache);
    }

    public IReadOnlyList<Sequence> Waiting => _waiting;
    public IReadOnlyList<Sequence> Running => _running;

    /// <summary>No sequence's deadline lies before this time.</summary>
    public long NextDeadline => _nextDeadline;

    /// <summary>Makes the plan of the next step. If it has chunks they are run and <see cref="Retire"/> is called before the next plan.</summary>
    public ScheduledBatch Step(ReadOnlySpan<SchedulerEvent> events, long now)
    {
        if (_stepOpen) throw new InvalidOperationException("The last plan has not been retired.");
        _batch.Clear();
        foreach (var e in events) Apply(e);
        EndExpired(now);
        int prefillBudget = PlanRunning();
        Admit(prefillBudget);
        _stepOpen = _batch.Chunks.Count > 0;
        if (_batch.TokenCount > _limits.StepTokensMax || _running.Count > _limits.SequencesMax)
            throw new InvalidOperationException($"A plan of {_batch.TokenCount} tokens for {_running.Count} sequences breaks {_limits}.");
        return _batch;
    }

    /// <summary>Enters what came of the plan: one outcome per chunk that samples, in their order. Returns those that ended by it.</summary>
    public IReadOnlyList<Sequence> Retire(ReadOnlySpan<ChunkOutcome> outcomes)
    {
        if (!_stepOpen) throw new InvalidOperationException("There is no plan to retire.");
        _stepOpen = false;
        _batch.Finished.Clear();
        int next = 0;
        foreach (var chunk in _batch.Chunks)
        {
            var sequence = chunk.Sequence;
            sequence.Processed += chunk.Count;
            sequence.ProcessedMax = Math.Max(sequence.ProcessedMax, sequence.Processed);
            _cache.Prefixes?.Enter(
                sequence.Table, sequence.Prefix!, sequence.AllTokens, chunk.Start, sequence.Processed, sequence.PromptLength);
            _cache.Trim(sequence.Table, sequence.Processed);
            if (chunk.Samples) Enter(sequence, outcomes[next++]);
            else if (sequence.Processed == sequence.Length) End(sequence, FinishReason.Length);
        }
        if (next != outcomes.Length) throw new ArgumentException($"{outcomes.Length} outcomes for {next} chunks that sample.");
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
        sequence.State = SequenceState.Decoding;
        if (outcome.Stops) End(sequence, FinishReason.Stop);
        else if (sequence.OutputCount == sequence.OutputTokensMax) End(sequence, FinishReason.Length);
    }

    private void Apply(in SchedulerEvent e)
    {
        var sequence = e.Sequence;
        if (e.Kind == SchedulerEventKind.Submitted)
        {
            if (sequence.PositionsMax > _cache.SequenceTokensMax)
                throw new InvalidOperationException($"A sequence of {sequence.PositionsMax} positions can never have its pages.");
            _nextDeadline = Math.Min(_nextDeadline, sequence.Deadline);
            Insert(_waiting, sequence);
            return;
        }
        if (sequence.State == SequenceState.Finished) return;
        if (e.Kind == SchedulerEventKind.Ended) End(sequence, e.Reason, e.Error);
        else sequence.Stalled = e.Kind == SchedulerEventKind.Stalled;
    }

    private void EndExpired(long now)
    {
        if (now < _nextDeadline) return;
        foreach (var sequence in _waiting)
            if (sequence.Deadline <= now) _expired.Add(sequence);
        foreach (var sequence in _running)
            if (sequence.Deadline <= now) _expired.Add(sequence);
        foreach (var sequence in _expired) End(sequence, FinishReason.DeadlineExceeded);
        _expired.Clear();
        _nextDeadline = long.MaxValue;
        foreach (var sequence in _waiting) _nextDeadline = Math.Min(_nextDeadline, sequence.Deadline);
        foreach (var sequence in _running) _nextDeadline = Math.Min(_nextDeadline, sequence.Deadline);
    }

    // Oldest first, so that whoever loses its pages to one ahead of it has not been planned yet. Returns the budget left for new prompts.
    private int PlanRunning()
    {
        int prefillBudget = _limits.StepTokensMax;
        _visited.Clear();
        _visited.AddRange(_running);
        foreach (var sequence in _visited)
            if (sequence is { State: SequenceState.Decoding, Stalled: false }) prefillBudget--;
        foreach (var sequence in _visited)
        {
            if (sequence.Stalled || sequence.State == SequenceState.Waiting) continue;
            bool decodes = sequence.State == SequenceState.Decoding;
            int count = decodes ? 1 : Math.Min(sequence.Length - sequence.Processed, prefillBudget);
            if (count == 0 || !MakeRoom(sequence, sequence.Processed + count)) continue;
            Plan(sequence, count);
            if (!decodes) prefillBudget -= count;
        }
        return prefillBudget;
    }

    // Takes pages from stalled sequences, then from the youngest, until there is room; false if that was the sequence itself.
    private bool MakeRoom(Sequence sequence, int length)
    {
        while (!_cache.TryExtend(sequence.Table, length))
        {
            if (_cache.Prefixes?.Reclaim() == true || PreemptStalled() || _cache.Prefixes?.Tier?.AbortOne() == true) continue;
            var victim = _running[^1];
            if (_running.Count == 1 && _cache.Prefixes?.Reclaim(pinned: true) == true) continue;
            if (_running.Count == 1) throw new InvalidOperationException($"A sequence alone has no room for {length} positions.");
            Preempt(victim);
            if (victim == sequence) return false;
        }
        return true;
    }

    private void Admit(int budget)
    {
        while (budget > 0 && FirstEligible() is { } sequence)
        {
            if (_running.Count == _limits.SequencesMax && !PreemptStalled()) return;
            var hit = _cache.Prefixes?.Find(sequence.Prefix!, sequence.AllTokens, sequence.Length - 1);
            if (ComputedByAnother(sequence, hit)) return;
            var onDisk = OnDisk(sequence, hit);
            if (onDisk is not null && _cache.Prefixes!.Tier!.MustWaitFor(onDisk)) return;
            if (!MakeRoomFor(sequence, ref hit, budget)) return;
            if (onDisk is null) budget -= Admit(sequence, hit, budget);
            else _cache.Prefixes!.Tier!.Begin(sequence.Prefix!, sequence.AllTokens, onDisk, hit?.Length ?? 0);
        }
    }

    // Gives up kept prefixes, then stalled sequences, then, for a sequence that would have all pages for itself, even the prefix it could resume
    // from, which takes a page more than computing it again.
    private bool MakeRoomFor(Sequence candidate, ref PrefixCache.Snapshot? hit, int budget)
    {
        while (!HasRoomFor(candidate, hit, budget))
        {
            if (_cache.Prefixes?.Reclaim(except: hit) == true || PreemptStalled()) continue;
            if (_running.Count > 0) return false;
            if (_cache.Prefixes?.Reclaim(except: hit, pinned: true) == true) continue;
            if (hit is null) return false;
            // Once more from the start: without it as an exception, it too gives way.
            hit = null;
        }
        return true;
    }

    // Returns the tokens planned.
    private int Admit(Sequence sequence, PrefixCache.Snapshot? hit, int budget)
    {
        if (hit is not null) _cache.Prefixes!.Resume(hit, sequence.Table, sequence.Prefix!);
        int cached = hit?.Length ?? 0, count = Math.Min(sequence.Length - cached, budget);
        if (!_cache.TryExtend(sequence.Table, cached + count)) throw new InvalidOperationException("Room was counted and is not there.");
        _waiting.Remove(sequence);
        Insert(_running, sequence);
        sequence.State = SequenceState.Prefilling;
        sequence.Processed = cached;
        if (!sequence.Started)
        {
            sequence.CachedTokens = cached;
            sequence.DiskTokens = sequence.Prefix?.Restore is { } r ? Math.Max(0, Math.Min(cached, r.Length) - r.Had) : 0;
            _batch.Started.Add(sequence);
        }
        sequence.Started = true;
        Plan(sequence, count);
        return count;
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

    private Sequence? FirstEligible()
    {
        foreach (var sequence in _waiting)
            if (!sequence.Stalled && sequence.Prefix?.Restore is not { IsReading: true }) return sequence;
        return null;
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
            int free = pool.FreeCount - copies;
            if (pool.Spec.Retention == KvRetention.All)
            {
                free -= pool.Spec.PagesFor(Horizon(candidate)) - pool.Spec.PagesFor(hit?.Length ?? 0);
                foreach (var sequence in _running) free -= _cache.PagesMissing(sequence.Table, kind, Horizon(sequence));
            }
            else
            {
                int have = hit is null ? 0 : hit.Pages[kind].Length + pool.Spec.FirstPageNeeded(hit.Length);
                free -= Math.Max(0, pool.Spec.PagesFor(firstStepEnd) - have);
            }
            if (free < 0) return false;
        }
        return true;
    }

    private int Horizon(Sequence sequence) => (int)Math.Min((long)sequence.Length + _limits.HeadroomTokens, sequence.PositionsMax);

    private void Plan(Sequence sequence, int count)
    {
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
        sequence.Preemptions++;
        Insert(_waiting, sequence);
        _batch.Preempted.Add(sequence);
    }

    private void End(Sequence sequence, FinishReason reason, string? error = null)
    {
        // What was computed stays for a follow-up, also when the client went away; not when the sequence's numbers are in doubt.
        if (reason != FinishReason.Error)
            _cache.Prefixes?.EnterEnd(sequence.Table, sequence.Prefix!, sequence.AllTokens, sequence.Processed);
        Release(sequence);
        sequence.State = SequenceState.Finished;
        (sequence.Finish, sequence.Error) = (reason, error);
        _batch.Finished.Add(sequence);
    }

    private void Release(Sequence sequence)
    {
        bool found = (sequence.State == SequenceState.Waiting ? _waiting : _running).Remove(sequence);
        if (!found) throw new InvalidOperationException($"Sequence {sequence.Arrival} is {sequence.State} but not in its list.");
        if (sequence.Prefix is not null) _cache.Prefixes?.Leave(sequence.Prefix);
        _cache.Free(sequence.Table);
        sequence.Processed = 0;
    }

    private static void Insert(List<Sequence> line, Sequence sequence)
    {
        int at = line.Count;
        while (at > 0 && line[at - 1].Arrival > sequence.Arrival) at--;
        line.Insert(at, sequence);
    }
}

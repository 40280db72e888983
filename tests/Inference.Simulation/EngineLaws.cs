using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Inference.Testing;
using Inference.Testing.KvCache;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Simulation;

/// <summary>
/// What must be true of an engine between two steps, and of its clients: looked at from outside, with the requests, the clock and the hash model
/// as the only sources of what is right. Also poisons the free pages. One for each life of an engine.
/// </summary>
internal sealed class EngineLaws
{
    private static readonly int Nan = BitConverter.SingleToInt32Bits(float.NaN);
    private const int IdleStepsMax = 4, DiskOperationsMax = 400;
    private readonly Laws _laws;
    private readonly Trace _trace;
    private readonly InferenceEngine _engine;
    private readonly HashModel _model;
    private readonly VirtualTime _time;
    private readonly SimulatedDisk? _disk;
    private readonly bool _faults;
    private readonly PageLedger _ledger;
    private readonly Dictionary<long, SimulatedClient> _byArrival = [];
    private readonly List<Sequence> _live = [];
    private readonly bool[][] _poisoned;
    private readonly Dictionary<PrefixCache.Snapshot, int> _unpinned = [];  // before the step, with their uses
    private readonly List<PrefixCache.Snapshot> _pinned = [];
    private readonly Dictionary<string, PrefixHash> _roots = [];
    private readonly ProgressWatch _watch = new(TimeSpan.FromMinutes(1));
    private TimeSpan _stepBegan, _until = TimeSpan.MaxValue, _lastLeft = TimeSpan.MinValue, _longestWait = TimeSpan.FromSeconds(1);
    private long _steps, _modelSteps, _finished;
    private int _queuedBefore, _idle, _diskOperations;

    public EngineLaws(Laws laws, Trace trace, InferenceEngine engine, HashModel model, VirtualTime time, SimulatedDisk? disk, bool faults)
    {
        (_laws, _trace, _engine, _model, _time, _disk, _faults) = (laws, trace, engine, model, time, disk, faults);
        _ledger = new(engine.Cache, laws);
        _poisoned = [.. engine.Cache.Pools.Select(p => new bool[p.PageCount])];
    }

    public void Accepted(SimulatedClient client) => _byArrival.Add(client.Arrival, client);

    public void Refused(RequestRejectedException e, bool fits, GenerationRequest request)
    {
        if (e.Reason == RejectionReason.InvalidRequest)
        {
            _laws.Check(Law.UnservableRefused, !fits && e.Field is "prompt" or "stopping.max_tokens", $"{request.PromptTokenIds.Count}+{request.OutputTokensMax} tokens were refused: {e.Message}");
            return;
        }
        _laws.Check(Law.UnservableRefused, fits && e.Reason == RejectionReason.Overloaded, $"{request.PromptTokenIds.Count}+{request.OutputTokensMax} tokens were refused as {e.Reason}");
        bool full = _engine.Queued == _engine.Options.QueueMax || e.Message.Contains("of this tenant", StringComparison.Ordinal);
        _laws.Check(Law.CountersAgree, full, $"a request was refused with {_engine.Queued} waiting: {e.Message}");
        _laws.Check(Law.RetryAfterHonest, e.RetryAfter > TimeSpan.Zero && e.RetryAfter <= _longestWait, $"come back after {e.RetryAfter}, and a place never took longer than {_longestWait}");
    }

    // ---- steps ----

    public void BeforeStep(List<SimulatedClient> clients, int diskOperations)
    {
        CheckPoison();
        foreach (var client in clients) client.WasCancelled = client.Cancelled && client.Stream.End is null;
        (_stepBegan, _queuedBefore) = (_time.Elapsed, _engine.Queued);
        _modelSteps = _engine.Stats.Steps;
        _finished = Finished();
        _diskOperations += diskOperations;
        _pinned.Clear();
        _unpinned.Clear();
        if (_engine.Cache.Prefixes is not { PinnedCount: > 0 } prefixes) return;
        foreach (var snapshot in prefixes.Snapshots)
        {
            if (snapshot.Pins > 0) _pinned.Add(snapshot);
            else _unpinned.Add(snapshot, snapshot.Uses);
        }
    }

    public void AfterStep(List<SimulatedClient> clients)
    {
        _steps++;
        _live.Clear();
        _live.AddRange(_engine.Scheduler.Running);
        _live.AddRange(_engine.Scheduler.Waiting);
        _ledger.Check(_live);
        if (_steps % 4 == 0) _ledger.CheckPrefixes(_live);
        if (_steps % 8 == 0) CheckSnapshot();
        CheckPins();
        CheckSequences();
        CheckClients(clients);
        CheckCounters();
        CheckDisk();
        CheckProgress();
        Poison();
    }

    private void CheckSequences()
    {
        foreach (var s in _live)
        {
            _trace.Mix(s.Arrival);
            _trace.Mix(s.Processed);
            if (_trace.KeepsLines) _trace.Line($"{_time.Elapsed.TotalMilliseconds} ms, step {_steps}: request {s.Arrival} {s.State}{(s.Stalled ? ", stalled" : "")}, {s.Processed} of {s.Length} ({s.OutputCount}/{s.OutputTokensMax}), cached {s.CachedTokens}, preempted {s.Preemptions}");
            var client = _byArrival[s.Arrival];
            _laws.Check(Law.EndsInTime, client.Deadline > _stepBegan && (s.OutputCount > 0 || client.FirstTokenDeadline > _stepBegan), $"request {s.Arrival} lives at {_stepBegan} and its deadline was {client.Deadline}");
            _laws.Check(Law.EndsInTime, s.OutputCount <= client.Stream.Request.OutputTokensMax, $"request {s.Arrival} has {s.OutputCount} tokens");
            _laws.Check(Law.CancelFrees, client.WasCancelled, !client.WasCancelled, "a cancelled request outlived a step");
            _laws.Check(Law.PreemptionBounded, s.Preemptions > 0, s.Preemptions <= 3, "a request lost its pages once too often");
            // Only who runs, or is being read for, holds anything: what a waiting one kept, the first in the line could lack for ever.
            if (s is { State: SequenceState.Waiting, Prefix: { } waiting }) _laws.Check(Law.TableCovers, waiting.Node is null || waiting.Restore is { IsReading: true }, $"request {s.Arrival} waits and holds blocks");
            if (s.Prefix is { } path) _laws.Check(Law.PrefixContent, path.Root == Root(client.Stream.Request.Tenant), $"request {s.Arrival} of '{client.Stream.Request.Tenant}' stands on another tenant's root");
        }
    }

    private void CheckClients(List<SimulatedClient> clients)
    {
        foreach (var client in clients)
        {
            int events = client.Stream.Handle.Events.Count;
            _laws.Check(Law.OutboxBounded, events > 0, events <= _engine.Options.OutboxMax + 2, "an outbox grew beyond its limit");
            if (!client.WasCancelled) continue;
            // Cancelled before this step: the end is in the outbox.
            while (client.Stream.TryRead()) { }
            _laws.Check(Law.CancelFrees, client.Stream.End is not null, $"request {client.Arrival} was cancelled and has no end");
        }
    }

    private void CheckCounters()
    {
        int waiting = 0;
        long tokens = 0;
        foreach (var s in _live)
        {
            if (s.Started) continue;
            waiting++;
            tokens += s.PromptLength;
        }
        _laws.Check(Law.CountersAgree, _engine.Queued == waiting && _engine.Gate.WaitingTokens == tokens, $"the gate counts {_engine.Queued} requests and {_engine.Gate.WaitingTokens} tokens, {waiting} and {tokens} wait");
        var stats = _engine.Stats;
        _laws.Check(Law.CountersAgree, stats.Running + stats.Waiting == _live.Count, $"the statistics are not those of this step");
        _laws.Check(Law.CountersAgree, stats.Accepted == _live.Count + Finished(), $"{stats.Accepted} accepted are not {_live.Count} live and {Finished()} ended");
        foreach (var s in _live)
            if (_engine.Scheduler.Accounts.Find(s.Tenant) is not { } account || account.Live != _live.Count(o => o.Tenant == s.Tenant) || account.Waiting != _live.Count(o => o.Tenant == s.Tenant && !o.Started))
                _laws.Check(Law.CountersAgree, false, $"the account of '{s.Tenant}' is miscounted");
        if (_engine.Queued >= _queuedBefore) return;
        if (_lastLeft != TimeSpan.MinValue && _time.Elapsed - _lastLeft > _longestWait) _longestWait = _time.Elapsed - _lastLeft;
        _lastLeft = _stepBegan;
    }

    private void CheckDisk()
    {
        if (_disk is null) return;
        var counts = _engine.Cache.Prefixes!.Tier!.Counts;
        _laws.Check(Law.MemoryBounded, counts.StagingBytes <= 256L << 20, $"{counts.StagingBytes} bytes are staged");
        if (!_faults) _laws.Check(Law.MemoryBounded, counts.Store.Bytes <= counts.Store.BytesMax && _disk.Bytes() <= counts.Store.BytesMax, $"{counts.Store.Bytes} bytes on disk, {_disk.Bytes()} in truth, {counts.Store.BytesMax} at most");
        long ended = counts.ReadsDone + counts.ReadsFailed + counts.ReadsCancelled;
        _laws.Check(Law.OperationsEndOnce, counts.ReadsBegun > 0, ended <= counts.ReadsBegun, "more reads ended than began");
    }

    // Nobody who could run waits for ever: within some steps the model runs or someone ends, or the disk has something to do first.
    private void CheckProgress()
    {
        bool could = false, reads = false;
        foreach (var s in _live)
        {
            bool reading = s.Prefix?.Restore is { IsReading: true };
            could |= !s.Stalled;
            reads |= reading;
        }
        bool moved = _engine.Stats.Steps > _modelSteps || Finished() > _finished;
        if (moved || !could) (_idle, _diskOperations) = (0, 0);
        else if (!reads) _idle++;
        _laws.Check(Law.Progress, could, _idle <= IdleStepsMax && _diskOperations <= DiskOperationsMax, "somebody could run and nobody does");
        var stuck = _watch.StuckFor(_engine.Stats, _engine.Queued, _time.Elapsed);
        _laws.Check(Law.Progress, moved, stuck is null, "an engine that gets on is said to be stuck");
        if (_until != TimeSpan.MaxValue && _stepBegan >= _until)
            _laws.Check(Law.DrainHolds, _live.Count == 0, $"{_live.Count} requests live after the drain's limit");
    }

    /// <summary>No step is made for an hour. Whoever watches from outside must see it, if there is work.</summary>
    public void Hang()
    {
        bool work = _engine.Queued > 0 || _engine.Stats.Running + _engine.Stats.Waiting > _engine.Stats.Stalled;
        _watch.StuckFor(_engine.Stats, _engine.Queued, _time.Elapsed);
        _time.Advance(TimeSpan.FromHours(1));
        _laws.Check(Law.Progress, _watch.StuckFor(_engine.Stats, _engine.Queued, _time.Elapsed) is not null == work, $"an engine that does not get on, with {_engine.Queued} requests in the queue, is not seen to be stuck, or one without work is");
    }

    private long Finished()
    {
        long finished = 0;
        foreach (long count in _engine.Stats.Finished) finished += count;
        return finished;
    }

    // ---- pages and prefixes ----

    // Every row of a kept prefix is what its tokens say, and every block is named by the tenant and the tokens.
    private void CheckSnapshot()
    {
        if (_engine.Cache.Prefixes is not { SnapshotCount: > 0 } prefixes) return;
        var snapshot = prefixes.Snapshots.ElementAt((int)(_steps / 8 % prefixes.SnapshotCount));
        var chain = snapshot.Node.FromRoot();
        var root = chain.Length > 0 ? chain[0].Parent! : snapshot.Node;
        _laws.Check(Law.PrefixContent, _byArrival.Values.Any(c => Root(c.Stream.Request.Tenant) == root.Name), $"a kept prefix of {snapshot.Length} tokens is no tenant's");
        var name = root.Name;
        foreach (var node in chain)
        {
            name = Named(MemoryMarshal.AsBytes(new[] { name }.AsSpan()), MemoryMarshal.AsBytes(node.Tokens.AsSpan()));
            _laws.Check(Law.PrefixContent, node.Name == name && node.Tokens.Length == prefixes.BlockTokens, $"a block at depth {node.Depth} is not named by its tokens");
        }
        int[] tokens = [.. chain.SelectMany(n => n.Tokens), .. snapshot.Tail];
        var hashes = new ulong[tokens.Length];
        for (int i = 0; i < tokens.Length; i++) hashes[i] = i == 0 ? HashModel.HashOf(tokens.AsSpan(0, 1)) : HashModel.Next(hashes[i - 1], tokens[i]);
        for (int kind = 0; kind < _engine.Cache.Pools.Count; kind++)
        {
            var spec = _engine.Cache.Pools[kind].Spec;
            int first = spec.Retention == KvRetention.All ? 0 : spec.FirstPageNeeded(snapshot.Length);
            foreach (int page in chain.SelectMany(n => n.Pages[kind]).Concat(snapshot.Pages[kind]))
            {
                for (int row = first * spec.RowsPerPage; row < (first + 1) * spec.RowsPerPage; row++)
                    _laws.Check(Law.PrefixContent, _model.Agrees(kind, _engine.Cache.Pools[kind].Tensor, page, row, tokens, hashes), $"{spec.Name}: row {row} of a kept prefix of {tokens.Length} tokens is not what was written");
                first++;
            }
        }
    }

    private PrefixHash Root(string tenant)
    {
        if (!_roots.TryGetValue(tenant, out var root)) _roots.Add(tenant, root = Named(Encoding.UTF8.GetBytes("root\0" + tenant), []));
        return root;
    }

    private static PrefixHash Named(ReadOnlySpan<byte> first, ReadOnlySpan<byte> then)
    {
        Span<byte> hash = stackalloc byte[32];
        SHA256.HashData([.. first, .. then], hash);
        return MemoryMarshal.Read<PrefixHash>(hash);
    }

    // A pinned prefix goes only when no other was left to go, but for one that a sequence resumed from or may still need.
    private void CheckPins()
    {
        bool reads = false;
        foreach (var s in _live) reads |= s.Prefix?.Restore is { IsReading: true };
        foreach (var pinned in _pinned)
        {
            _laws.Note(Law.PrefixEviction);
            if (pinned.Entry is not null || reads) continue;
            foreach (var (other, uses) in _unpinned)
                _laws.Check(Law.PrefixEviction, other.Entry is null || other.Uses > uses || other.Pins > 0, $"a pinned prefix of {pinned.Length} tokens went and one of {other.Length} that is not pinned stayed");
        }
    }

    private unsafe void Poison()
    {
        for (int kind = 0; kind < _poisoned.Length; kind++)
        {
            var pool = _engine.Cache.Pools[kind];
            for (int page = 0; page < pool.PageCount; page++)
            {
                bool free = pool.References(page) == 0;
                _poisoned[kind][page] = free;
                if (!free) continue;
                var floats = new Span<float>(pool.Tensor.F32(page), (int)pool.Tensor.RowElements);
                // It may have been taken, written to and given back since.
                if (MemoryMarshal.Cast<float, int>(floats).ContainsAnyExcept(Nan)) floats.Fill(float.NaN);
            }
        }
    }

    // What nobody holds, nobody writes to: neither the disk nor a copy that comes late.
    private unsafe void CheckPoison()
    {
        for (int kind = 0; kind < _poisoned.Length; kind++)
        {
            var pool = _engine.Cache.Pools[kind];
            for (int page = 0; page < pool.PageCount; page++)
            {
                if (!_poisoned[kind][page]) continue;
                float* at = pool.Tensor.F32(page);
                if (pool.References(page) != 0 || !float.IsNaN(at[0]) || !float.IsNaN(at[pool.Tensor.RowElements - 1]))
                    _laws.Check(Law.FreePagesUntouched, false, $"{pool.Spec.Name}: page {page} was free and poisoned; now it has {pool.References(page)} references and holds {at[0]} .. {at[pool.Tensor.RowElements - 1]}");
            }
        }
    }

    // ---- ends ----

    public void Draining(GenerationRequest late, TimeSpan until)
    {
        _until = until;
        RejectionReason? refused = null;
        try
        {
            _engine.Submit(late);
        }
        catch (RequestRejectedException e)
        {
            refused = e.Reason;
        }
        _laws.Check(Law.DrainHolds, refused == RejectionReason.Unavailable, $"a request came after the drain began and was refused as {refused}");
    }

    /// <summary>Nobody lives: nothing but kept prefixes holds pages, and when they go nothing does.</summary>
    public void Idle()
    {
        if (_engine.Queued > 0) return;
        var prefixes = _engine.Cache.Prefixes;
        while (prefixes?.Reclaim(pinned: true) == true) { }
        foreach (var pool in _engine.Cache.Pools)
            _laws.Check(Law.EverythingComesBack, pool.FreeCount == pool.PageCount && pool.KeptCount == 0, $"{pool.Spec.Name}: {pool.FreeCount} of {pool.PageCount} pages came back");
        _laws.Check(Law.EverythingComesBack, (prefixes?.NodeCount ?? 0) == 0, $"nodes are kept that nothing stands on");
        _laws.Check(Law.CountersAgree, _engine.Gate is { Waiting: 0, WaitingTokens: 0 }, $"the gate is not empty");
        if (prefixes?.Tier is not { } tier) return;
        for (int i = 0; i < 500 && tier.RunDisk(); i++) { }
        var counts = tier.Counts;
        _laws.Check(Law.OperationsEndOnce, counts.ReadsBegun == counts.ReadsDone + counts.ReadsFailed + counts.ReadsCancelled, $"{counts.ReadsBegun} reads began; {counts.ReadsDone}, {counts.ReadsFailed} and {counts.ReadsCancelled} ended");
        _laws.Check(Law.OperationsEndOnce, counts.WritesQueued == 0 && counts.StagingBytes == 0, $"{counts.WritesQueued} writes and {counts.StagingBytes} staged bytes are left");
    }

    public void Ended(SimulatedClient client, SoloRun solo, bool broken)
    {
        var (stream, end) = (client.Stream, client.Stream.End!);
        _laws.Note(Law.DeliveredOnce);
        _laws.Note(Law.AnswerDetermined, stream.Tokens.Count > 0);
        // A text that cannot be made ends its own request, wherever it breaks.
        if (end.Reason == FinishReason.Error && (broken || stream.Request.KeepSpecialTokens)) stream.MustBegin(solo);
        else stream.MustAgreeWith(solo);
        var request = stream.Request;
        _laws.Check(Law.EndsInTime, stream.Tokens.Count <= request.OutputTokensMax, $"request {client.Arrival} has {stream.Tokens.Count} tokens");
        _laws.Check(Law.EndsInTime, end.Reason == FinishReason.DeadlineExceeded, client.Deadline <= _time.Elapsed, "a deadline was enforced before its time");
        _laws.Check(Law.CancelFrees, end.Reason == FinishReason.Cancelled, client.Cancelled, "a request ended as cancelled that nobody cancelled");
        _laws.Check(Law.UnservableRefused, end.Reason == FinishReason.DeadlineUnreachable, !stream.Started && stream.Tokens.Count == 0, "a request was refused as hopeless after work");
        int cached = end.Usage.CachedTokens, fromDisk = end.Usage.DiskTokens;
        _laws.Check(Law.PrefixContent, cached >= 0 && cached < request.PromptTokenIds.Count && fromDisk >= 0 && fromDisk <= cached, $"request {client.Arrival} of {request.PromptTokenIds.Count} tokens has {cached} from the cache, {fromDisk} of them from disk");
        _laws.Note(Law.DiskVerified, fromDisk > 0);
        _laws.Check(Law.EndsInTime, end.Timings.Queue >= TimeSpan.Zero && end.Timings.Total >= end.Timings.Queue, $"request {client.Arrival} waited {end.Timings.Queue} and took {end.Timings.Total}");
        if (_until == TimeSpan.MaxValue && !broken)
            _laws.Check(Law.DrainHolds, end.Error?.StartsWith("The server stopped", StringComparison.Ordinal) != true, $"a drain without a limit ended request {client.Arrival}");
    }

    /// <summary>Nobody has more from the cache than its tenant computed.</summary>
    public void CheckTenants(List<SimulatedClient> clients, List<(string Tenant, int[] Tokens)> earlier)
    {
        foreach (var client in clients)
        {
            int cached = client.Stream.End!.Usage.CachedTokens, common = 0;
            if (cached == 0) continue;
            int[] prompt = [.. client.Stream.Request.PromptTokenIds];
            foreach (var (tenant, tokens) in earlier)
                if (tenant == client.Stream.Request.Tenant) common = Math.Max(common, prompt.AsSpan().CommonPrefixLength(tokens));
            foreach (var other in clients)
                if (other != client && other.Stream.Request.Tenant == client.Stream.Request.Tenant)
                    common = Math.Max(common, prompt.AsSpan().CommonPrefixLength(other.Conversation()));
            _laws.Check(Law.PrefixContent, cached <= common, $"request {client.Arrival} has {cached} tokens from the cache, and its tenant computed {common}");
        }
    }

    public void AfterLife(bool broken)
    {
        var state = broken ? EngineState.Failed : EngineState.Stopped;
        _laws.Check(Law.DrainHolds, _engine.State == state && _engine.WhenStopped.IsCompletedSuccessfully, $"the engine is {_engine.State} at its end, not {state}");
        _laws.Check(Law.CountersAgree, Finished() == _byArrival.Count, $"{Finished()} requests ended, {_byArrival.Count} came");
    }
}

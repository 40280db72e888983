using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using System.Threading.Channels;
using Inference.Backends;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Runtime.Models;
using Inference.Runtime.Sampling;
using Inference.Runtime.Scheduling;
using Inference.Runtime.Tokenization;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>
/// Runs many requests on one model. Requests are checked and accepted, or refused, on the caller's thread (<see cref="Submit"/>); one thread of
/// the engine's own owns everything that changes afterwards and makes one <see cref="Step"/> after the other: drain the inbox, schedule, run,
/// sample, retire, publish. It never waits for a reader, and never looks into text or a network.
///
/// Both ends are bounded: the inbox by the <see cref="AdmissionGate"/> (each accepted request has at most one submission, one cancellation and
/// one wake-up in it), each request's events by its <see cref="Outbox"/>.
/// Invariant: every accepted request gets exactly one <see cref="GenerationFinished"/>, and its pages are free before that can be seen.
/// </summary>
public sealed class InferenceEngine : IAsyncDisposable
{
    /// <summary>For state on its way to the disk, once nobody is left to answer.</summary>
    private static readonly TimeSpan FlushLimit = TimeSpan.FromSeconds(10);

    private readonly IModel _model;
    private readonly Func<GenerationRequest, ISequenceText> _text;
    private readonly TimeProvider _time;
    private readonly ILogger _log;
    private readonly long _epoch;
    private readonly RequestRules _rules;
    private readonly EngineLife _life;

    // Shared between threads.
    private readonly AdmissionGate _gate;
    private readonly Channel<ActiveRequest> _submissions;
    private readonly ConcurrentQueue<(ActiveRequest Request, SchedulerEventKind Kind)> _signals = [];
    private readonly ConcurrentQueue<EngineTask> _tasks = [];
    private readonly AutoResetEvent _wake = new(false);
    private readonly ITimer _alarm;
    private long _arrivals;
    private long _drainLimit = long.MaxValue;
    private int _started, _released;
    private EngineStats _stats;

    // The engine's thread only.
    private readonly KvCacheManager _cache;
    private readonly Scheduler _scheduler;
    private readonly ModelRunner _runner;
    private readonly OutputStage _output;
    private readonly EngineCounters _counters = new();
    private readonly Dictionary<Sequence, ActiveRequest> _active = [];
    private readonly List<SchedulerEvent> _events = [];
    private readonly List<SequenceChunk> _chunks = [];
    private readonly List<ChunkOutcome> _outcomes = [];

    /// <summary>An engine whose answers are read by the model's tokenizer; ids without a token are never generated.</summary>
    /// <inheritdoc cref="InferenceEngine(IModel, IBackend, Func{GenerationRequest, ISequenceText}, EngineOptions, TimeProvider, ILogger, int[])"/>
    public InferenceEngine(
        IModel model, IBackend backend, ModelTokenizer tokenizer, EngineOptions options, TimeProvider time, ILogger logger)
        : this(
            model, backend, request => new TokenizerText(tokenizer, request), options, time, logger,
            TokenizerText.IdsWithoutToken(tokenizer, model.Info.VocabSize))
    {
    }

    /// <param name="model">Not disposed by the engine.</param>
    /// <param name="backend">Not disposed by the engine; from <see cref="Start"/> on only the engine's thread calls it.</param>
    /// <param name="text">Makes the detokenizer of a request; called by the submitting threads.</param>
    /// <param name="options">Resolved and checked here.</param>
    /// <param name="time">Clock of deadlines, limits and measurements.</param>
    /// <param name="logger">Gets no prompt and no answer.</param>
    /// <param name="idsNeverSampled">Ids that no answer may hold, whatever the model says.</param>
    /// <exception cref="EngineOptionsException">An option cannot work with this model and backend.</exception>
    /// <exception cref="BackendException">The device has not enough memory for the KV cache.</exception>
    public InferenceEngine(
        IModel model, IBackend backend, Func<GenerationRequest, ISequenceText> text, EngineOptions options, TimeProvider time, ILogger logger,
        int[]? idsNeverSampled = null)
    {
        (_model, _text, _time, _log) = (model, text, time, logger);
        Options = options.Resolve(model.Info, model.KvStates, backend.Info);
        EngineLog.Resolved(
            logger, model.Info.Family, backend.Info.Name, Options.KvCapacityTokens!.Value, Options.KvCapacityBytes!.Value,
            Options.ContextMax!.Value, Options.SequencesMax, Options.StepTokensMax, Options.QueueMax);
        _epoch = time.GetTimestamp();
        _life = new(logger);
        _gate = new(Options.QueueMax, Options.QueueTokensMax!.Value, Options.TenantWeights);
        _submissions = Channel.CreateBounded<ActiveRequest>(new BoundedChannelOptions(Options.QueueMax) { SingleReader = true });
        _alarm = time.CreateTimer(_ => _wake.Set(), null, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        _cache = new(model.KvStates, Options.Capacity, backend);
        if (Options.Disk is { } disk) Saved = OpenDisk(disk, backend);
        _scheduler = new(Options.Scheduling, _cache);
        _runner = new(model, backend, _cache, Options.StepTokensMax, Options.SequencesMax);
        _output = new(model.Info.VocabSize, idsNeverSampled ?? [], logger);
        _rules = new(model.Info.VocabSize, Options.ContextMax.Value, _cache.SequenceTokensMax);
        _stats = _counters.Picture(EngineState.Starting, _scheduler, _cache);
    }

    /// <summary>The options in force: nothing automatic is left.</summary>
    public EngineOptions Options { get; }

    public EngineState State => _life.State;

    /// <summary>Raised after each change of <see cref="State"/>, one at a time, on the thread that caused it. Handlers must be quick and must not
    /// wait for the engine; what they throw is logged.</summary>
    public event Action<EngineState>? StateChanged
    {
        add => _life.Changed += value;
        remove => _life.Changed -= value;
    }

    /// <summary>What broke the engine, in state <see cref="EngineState.Failed"/>.</summary>
    public Exception? Failure => _life.Failure;

    /// <summary>Picture of the engine after its last step. Any thread.</summary>
    public EngineStats Stats => Volatile.Read(ref _stats) with { State = State, Disk = _cache.Prefixes?.Tier?.Stats() };

    /// <summary>Accepted requests that have not had a step. Any thread.</summary>
    public int Queued => _gate.Waiting;

    /// <summary>Completes when the engine is ready; fails with <see cref="Failure"/>, or is cancelled, if it never gets there.</summary>
    public Task WhenReady => _life.WhenReady;

    /// <summary>Completes when the engine is stopped or failed and its memory is given back.</summary>
    public Task WhenStopped => _life.WhenStopped;

    /// <summary>Starts the engine's thread, which lets the model make its first step and then is <see cref="EngineState.Ready"/>. Once.</summary>
    public void Start()
    {
        if (Interlocked.Exchange(ref _started, 1) == 1) throw new InvalidOperationException("The engine has been started or stopped before.");
        new Thread(Run) { IsBackground = true, Name = "inference engine" }.Start();
    }

    /// <summary>Takes a request, or refuses it at once. Any thread; never waits for a step.</summary>
    /// <exception cref="RequestRejectedException">Nothing of the request was kept.</exception>
    public GenerationHandle Submit(GenerationRequest request)
    {
        if (State != EngineState.Ready) throw Unavailable();
        _rules.Check(request);
        if (_gate.TryEnter(request.Tenant, request.PromptTokenIds.Count) is { } full) throw Overloaded(full);
        ActiveRequest? active = null;
        try
        {
            active = MakeActive(request);
            if (!_submissions.Writer.TryWrite(active)) throw Unavailable();
        }
        catch
        {
            _gate.Undo(request.Tenant, request.PromptTokenIds.Count);
            throw;
        }
        _wake.Set();
        return new(request.RequestId, active.Outbox.Reader, () => Cancel(active));
    }

    /// <summary>Refuses at once what would be refused anyway: for callers that have work to do before they can submit, such as reading a long text.
    /// That it passes promises nothing.</summary>
    /// <exception cref="RequestRejectedException">The queue has no place for a request of this tenant.</exception>
    public void CheckRoom(string tenant)
    {
        if (_gate.Full(tenant) is { } full) throw Overloaded(full);
    }

    /// <summary>
    /// Looks at, or changes, what the engine's thread owns: runs there between two steps. Any thread; what is done must be quick. Fails with
    /// <see cref="RequestRejectedException"/> when the engine stops first.
    /// </summary>
    internal Task<T> OnThread<T>(Func<KvCacheManager, T> what)
    {
        var task = new EngineTask<T>(what);
        _tasks.Enqueue(task);
        _wake.Set();
        // Whoever stopped the engine emptied the queue, perhaps before this one came.
        if (State >= EngineState.Stopped) AbandonTasks();
        return task.Completion;
    }

    /// <summary>
    /// Refuses new requests and lets the accepted ones run to their end, for at most <paramref name="limit"/>
    /// (<see cref="Timeout.InfiniteTimeSpan"/> = as long as it takes); those still there then end with <see cref="FinishReason.Error"/>. Completes
    /// when the engine is stopped. Further calls can only shorten the limit.
    /// </summary>
    public Task DrainAsync(TimeSpan limit)
    {
        long until = limit == Timeout.InfiniteTimeSpan || limit > TimeSpan.FromDays(36500) ? long.MaxValue : (Now + limit).Ticks;
        for (long seen = Volatile.Read(ref _drainLimit); until < seen; seen = Volatile.Read(ref _drainLimit))
            if (Interlocked.CompareExchange(ref _drainLimit, until, seen) == seen) break;
        _life.MoveTo(EngineState.Draining);
        if (Interlocked.Exchange(ref _started, 1) == 0) Stop();
        _wake.Set();
        return WhenStopped;
    }

    /// <summary>As <see cref="DrainAsync"/> with no time left.</summary>
    public async ValueTask DisposeAsync()
    {
        await DrainAsync(TimeSpan.Zero).ConfigureAwait(false);
        await _alarm.DisposeAsync().ConfigureAwait(false);
    }

    /// <summary>The sessions on disk; null without one.</summary>
    internal SavedSessions? Saved { get; }

    private SavedSessions OpenDisk(KvDiskOptions disk, IBackend backend)
    {
        if (_cache.Prefixes is null)
            throw new EngineOptionsException(nameof(EngineOptions.Disk), "this model's state cannot be kept, so there is nothing to put on disk.");
        try
        {
            byte[] identity = _model.Identity();
            var fingerprint = KvFingerprint.Of(identity, _model.KvStates, backend.Info);
            var folder = disk.Open(Path.Combine(disk.Folder, "state"), KvStore.IsOurs);
            var store = KvStore.Open(folder, PrefixTier.LayoutOf(_model.KvStates, fingerprint), disk.BytesMax, _log);
            _cache.OpenTier(store, backend, () => _wake.Set(), _time, _log, disk.Threads);
            _cache.Prefixes.Tier!.WorthTokens = disk.WorthTokens ?? KvStateSpec.BlockTokens;
            return new SavedSessions(disk.Open(Path.Combine(disk.Folder, "sessions"), SavedSessions.IsOurs), identity, _model.Info.VocabSize, _log);
        }
        catch (Exception e)
        {
            _cache.Dispose();
            if (e is IOException or KvFolderException) throw new EngineOptionsException(nameof(EngineOptions.Disk), e.Message);
            throw;
        }
    }

    /// <summary>For simulations, which step by themselves.</summary>
    internal Scheduler Scheduler => _scheduler;

    internal KvCacheManager Cache => _cache;

    internal AdmissionGate Gate => _gate;

    private TimeSpan Now => SeededBug.Is(18) ? _time.GetUtcNow() - DateTimeOffset.UnixEpoch : _time.GetElapsedTime(_epoch);

    private ActiveRequest MakeActive(GenerationRequest request)
    {
        var now = Now;
        var active = new ActiveRequest
        {
            Request = request,
            Sequence = new(
                Interlocked.Increment(ref _arrivals), request.PromptTokenIds, request.OutputTokensMax, Ticks(request.Deadline, now), _cache.CreateTable(),
                _cache.Prefixes is null ? null : PrefixPath.Begin(Options.PrefixesOf(request.Tenant), request.Boundaries))
            {
                Tenant = request.Tenant,
                Priority = request.Priority,
                FirstTokenDeadline = Ticks(request.FirstTokenDeadline, now),
            },
            Text = _text(request),
            History = TokenHistory.For(request.Sampling, request.PromptTokenIds),
            SubmittedAt = now,
        };
        active.Outbox = new(Options.OutboxMax, () => Signal(active, SchedulerEventKind.Resumed));
        return active;
    }

    private long Ticks(DateTimeOffset? at, TimeSpan now) => at is { } time ? (now + (time - _time.GetUtcNow())).Ticks : long.MaxValue;

    private void Cancel(ActiveRequest active)
    {
        if (active.AskToCancel()) Signal(active, SchedulerEventKind.Ended);
    }

    private void Signal(ActiveRequest active, SchedulerEventKind kind)
    {
        _signals.Enqueue((active, kind));
        _wake.Set();
    }

    private RequestRejectedException Overloaded(string full) => new(RejectionReason.Overloaded, full, retryAfter: _gate.RetryAfter);

    private RequestRejectedException Unavailable() => new(RejectionReason.Unavailable, State switch
    {
        EngineState.Starting => "The engine is starting.",
        EngineState.Failed => "The engine has failed.",
        _ => "The engine is stopping.",
    });

    // ---- The engine's thread ----

    private void Run()
    {
        try
        {
            Open();
            while (true)
            {
                bool ran = Step();
                // Before waiting: a step that runs nothing may have ended the last request of a draining engine, and nobody would wake it.
                if (TryStop()) return;
                if (!ran) WaitForWork();
            }
        }
        catch (Exception e)
        {
            Fail(e);
        }
    }

    /// <summary>Lets the model make its first step, the largest it may have to make, and opens the door.</summary>
    internal void Open()
    {
        Volatile.Write(ref _started, 1);
        var table = _cache.CreateTable();
        int length = Math.Min(Options.StepTokensMax, Math.Min(_rules.ContextMax, _rules.CacheTokensMax));
        if (!_cache.TryExtend(table, length)) throw new InvalidOperationException($"An empty cache has no room for {length} positions.");
        _runner.Run([new(new int[length], 0, table, length - 1)]);
        LogitMath.ArgMax(_runner.Logits(0));
        _cache.Free(table);
        _life.MoveTo(EngineState.Ready);
        _life.Announce();
    }

    /// <summary>One step. False if there was nothing to run.</summary>
    internal bool Step()
    {
        DrainInbox();
        var batch = _scheduler.Step(CollectionsMarshal.AsSpan(_events), Now.Ticks);
        _events.Clear();
        _counters.Planned(batch);
        PublishEnds(batch.Finished);
        if (batch.Chunks.Count == 0) return false;
        Announce(batch.Started);
        var began = Now;
        RunModel(batch);
        Sample(batch);
        var duration = Now - began;
        var finished = _scheduler.Retire(CollectionsMarshal.AsSpan(_outcomes), duration.Ticks);
        _counters.Stepped(duration, _time.GetUtcNow());
        PublishDeltas(batch);
        PublishEnds(finished);
        return true;
    }

    private void DrainInbox()
    {
        _cache.Prefixes?.Tier?.Pump();
        while (_tasks.TryDequeue(out var task)) task.Run(_cache);
        while (_submissions.Reader.TryRead(out var active))
        {
            _active.Add(active.Sequence, active);
            _counters.Accepted();
            _events.Add(SchedulerEvent.Submitted(active.Sequence));
            if (active.CancelAsked) _events.Add(SchedulerEvent.Cancelled(active.Sequence));
        }
        while (_signals.TryDequeue(out var signal))
        {
            // A cancellation that overtook its submission is read off the request above; one that comes too late has nothing to end.
            if (!_active.ContainsKey(signal.Request.Sequence) || (SeededBug.Is(15) && !signal.Request.Sequence.Started)) continue;
            _events.Add(signal.Kind == SchedulerEventKind.Resumed
                ? SchedulerEvent.Resumed(signal.Request.Sequence)
                : SchedulerEvent.Cancelled(signal.Request.Sequence));
        }
        if (Now.Ticks >= Volatile.Read(ref _drainLimit)) EndAll();
    }

    private void EndAll()
    {
        foreach (var active in InOrder())
            _events.Add(SchedulerEvent.Ended(active.Sequence, "The server stopped before the answer was complete."));
    }

    private void Announce(List<Sequence> started)
    {
        foreach (var sequence in started)
        {
            var active = _active[sequence];
            active.StartedAt = Now;
            _gate.Leave(sequence.Tenant, sequence.PromptLength, Now.Ticks);
            active.Outbox.Write(new GenerationStarted(sequence.PromptLength, sequence.CachedTokens, active.StartedAt.Value - active.SubmittedAt));
        }
    }

    private void RunModel(ScheduledBatch batch)
    {
        _chunks.Clear();
        foreach (var chunk in batch.Chunks)
            _chunks.Add(new(
                chunk.Sequence.Tokens(chunk.Start, chunk.Count), chunk.Start, chunk.Sequence.Table,
                chunk.Samples ? chunk.Count - 1 : chunk.Count));
        _runner.Run(_chunks);
    }

    private void Sample(ScheduledBatch batch)
    {
        _outcomes.Clear();
        foreach (var chunk in batch.Chunks)
        {
            if (!chunk.Samples) continue;
            var active = _active[chunk.Sequence];
            var outcome = _output.Next(active, _runner.Logits(_outcomes.Count));
            _outcomes.Add(outcome);
            if (outcome.Error is not null) continue;
            active.FirstTokenAt ??= Now;
            _counters.Generated();
        }
    }

    private void PublishDeltas(ScheduledBatch batch)
    {
        foreach (var chunk in batch.Chunks)
        {
            if (!chunk.Samples) continue;
            var active = _active[chunk.Sequence];
            if (active.Delta is { } delta) active.Outbox.Write(delta);
            active.Delta = null;
            if (chunk.Sequence.State != SequenceState.Finished && active.Outbox.TryStall())
                _events.Add(SchedulerEvent.Stalled(chunk.Sequence));
        }
    }

    private void PublishEnds(IReadOnlyList<Sequence> finished)
    {
        foreach (var sequence in finished)
        {
            _counters.Finished(sequence.Finish!.Value);
            if (!sequence.Started && !(SeededBug.Is(16) && sequence.Finish == FinishReason.DeadlineExceeded)) _gate.Leave(sequence.Tenant, sequence.PromptLength, Now.Ticks);
        }
        PublishStats();
        foreach (var sequence in finished)
        {
            var active = _active[sequence];
            active.Outbox.Complete(active.End(sequence.Finish!.Value, _output.Rest(active), sequence.Error, Now));
            _active.Remove(sequence);
        }
    }

    private void PublishStats() => Volatile.Write(ref _stats, _counters.Picture(State, _scheduler, _cache));

    private void WaitForWork()
    {
        long due = Math.Min(_scheduler.NextDeadline, Volatile.Read(ref _drainLimit));
        if (due != long.MaxValue)
        {
            var left = TimeSpan.FromTicks(Math.Clamp(due - Now.Ticks, 0, TimeSpan.TicksPerDay));
            _alarm.Change(left, Timeout.InfiniteTimeSpan);
            // The time may have passed between reading the clock and setting the alarm.
            if (Now.Ticks >= due) return;
        }
        _wake.WaitOne();
    }

    /// <summary>Stops if the engine drains and nobody is left.</summary>
    internal bool TryStop()
    {
        if (State < EngineState.Draining || _active.Count > 0) return false;
        // Requests may have been accepted before the door closed; once it is locked the inbox is final.
        _submissions.Writer.TryComplete();
        if (_submissions.Reader.Count > 0) return false;
        _cache.Prefixes?.Tier?.Flush(FlushLimit);
        Stop();
        return true;
    }

    private void Stop()
    {
        _submissions.Writer.TryComplete();
        Release();
        _life.MoveTo(EngineState.Stopped);
        AbandonTasks();
        _life.Announce();
    }

    /// <summary>Answers everyone with an error and gives back what can be.</summary>
    internal void Fail(Exception failure)
    {
        _life.MoveTo(SeededBug.Is(23) ? EngineState.Stopped : EngineState.Failed, failure);
        _submissions.Writer.TryComplete();
        while (_submissions.Reader.TryRead(out var late)) _active.Add(late.Sequence, late);
        Release();
        var victims = InOrder();
        EngineLog.Failed(_log, failure, victims.Count);
        foreach (var active in victims) _counters.Finished(FinishReason.Error);
        PublishStats();
        foreach (var active in victims)
            active.Outbox.Complete(active.End(FinishReason.Error, "", "The engine has failed.", Now));
        _active.Clear();
        AbandonTasks();
        _life.Announce();
    }

    private void AbandonTasks()
    {
        while (_tasks.TryDequeue(out var task)) task.Abandon(Unavailable());
    }

    private List<ActiveRequest> InOrder() => [.. _active.Values.OrderBy(a => a.Sequence.Arrival)];

    private void Release()
    {
        if (Interlocked.Exchange(ref _released, 1) == 1) return;
        try
        {
            _runner.Dispose();
            _cache.Dispose();
            Saved?.Dispose();
        }
        catch (Exception e)
        {
            // On the way out of a device that failed: there is nothing left to save.
            EngineLog.ReleaseFailed(_log, e);
        }
    }
}

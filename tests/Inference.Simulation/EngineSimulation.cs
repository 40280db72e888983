using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Sampling;
using Inference.Runtime.Scheduling;
using Inference.Testing;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;

namespace Inference.Simulation;

/// <summary>
/// One seeded life, or several, of a whole engine without its thread: scheduler, cache, model runner, hash model, sampler and streams, stepped by
/// hand under virtual time, with drawn arrivals, cancellations, deadlines, readers, pins and clocks that are set. After each step
/// <see cref="EngineLaws"/> looks at everything; free pages are overwritten with NaN, so that the model sees any use of them. Every answer must be
/// the one that its request alone determines.
/// Some have a disk, simulated, that is slow, may fail and lie, and loses its power between two lives of the engine. In some the device breaks, or
/// the engine is told to stop in the middle.
/// </summary>
internal sealed class EngineSimulation : ISimulation
{
    private const int Vocab = 128;
    private static readonly string[] Tenants = ["", "other", "third"];
    private readonly Random _random;
    private readonly VirtualTime _time = new();
    private readonly HostMemoryBackend _backend = new();
    private readonly HashModel _model;
    private readonly EngineOptions _options;
    private readonly SimulatedDisk? _sessions;
    private readonly double _faultRate, _diskSpeed;
    private readonly bool _slowReaders;
    private readonly List<SimulatedClient> _clients = [];
    private readonly List<(string Tenant, int[] Tokens)> _conversations = [];  // of earlier lives
    private readonly List<PrefixCache.Snapshot> _pins = [];
    private SimulatedDisk? _disk;
    private InferenceEngine _engine = null!;
    private EngineLaws _laws = null!;
    private readonly long[] _ends = new long[Enum.GetValues<FinishReason>().Length];
    private long _arrivals, _refused, _cachedTokens, _diskTokens, _preempted, _recomputed, _broken;
    private int _left, _deviceFaultAt = -1;

    private sealed class DeviceFaultException() : Exception("the device broke, as drawn");

    public EngineSimulation(int seed, int traceLines = 0)
    {
        Trace = new(traceLines);
        _random = new(seed);
        int sequences = _random.Next(1, 9);
        _options = new()
        {
            SequencesMax = sequences,
            StepTokensMax = sequences + _random.Next(0, 40),
            KvCapacityTokens = _random.Next(16, 200),
            PrefixesMax = _random.Next(3) * _random.Next(1, 9),
            QueueMax = _random.Next(1, 24),
            OutboxMax = _random.Next(1, 9),
            HeadroomTokens = _random.Next(3) switch { 0 => 0, 1 => _random.Next(1, 12), _ => 256 },
            PriorityAhead = TimeSpan.FromMilliseconds(_random.Next(0, 400)),
            TenantWeights = new Dictionary<string, double> { ["other"] = _random.Next(1, 5) },
        };
        _model = new(Vocab, pageRows: 1 << _random.Next(0, 4), farRatio: _random.Next(2) == 0 ? 128 : 16) { NanToken = Vocab - 1, RowsCompared = _random.Next(8) == 0 ? null : 3 };
        if (_options.PrefixesMax > 0 && _random.Next(2) == 0)
        {
            (_disk, _sessions) = (new(_random.Next()), new(0));
            _faultRate = _random.Next(2) * _random.NextDouble() * 0.1;
            _diskSpeed = _random.NextDouble() * (_random.Next(2) == 0 ? 0.5 : 4);
            _options = _options with
            {
                KvCapacityTokens = _random.Next(2) == 0 ? _random.Next(130, 420) : _random.Next(16, 1200),
                Disk = new("", _random.Next(1 << 16, 1 << 20)) { Open = (folder, _) => folder == "state" ? _disk! : _sessions, Threads = false, WorthTokens = 8 },
            };
        }
        var stepTime = TimeSpan.FromMilliseconds(_random.Next(3) == 0 ? 0 : _random.Next(1, 80));
        _model.BeforeStep = step =>
        {
            if (step == _deviceFaultAt) throw new DeviceFaultException();
            _time.Advance(stepTime);
        };
        _slowReaders = _random.Next(2) == 0;
    }

    public Laws Laws { get; } = new();
    public Trace Trace { get; }
    public long Steps { get; private set; }
    public IEnumerable<(string, long)> Reached =>
    [
        ("refused", _refused), ("cached tokens", _cachedTokens), ("tokens from disk", _diskTokens), ("preempted", _preempted), ("recomputed tokens", _recomputed),
        ("devices broken", _broken), .. _ends.Select((count, reason) => ($"ended {(FinishReason)reason}", count)),
    ];

    public void Run()
    {
        Live();
        for (int lives = _disk is null ? 0 : _random.Next(1, 4); lives > 0; lives--)
        {
            _disk = _disk!.Crash(_random.Next());
            _disk.Faults = Faults();
            Live();
        }
    }

    private void NewEngine()
    {
        _left = _random.Next(1, 20);
        _arrivals = 0;
        _engine = new(_model, _backend, Text, _options, _time, NullLogger.Instance);
        _laws = new(Laws, Trace, _engine, _model, _time, _disk, faults: _faultRate > 0);
    }

    // Some texts cannot be made: the fault of their request.
    private static ISequenceText Text(GenerationRequest request) =>
        request.KeepSpecialTokens ? new BreakingText(new LetterText(request), request.PromptTokenIds.Count % 5) : new LetterText(request);

    private sealed class BreakingText(ISequenceText text, int after) : ISequenceText
    {
        private int _left = after;

        public TextPiece Push(int tokenId) => _left-- > 0 ? text.Push(tokenId) : throw new InvalidOperationException("this text cannot be made");
        public string Flush() => text.Flush();
    }

    // A disk that cannot be opened is the operator's business; after that it may do what it likes.
    private Func<DiskOperation, long, DiskFault> Faults()
    {
        var random = new Random(_random.Next());
        return (operation, _) => operation is DiskOperation.List or DiskOperation.OpenRead || random.NextDouble() >= _faultRate
            ? DiskFault.None : (DiskFault)random.Next(1, 6);
    }

    private void Live()
    {
        _deviceFaultAt = -1;
        NewEngine();
        _engine.Open();
        _deviceFaultAt = _random.Next(12) == 0 ? _model.Steps + _random.Next(150) : -1;
        BreakCopies(_random.Next(24) == 0 ? _random.Next(2000) : -1);
        bool stopsEarly = _random.Next(6) == 0;
        double arrivalRate = Math.Max(0.02, _random.NextDouble());
        bool broken = false;
        while (!broken && (_left > 0 || _random.Next(6) != 0) && !(stopsEarly && _random.Next(20) == 0))
        {
            while (_left > 0 && _random.NextDouble() < arrivalRate) Submit();
            _time.Advance(TimeSpan.FromMilliseconds(_random.Next(0, 20)));
            if (_random.Next(60) == 0) _time.SetWall(TimeSpan.FromMilliseconds(_random.Next(-100_000, 100_000)));
            if (_random.Next(300) == 0) _laws.Hang();
            MovePins();
            broken = !Step();
            foreach (var client in _clients) Act(client);
        }
        broken = broken || !Drain(stopsEarly ? TimeSpan.FromMilliseconds(_random.Next(0, 2000)) : Timeout.InfiniteTimeSpan);
        _backend.Fault = null;
        AfterLife(broken);
    }

    private void BreakCopies(int after)
    {
        if (after < 0) return;
        _backend.Fault = what =>
        {
            if (what != "allocate" && after-- == 0) throw new DeviceFaultException();
        };
    }

    // ---- requests ----

    private void Submit()
    {
        _left--;
        var request = Draw();
        bool fits = (long)request.PromptTokenIds.Count + Math.Max(0L, request.OutputTokensMax - 1L) <= _engine.Cache.SequenceTokensMax
            && (long)request.PromptTokenIds.Count + request.OutputTokensMax <= _engine.Options.ContextMax;
        try
        {
            var now = _time.Elapsed;
            var handle = _engine.Submit(request);
            Laws.Check(Law.UnservableRefused, fits, $"a request of {request.PromptTokenIds.Count}+{request.OutputTokensMax} tokens was accepted where {_engine.Cache.SequenceTokensMax} fit");
            var client = new SimulatedClient(new(handle, request), ++_arrivals, _slowReaders && _random.Next(2) == 0 ? _random.NextDouble() / 4 : 1)
            {
                Deadline = At(request.Deadline, now),
                FirstTokenDeadline = At(request.FirstTokenDeadline, now),
            };
            _clients.Add(client);
            _laws.Accepted(client);
            if (Trace.KeepsLines) Trace.Line($"{_time.Elapsed.TotalMilliseconds} ms: request {_arrivals} of '{request.Tenant}', {request.PromptTokenIds.Count}+{request.OutputTokensMax}, priority {request.Priority}, deadline {client.Deadline}");
            if (_random.Next(40) == 0) Cancel(client);
        }
        catch (RequestRejectedException e)
        {
            _refused++;
            Trace.Mix(-(int)e.Reason - 1);
            _laws.Refused(e, fits, request);
        }
    }

    private TimeSpan At(DateTimeOffset? time, TimeSpan now) => time is { } at ? now + (at - _time.GetUtcNow()) : TimeSpan.MaxValue;

    private GenerationRequest Draw()
    {
        int room = Math.Min(_engine.Cache.SequenceTokensMax, 300);
        int positions = _random.Next(_disk is null ? 12 : 2) == 0 ? _random.Next(1, room + 20) : _random.Next(1, Math.Min(room, 120) + 1);
        int output = _random.Next(12) == 0 ? 0 : _random.Next(1, Math.Min(positions, 60) + 1);
        int[] prompt = Prompt(positions + 1 - Math.Max(1, output));
        string tenant = Tenants[_random.Next(4) == 0 ? _random.Next(1, 3) : 0];
        if (_disk is not null && _random.Next(2) == 0) GoOn(room, ref prompt, ref output, ref tenant);
        return new()
        {
            RequestId = $"r{_clients.Count}",
            PromptTokenIds = prompt,
            Tenant = tenant,
            OutputTokensMax = _random.Next(40) == 0 ? int.MaxValue - _random.Next(prompt.Length + 5) : output,
            Sampling = Sampling(),
            StopTokenIds = _random.Next(3) == 0 ? [1, 2, 3, 4, 5, 6] : [],
            StopStrings = _random.Next(3) == 0 ? ["ab", "c", "xyz"] : [],
            IncludeStop = _random.Next(2) == 0,
            KeepSpecialTokens = _random.Next(40) == 0,
            Priority = _random.Next(3) == 0 ? _random.Next(GenerationRequest.PriorityMin, GenerationRequest.PriorityMax + 1) : 0,
            Boundaries = _random.Next(3) == 0 ? [.. Enumerable.Range(0, 3).Select(_ => _random.Next(prompt.Length + 1)).Distinct().Order()] : [],
            Deadline = _random.Next(8) == 0 ? _time.GetUtcNow() + TimeSpan.FromMilliseconds(_random.Next(0, 600)) : null,
            FirstTokenDeadline = _random.Next(8) == 0 ? _time.GetUtcNow() + TimeSpan.FromMilliseconds(_random.Next(0, 300)) : null,
        };
    }

    private SamplingParams Sampling() => _random.Next(4) switch
    {
        0 => new(1, 0, 1, 0, 1, 0, 0, (ulong)_random.NextInt64()),
        1 => new(0.8f, 20, 0.9f, 0.02f, 1.2f, 0.3f, 0.1f, (ulong)_random.NextInt64()),
        _ => SamplingParams.Greedy,
    };

    // Half of them begin as an earlier conversation did: the whole of it, or to where it is edited.
    private int[] Prompt(int length)
    {
        int[] prompt = new int[length];
        for (int i = 0; i < length; i++) prompt[i] = _random.Next(Vocab);
        if (_clients.Count + _conversations.Count == 0 || _random.Next(_disk is null ? 2 : 6) == 0) return prompt;
        int at = _random.Next(_clients.Count + _conversations.Count);
        int[] conversation = at < _conversations.Count ? _conversations[at].Tokens : _clients[at - _conversations.Count].Conversation();
        int common = Math.Min(length, _random.Next(_disk is null ? 2 : 4) > 0 ? conversation.Length : _random.Next(1, conversation.Length + 1));
        conversation.AsSpan(0, common).CopyTo(prompt);
        return prompt;
    }

    // A whole conversation goes on: what it left on disk is read back, and several such reads want more pages than there are.
    private void GoOn(int room, ref int[] prompt, ref int output, ref string tenant)
    {
        if (_conversations.Count == 0) return;
        var (of, conversation) = _conversations[_random.Next(_conversations.Count)];
        int more = _random.Next(1, 8);
        if (conversation.Length + more > room) return;
        prompt = [.. conversation, .. Enumerable.Range(0, more).Select(_ => _random.Next(Vocab))];
        output = Math.Min(output, room - prompt.Length + 1);
        tenant = of;
    }

    private void Act(SimulatedClient client)
    {
        if (client.Stream.End is not null)
        {
            if (_random.Next(200) == 0) client.Stream.Handle.Cancel();  // too late
            return;
        }
        for (int i = 0; i < 3 && _random.NextDouble() < client.Appetite; i++) client.Stream.TryRead();
        if (!client.Cancelled && _random.Next(80) == 0) Cancel(client);
    }

    private void Cancel(SimulatedClient client)
    {
        if (Trace.KeepsLines) Trace.Line($"{_time.Elapsed.TotalMilliseconds} ms: request {client.Arrival} is cancelled");
        client.Stream.Handle.Cancel();
        client.Cancelled = true;
    }

    private void MovePins()
    {
        if (_engine.Cache.Prefixes is not { } prefixes) return;
        if (_pins.Count > 0 && _random.Next(40) == 0)
        {
            int at = _random.Next(_pins.Count);
            prefixes.Unpin(_pins[at]);
            _pins.RemoveAt(at);
        }
        if (prefixes.SnapshotCount == 0 || _random.Next(20) != 0) return;
        var snapshot = prefixes.Snapshots.ElementAt(_random.Next(prefixes.SnapshotCount));
        if (!_engine.Cache.MayPin(snapshot, null)) return;
        prefixes.Pin(snapshot);
        _pins.Add(snapshot);
    }

    // ---- steps ----

    // False if the device broke.
    private bool Step()
    {
        Steps++;
        int diskOperations = RunDisk();
        _laws.BeforeStep(_clients, diskOperations);
        try
        {
            _engine.Step();
        }
        catch (DeviceFaultException e)
        {
            _engine.Fail(e);
            return false;
        }
        catch (HashModelException e)
        {
            throw new LawBrokenException(Law.AnswerDetermined, e.Message, e);
        }
        _laws.AfterStep(_clients);
        return true;
    }

    private int RunDisk()
    {
        if (_engine.Cache.Prefixes?.Tier is not { } tier || _engine.State == EngineState.Stopped) return 0;
        bool draining = _engine.State == EngineState.Draining;
        int operations = 0;
        for (double speed = _diskSpeed + (draining ? 1 : 0); speed > 0 && _random.NextDouble() < speed; speed--, operations++) tier.RunDisk();
        return operations;
    }

    // False if the device broke.
    private bool Drain(TimeSpan limit)
    {
        if (Trace.KeepsLines) Trace.Line($"{_time.Elapsed.TotalMilliseconds} ms: drain within {limit}");
        foreach (var pin in _pins) _engine.Cache.Prefixes!.Unpin(pin);
        _pins.Clear();
        var stopped = _engine.DrainAsync(limit);
        var until = limit == Timeout.InfiniteTimeSpan ? TimeSpan.MaxValue : _time.Elapsed + limit;
        _laws.Draining(Draw(), until);
        // Everyone reads now. Nobody waits for more than all the work there is, after every preemption anew.
        int steps = 200 + (_disk is null ? 0 : 2000) + (int)_clients.Sum(c => (long)c.Stream.Request.PromptTokenIds.Count + c.Stream.Request.OutputTokensMax) * 4;
        while (!Stopped())
        {
            Laws.Check(Law.EverythingComesBack, steps-- > 0, $"the engine did not come to its end");
            _time.Advance(TimeSpan.FromMilliseconds(_random.Next(0, 20)));
            if (!Step()) return false;
            foreach (var client in _clients)
                while (client.Stream.TryRead()) { }
        }
        Laws.Check(Law.DrainHolds, stopped.IsCompletedSuccessfully, $"the engine stopped and nobody heard of it");
        return true;
    }

    private bool Stopped()
    {
        if (_engine.Scheduler.Running.Count + _engine.Scheduler.Waiting.Count == 0)
        {
            _backend.Fault = null;
            _laws.Idle();
        }
        return _engine.TryStop();
    }

    private void AfterLife(bool broken)
    {
        foreach (var client in _clients)
        {
            while (client.Stream.TryRead()) { }
            Laws.Check(Law.DeliveredOnce, client.Stream.End is not null && client.Stream.Handle.Events.Completion.IsCompleted, $"request {client.Arrival} has no end");
            var end = client.Stream.End!;
            _laws.Ended(client, SoloRun.Of(_model, client.Stream.Request), broken);
            _cachedTokens += end.Usage.CachedTokens;
            _diskTokens += end.Usage.DiskTokens;
            _ends[(int)end.Reason]++;
            Trace.Mix((int)end.Reason);
            Trace.Mix(end.Usage.CachedTokens);
            foreach (int token in client.Stream.Tokens) Trace.Mix(token);
        }
        _laws.CheckTenants(_clients, _conversations);
        _laws.AfterLife(broken);
        if (broken) _broken++;
        foreach (var client in _clients) _conversations.Add((client.Stream.Request.Tenant, client.Conversation()));
        _preempted += _engine.Stats.Preemptions;
        _recomputed += _engine.Stats.RecomputedTokens;
        _clients.Clear();
        _pins.Clear();
        Laws.Check(Law.EverythingComesBack, _backend.LiveBuffers == 0, $"{_backend.LiveBuffers} buffers were not given back");
        _engine.DisposeAsync().AsTask().GetAwaiter().GetResult();
    }

    public void Dispose()
    {
        _model.Dispose();
        _backend.Dispose();
    }
}

/// <summary>Someone who submitted a request.</summary>
/// <param name="appetite">Chance that it reads an event when it may.</param>
internal sealed class SimulatedClient(StreamRecord stream, long arrival, double appetite)
{
    public StreamRecord Stream => stream;

    /// <summary>Its sequence's.</summary>
    public long Arrival => arrival;
    public double Appetite => appetite;
    public TimeSpan Deadline { get; init; }
    public TimeSpan FirstTokenDeadline { get; init; }
    public bool Cancelled { get; set; }

    /// <summary>It was so before the step.</summary>
    public bool WasCancelled { get; set; }

    public int[] Conversation() => [.. stream.Request.PromptTokenIds, .. stream.Tokens];
}

using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Runtime.Scheduling;
using Inference.Runtime.Tests.Scheduling;
using Inference.Testing;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Time.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

/// <summary>
/// One seeded life of a whole engine without its thread: scheduler, cache, model runner, hash model, sampler and streams, stepped by hand under
/// virtual time, with drawn arrivals, cancellations, deadlines and readers. After each step the pages are recounted, and free ones are
/// overwritten with NaN, so that the model sees any use of them. Every answer must be the one that its request alone determines.
/// Some have a disk, simulated, that is slow, may fail and lie, and loses its power between two lives of the engine.
/// </summary>
internal sealed class EngineSimulation : IAsyncDisposable
{
    private const int Vocab = 256;
    private readonly Random _random;
    private readonly FakeTimeProvider _time = new();
    private readonly HostMemoryBackend _backend = new();
    private readonly HashModel _model;
    private readonly EngineOptions _options;
    private readonly List<Client> _clients = [];
    private readonly List<int[]> _conversations = [];  // of earlier lives
    private readonly SimulatedDisk? _sessions;
    private readonly double _faultRate, _diskSpeed;
    private SimulatedDisk? _disk;
    private InferenceEngine _engine;
    private readonly bool _slowReaders;
    private int _left;

    private sealed class Client(StreamRecord stream, double appetite)
    {
        public StreamRecord Stream => stream;
        public double Appetite => appetite;
        public bool Cancelled { get; set; }
    }

    public EngineSimulation(int seed)
    {
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
        _model = new(Vocab, pageRows: 1 << _random.Next(0, 4)) { NanToken = Vocab - 1 };
        if (_options.PrefixesMax > 0 && _random.Next(2) == 0)
        {
            (_disk, _sessions) = (new(_random.Next()), new(0));
            _faultRate = _random.Next(2) * _random.NextDouble() * 0.1;
            _diskSpeed = _random.NextDouble() * 4;
            _options = _options with
            {
                KvCapacityTokens = _random.Next(16, 1200),
                Disk = new("", _random.Next(1 << 16, 1 << 20)) { Open = (folder, _) => folder == "state" ? _disk! : _sessions, Threads = false, WorthTokens = 8 },
            };
        }
        var stepTime = TimeSpan.FromMilliseconds(_random.Next(3) == 0 ? 0 : _random.Next(1, 80));
        _model.BeforeStep = _ => _time.Advance(stepTime);
        _engine = NewEngine();
        _slowReaders = _random.Next(2) == 0;
    }

    public int Rejected { get; private set; }
    public long CachedTokens { get; private set; }
    public long DiskTokens { get; private set; }
    public List<EngineStats> Stats { get; } = [];
    public Dictionary<FinishReason, int> Ends { get; } = [];

    public async Task RunAsync()
    {
        await LiveAsync();
        for (int lives = _disk is null ? 0 : _random.Next(1, 4); lives > 0; lives--)
        {
            _disk = _disk!.Crash(_random.Next());
            _disk.Faults = Faults();
            _engine = NewEngine();
            await LiveAsync();
        }
    }

    private InferenceEngine NewEngine()
    {
        _left = _random.Next(1, 20);
        return new(_model, _backend, r => new LetterText(r), _options, _time, NullLogger.Instance);
    }

    // A disk that cannot be opened is the operator's business; after that it may do what it likes.
    private Func<DiskOperation, long, DiskFault> Faults()
    {
        var random = new Random(_random.Next());
        return (operation, _) => operation is DiskOperation.List or DiskOperation.OpenRead || random.NextDouble() >= _faultRate
            ? DiskFault.None : (DiskFault)random.Next(1, 6);
    }

    private async Task LiveAsync()
    {
        _engine.Open();
        double arrivalRate = _random.NextDouble();
        while (_left > 0 || _random.Next(6) != 0)
        {
            while (_left > 0 && _random.NextDouble() < arrivalRate) Submit();
            _time.Advance(TimeSpan.FromMilliseconds(_random.Next(0, 20)));
            Step();
            foreach (var client in _clients) Act(client);
        }
        await DrainAsync();
        foreach (var client in _clients)
        {
            client.Stream.MustAgreeWith(SoloRun.Of(_model, client.Stream.Request));
            var usage = client.Stream.End!.Usage;
            CachedTokens += usage.CachedTokens;
            DiskTokens += usage.DiskTokens;
            Assert.InRange(usage.CachedTokens, 0, client.Stream.Request.PromptTokenIds.Count - 1);
            Assert.InRange(usage.DiskTokens, 0, usage.CachedTokens);
            Ends[client.Stream.End.Reason] = Ends.GetValueOrDefault(client.Stream.End.Reason) + 1;
            _conversations.Add([.. client.Stream.Request.PromptTokenIds, .. client.Stream.Tokens]);
        }
        Stats.Add(_engine.Stats);
        _clients.Clear();
        Assert.Equal(0, _backend.LiveBuffers);
    }

    private async Task DrainAsync()
    {
        var stopped = _engine.DrainAsync(Timeout.InfiniteTimeSpan);
        Assert.Equal(RejectionReason.Unavailable, Assert.Throws<RequestRejectedException>(() => _engine.Submit(Draw())).Reason);
        // Everyone reads now. Nobody waits for more than all the work there is, after every preemption anew.
        int limit = 200 + (_disk is null ? 0 : 2000) + (int)_clients.Sum(c => (long)c.Stream.Request.PromptTokenIds.Count + c.Stream.Request.OutputTokensMax) * 4;
        for (int step = 0; !_engine.TryStop(); step++)
        {
            if (step > limit) Assert.Fail("the engine did not come to its end");
            Step();
            foreach (var client in _clients)
                while (client.Stream.TryRead()) { }
        }
        await stopped;
        foreach (var client in _clients)
        {
            while (client.Stream.TryRead()) { }
            Assert.True(client.Stream.End is not null && client.Stream.Handle.Events.Completion.IsCompleted, "a request has no end");
        }
        Assert.Equal(_clients.Count, _engine.Stats.Finished.Sum());
    }

    private void Submit()
    {
        _left--;
        var request = Draw();
        try
        {
            _clients.Add(new(new(_engine.Submit(request), request), _slowReaders && _random.Next(2) == 0 ? _random.NextDouble() / 4 : 1));
        }
        catch (RequestRejectedException e)
        {
            bool fits = request.PromptTokenIds.Count + request.OutputTokensMax - 1 <= _engine.Cache.SequenceTokensMax;
            Assert.Equal(fits ? RejectionReason.Overloaded : RejectionReason.InvalidRequest, e.Reason);
            bool full = _engine.Queued == _options.QueueMax || e.Message.Contains("of this tenant", StringComparison.Ordinal);
            Assert.True(fits ? e.RetryAfter > TimeSpan.Zero && full : e.Field is "prompt" or "stopping.max_tokens");
            Rejected++;
        }
    }

    private GenerationRequest Draw()
    {
        int room = Math.Min(_engine.Cache.SequenceTokensMax, 300);
        int positions = _random.Next(_disk is null ? 12 : 2) == 0 ? _random.Next(1, room + 20) : _random.Next(1, Math.Min(room, 120) + 1);
        int output = _random.Next(1, Math.Min(positions, 60) + 1);
        var sampling = _random.Next(3) switch
        {
            0 => SamplingParams.Greedy,
            1 => new(1, 0, 1, 0, 1, 0, 0, (ulong)_random.NextInt64()),
            _ => new(0.8f, 20, 0.9f, 0.02f, 1.2f, 0.3f, 0.1f, (ulong)_random.NextInt64()),
        };
        return new()
        {
            RequestId = $"r{_clients.Count}",
            PromptTokenIds = Prompt(positions + 1 - output),
            Tenant = _random.Next(4) == 0 ? "other" : "",
            OutputTokensMax = output,
            Sampling = sampling,
            StopTokenIds = _random.Next(3) == 0 ? [1, 2, 3, 4, 5, 6] : [],
            StopStrings = _random.Next(3) == 0 ? ["ab", "c", "xyz"] : [],
            IncludeStop = _random.Next(2) == 0,
            Priority = _random.Next(3) == 0 ? _random.Next(GenerationRequest.PriorityMin, GenerationRequest.PriorityMax + 1) : 0,
            Deadline = _random.Next(8) == 0 ? _time.GetUtcNow() + TimeSpan.FromMilliseconds(_random.Next(0, 600)) : null,
            FirstTokenDeadline = _random.Next(8) == 0 ? _time.GetUtcNow() + TimeSpan.FromMilliseconds(_random.Next(0, 300)) : null,
        };
    }

    // Half of them begin as an earlier conversation did: the whole of it, or to where it is edited.
    private int[] Prompt(int length)
    {
        int[] prompt = [.. Enumerable.Range(0, length).Select(_ => _random.Next(Vocab))];
        if (_clients.Count + _conversations.Count == 0 || _random.Next(_disk is null ? 2 : 6) == 0) return prompt;
        int at = _random.Next(_clients.Count + _conversations.Count);
        int[] conversation = at < _conversations.Count
            ? [.. _conversations[at]]
            : [.. _clients[at - _conversations.Count].Stream.Request.PromptTokenIds, .. _clients[at - _conversations.Count].Stream.Tokens];
        int common = Math.Min(length, _random.Next(_disk is null ? 2 : 4) > 0 ? conversation.Length : _random.Next(1, conversation.Length + 1));
        conversation.AsSpan(0, common).CopyTo(prompt);
        return prompt;
    }

    private void Act(Client client)
    {
        if (client.Stream.End is not null) return;
        for (int i = 0; i < 3 && _random.NextDouble() < client.Appetite; i++) client.Stream.TryRead();
        if (client.Cancelled || _random.Next(80) != 0) return;
        client.Stream.Handle.Cancel();
        client.Cancelled = true;
    }

    private void Step()
    {
        var cancelled = _clients.Where(c => c.Cancelled && c.Stream.End is null).ToList();
        RunDisk();
        _engine.Step();
        var live = _engine.Scheduler.Running.Concat(_engine.Scheduler.Waiting).ToList();
        PageLedger.Check(_engine.Cache, live);
        PoisonFreePages();
        foreach (var client in _clients)
            if (client.Stream.Handle.Events.Count > _options.OutboxMax + 2) Assert.Fail("an outbox grew beyond its limit");
        // Cancelled before this step: the end is in the outbox.
        foreach (var client in cancelled)
        {
            while (client.Stream.TryRead()) { }
            if (client.Stream.End is null) Assert.Fail("a cancelled request outlived a step");
        }
        if (_engine.Queued != live.Count(s => !s.Started)) Assert.Fail("the gate counts others than those who wait for their first step");
        if (_engine.Stats.Running + _engine.Stats.Waiting != live.Count) Assert.Fail("the statistics are not those of this step");
    }

    private void RunDisk()
    {
        if (_engine.Cache.Prefixes?.Tier is not { } tier || _engine.State == EngineState.Stopped) return;
        bool draining = _engine.State == EngineState.Draining;
        for (double speed = _diskSpeed + (draining ? 1 : 0); speed > 0 && _random.NextDouble() < speed; speed--) tier.RunDisk();
    }

    private unsafe void PoisonFreePages()
    {
        foreach (var pool in _engine.Cache.Pools)
            for (int page = 0; page < pool.PageCount; page++)
                if (pool.References(page) == 0)
                    new Span<float>(pool.Tensor.F32(page), (int)pool.Tensor.RowElements).Fill(float.NaN);
    }

    public async ValueTask DisposeAsync()
    {
        // After a failure nobody steps it to its end any more: waiting for that would hide the failure.
        if (_engine.State == EngineState.Stopped) await _engine.DisposeAsync();
        _model.Dispose();
        _backend.Dispose();
    }
}

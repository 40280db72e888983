using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Inference.Testing;
using Xunit;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Runtime.Tests.Scheduling;

/// <summary>
/// One seeded life of a scheduler with a cache that keeps no numbers: a drawn configuration and workload under virtual time, every
/// plan and every page checked after each step, then a second phase without arrivals, stalls or cancellations in which everyone must end
/// within a computed bound.
/// </summary>
internal sealed class SchedulerSimulation : IDisposable
{
    private readonly Random _random;
    private readonly SchedulerLimits _limits;
    private readonly KvCacheManager _cache;
    private readonly Scheduler _scheduler;
    private readonly bool _stalls;
    private readonly List<Sequence> _all = [], _live = [];
    private readonly Dictionary<Sequence, int> _bound = [];  // step by which it must have ended, in runs without stalls
    private readonly HashSet<Sequence> _ended = [], _planned = [];
    private readonly List<SchedulerEvent> _events = [];
    private long _now, _lastStarted;
    private int _step;
    private ulong _trace = 14695981039346656037;

    public SchedulerSimulation(int seed)
    {
        _random = new(seed);
        int sequences = _random.Next(1, 9);
        _limits = new(sequences, sequences + _random.Next(0, 40), _random.Next(3) switch { 0 => 0, 1 => _random.Next(1, 12), _ => 256 });
        var states = new HashModel(pageRows: 1 << _random.Next(0, 4)).KvStates;
        _cache = new(states, new(_random.Next(8, 160), sequences, _limits.StepTokensMax, _random.Next(2) * _random.Next(1, 9)), null);
        _scheduler = new(_limits, _cache);
        _stalls = _random.Next(2) == 0;
    }

    public int Steps => _step;
    public int Preemptions { get; private set; }
    public int Hits { get; private set; }

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
        int limit = _step + _live.Sum(s => s.PositionsMax) + 1;
        while (_ended.Count < _all.Count)
        {
            Assert.True(_step < limit, "not everyone ended within the work that was left");
            Step();
        }
        while (_cache.Prefixes?.Reclaim() == true) { }
        Assert.All(_cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
        Assert.Equal(0, _cache.Prefixes?.NodeCount ?? 0);
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
        var path = _cache.Prefixes is null ? null : PrefixPath.Begin(_random.Next(3) == 0 ? "b" : "a");
        var sequence = new Sequence(_all.Count + 1, prompt, output, deadline, _cache.CreateTable(), path);
        _all.Add(sequence);
        _live.Add(sequence);
        _bound[sequence] = _step + _live.Sum(s => s.PositionsMax);
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
        CheckPlan(batch, decoding);
        PageLedger.Check(_cache, _all);
        if (batch.Chunks.Count == 0) return;
        var finished = _scheduler.Retire([.. batch.Chunks.Where(c => c.Samples).Select(_ => Outcome())]);
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
        Check(_stalls || _step <= _bound[sequence], "a sequence waited longer than for the work ahead of it");
        _live.Remove(sequence);
    }

    private void CheckPlan(ScheduledBatch batch, List<Sequence> decoding)
    {
        _planned.Clear();
        int tokens = 0;
        foreach (var chunk in batch.Chunks)
        {
            var sequence = chunk.Sequence;
            tokens += chunk.Count;
            Check(_planned.Add(sequence), "a sequence is planned twice");
            Check(chunk.Count > 0 && chunk.Start == sequence.Processed && !sequence.Stalled, "a chunk is not the next one");
            Check(sequence.State == SequenceState.Prefilling || chunk is { Count: 1, Samples: true }, "a decode is not of one token");
            Check(chunk.Samples == (chunk.Start + chunk.Count == sequence.Length), "sampling in the middle");
            Check(sequence.Deadline > _now, "an expired sequence runs");
            Mix(sequence.Arrival);
            Mix(chunk.Count);
        }
        Check(tokens == batch.TokenCount && tokens <= _limits.StepTokensMax, "the token budget is broken");
        Check(_scheduler.Running.Count <= _limits.SequencesMax, "too many sequences run");
        foreach (var s in decoding)
            Check(_planned.Contains(s) || s.Stalled || s.State == SequenceState.Finished || batch.Preempted.Contains(s), "a decode was left out");
        foreach (var started in batch.Started)
        {
            Check(started.Arrival > _lastStarted, "a request overtook another");
            _lastStarted = started.Arrival;
            Check(started.CachedTokens < started.PromptLength, "a whole prompt was taken from the cache");
            if (started.CachedTokens > 0) Hits++;
        }
        CheckProgress();
    }

    private void CheckProgress()
    {
        Sequence? oldest = null;
        foreach (var s in _scheduler.Running)
            if (!s.Stalled) oldest ??= s;
        if (oldest is not null) Check(_planned.Contains(oldest), "the oldest running sequence did not get on");
        else
            foreach (var s in _scheduler.Waiting) Check(s.Stalled, "someone could run and nobody does");
        if (!_stalls && _scheduler.Running.Count > 0 && _scheduler.Waiting.Count > 0)
            Check(_scheduler.Running[^1].Arrival < _scheduler.Waiting[0].Arrival, "someone runs ahead of an older one");
    }

    private static void Check(bool holds, string otherwise)
    {
        if (!holds) Assert.Fail(otherwise);
    }

    private void Mix(long value) => _trace = (_trace ^ (ulong)value) * 1099511628211;
}

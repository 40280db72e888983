using System.Collections.Concurrent;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Time.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

/// <summary>The engine with its own thread. Nothing here sleeps: each wait is for an event that must come.</summary>
public sealed class InferenceEngineTests : IAsyncDisposable
{
    private static readonly EngineOptions Small = new()
    {
        KvCapacityTokens = 2048,
        SequencesMax = 16,
        StepTokensMax = 64,
        QueueMax = 128,
        OutboxMax = 16,
    };

    private readonly HostMemoryBackend _backend = new();
    private readonly HashModel _model = new(pageRows: 8) { NanToken = 63 };
    private readonly FakeTimeProvider _time = new();
    private readonly List<Action> _atEnd = [];  // what a failed test leaves held would keep the engine from stopping, and hide the failure
    private InferenceEngine? _engine;
    private int _requests;

    // What does not come within this never comes.
    private static readonly TimeSpan Limit = TimeSpan.FromMinutes(1);
    private readonly CancellationTokenSource _patience = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);

    public InferenceEngineTests() => _patience.CancelAfter(Limit);

    private CancellationToken Patience => _patience.Token;

    private InferenceEngine Make(EngineOptions? options = null, Func<GenerationRequest, ISequenceText>? text = null) =>
        _engine = new(_model, _backend, text ?? (r => new LetterText(r)), options ?? Small, _time, NullLogger.Instance);

    private async Task<InferenceEngine> StartAsync(EngineOptions? options = null, Func<GenerationRequest, ISequenceText>? text = null)
    {
        var engine = Make(options, text);
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        return engine;
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var action in _atEnd) action();
        if (_engine is not null) await _engine.DisposeAsync().AsTask().WaitAsync(Limit);
        _patience.Dispose();
        Assert.Equal(0, _backend.LiveBuffers);
    }

    private GenerationRequest Request(int prompt = 5, int output = 20, int seed = 0) => new()
    {
        RequestId = $"r{Interlocked.Increment(ref _requests)}",
        PromptTokenIds = [.. Enumerable.Range(0, prompt).Select(i => (i * 7 + seed) % 62)],
        OutputTokensMax = output,
        Sampling = new(1, 0, 1, 0, 1, 0, 0, (ulong)seed),
    };

    // A prompt whose answer meets no NaN on its way.
    private GenerationRequest Harmless(int output, int prompt = 5)
    {
        for (int seed = 0; ; seed++)
        {
            var request = Request(prompt, output, seed);
            if (SoloRun.Of(_model, request).Reason == FinishReason.Length) return request;
        }
    }

    private static StreamRecord Submit(InferenceEngine engine, GenerationRequest request) => new(engine.Submit(request), request);

    [Fact]
    public async Task An_answer_is_the_one_the_request_determines_and_its_pages_are_free_when_the_end_is_seen()
    {
        var engine = await StartAsync();
        var request = Harmless(30, prompt: 150);
        var stream = Submit(engine, request);
        await stream.ReadToEndAsync(Patience);
        Assert.All(engine.Stats.Kv, p => Assert.Equal(p.TotalPages, p.FreePages));
        Assert.Equal((1, 30L, 150L, 0), (engine.Stats.Accepted, engine.Stats.OutputTokens, engine.Stats.PromptTokens, engine.Stats.Running));
        stream.MustAgreeWith(SoloRun.Of(_model, request));
    }

    [Fact]
    public async Task Sixty_four_streams_at_once_with_random_cancellations_each_get_their_own_answer()
    {
        var engine = await StartAsync(Small with { KvCapacityTokens = 640, OutboxMax = 4 });
        await Parallel.ForEachAsync(Enumerable.Range(0, 64), new ParallelOptions { MaxDegreeOfParallelism = 64 }, async (client, _) =>
        {
            var random = new Random(client);
            for (int round = 0; round < 4; round++)
            {
                var stream = Submit(engine, Request(random.Next(1, 90), random.Next(1, 40), client * 100 + round));
                if (random.Next(3) == 0)
                {
                    // Cancels after a drawn number of events, or as soon as it was submitted.
                    for (int events = random.Next(0, 12); events > 0 && await stream.Handle.Events.WaitToReadAsync(Patience); events--)
                        stream.TryRead();
                    stream.Handle.Cancel();
                }
                await stream.ReadToEndAsync(Patience);
                stream.MustAgreeWith(SoloRun.Of(_model, stream.Request));
            }
        });
        Assert.Equal(256, engine.Stats.Finished.Sum());
        Assert.Equal((0, 0, 0), (engine.Stats.Running, engine.Stats.Waiting, engine.Queued));
        Assert.All(engine.Stats.Kv, p => Assert.Equal(p.TotalPages, p.FreePages));
    }

    [Fact]
    public async Task Seeded_sampling_does_not_depend_on_what_else_runs()
    {
        var engine = await StartAsync();
        var request = Harmless(40);
        var alone = await Submit(engine, request).ReadToEndAsync(Patience);
        var crowd = Enumerable.Range(1, 30).Select(i => Submit(engine, Request(i * 3, 40, i)).ReadToEndAsync(Patience)).ToList();
        var together = await Submit(engine, request).ReadToEndAsync(Patience);
        await Task.WhenAll(crowd);
        Assert.Equal(alone.Tokens, together.Tokens);
    }

    [Fact]
    public async Task Logprobs_are_those_of_the_raw_logits()
    {
        var engine = await StartAsync();
        var request = Harmless(5) with { TopLogprobs = 3 };
        var stream = await Submit(engine, request).ReadToEndAsync(Patience);
        Assert.Equal(5, stream.Logprobs.Count);
        var logits = new float[64];
        List<int> prefix = [.. request.PromptTokenIds];
        foreach (var logprobs in stream.Logprobs)
        {
            _model.Logits(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(prefix), logits);
            double logSum = Math.Log(logits.Sum(l => Math.Exp(l)));
            var best = logits.Select((l, id) => (l, id)).OrderByDescending(x => x.l).ThenBy(x => x.id).Take(3).ToList();
            Assert.Equal(best.Select(x => x.id), logprobs.Top.Select(t => t.TokenId));
            Assert.All(logprobs.Top, t => Assert.Equal(logits[t.TokenId] - logSum, t.Logprob, 1e-5));
            Assert.Equal(logits[logprobs.TokenId] - logSum, logprobs.Logprob, 1e-5);
            prefix.Add(logprobs.TokenId);
        }
        Assert.Equal(stream.Tokens, stream.Logprobs.Select(l => l.TokenId));
    }

    [Fact]
    public async Task A_reader_that_does_not_read_slows_only_itself()
    {
        var engine = await StartAsync(Small with { SequencesMax = 2, OutboxMax = 4 });
        var slow = Submit(engine, Harmless(50));
        // Many more than the other place could serve if the slow one kept the engine waiting.
        for (int i = 0; i < 10; i++) await Submit(engine, Request(10, 30, i)).ReadToEndAsync(Patience);
        Assert.InRange(slow.Handle.Events.Count, 4, 6);
        Assert.Equal(1, engine.Stats.Stalled);
        await slow.ReadToEndAsync(Patience);
        slow.MustAgreeWith(SoloRun.Of(_model, slow.Request));
    }

    [Fact]
    public async Task Readers_that_do_not_read_cannot_occupy_every_place()
    {
        var engine = await StartAsync(Small with { SequencesMax = 2, OutboxMax = 2 });
        var slow = Enumerable.Range(0, 5).Select(_ => Submit(engine, Harmless(30))).ToList();
        await Submit(engine, Request(10, 30, 77)).ReadToEndAsync(Patience);
        foreach (var stream in slow) (await stream.ReadToEndAsync(Patience)).MustAgreeWith(SoloRun.Of(_model, stream.Request));
    }

    [Fact]
    public async Task A_client_that_went_away_without_reading_is_forgotten()
    {
        var engine = await StartAsync(Small with { OutboxMax = 2 });
        for (int i = 0; i < 20; i++) engine.Submit(Request(10, 400, i)).Dispose();
        await engine.DrainAsync(Timeout.InfiniteTimeSpan).WaitAsync(Patience);
        Assert.Equal(20, engine.Stats.Finished[(int)FinishReason.Cancelled]);
    }

    [Fact]
    public async Task Nan_logits_end_only_their_own_sequence()
    {
        var engine = await StartAsync();
        var good = Submit(engine, Harmless(40));
        var bad = Submit(engine, Request() with { PromptTokenIds = [1, 2, 63] });
        await bad.ReadToEndAsync(Patience);
        Assert.Equal(FinishReason.Error, bad.End!.Reason);
        Assert.Contains("NaN", bad.End.Error, StringComparison.Ordinal);
        (await good.ReadToEndAsync(Patience)).MustAgreeWith(SoloRun.Of(_model, good.Request));
        Assert.Equal(EngineState.Ready, engine.State);
    }

    [Fact]
    public async Task A_detokenizer_that_throws_ends_only_its_own_sequence()
    {
        var engine = await StartAsync(text: r => r.Tenant == "bad" ? new BrokenText() : new LetterText(r));
        var bad = await Submit(engine, Request() with { Tenant = "bad" }).ReadToEndAsync(Patience);
        Assert.Equal((FinishReason.Error, 0), (bad.End!.Reason, bad.Tokens.Count));
        Assert.DoesNotContain("secret", bad.End.Error, StringComparison.Ordinal);
        await Submit(engine, Request()).ReadToEndAsync(Patience);
    }

    private sealed class BrokenText : ISequenceText
    {
        public TextPiece Push(int tokenId) => throw new InvalidOperationException("secret");
        public string Flush() => throw new InvalidOperationException("secret");
    }

    [Fact]
    public async Task A_device_that_fails_leaves_nobody_waiting()
    {
        var engine = Make(Small with { SequencesMax = 4 });
        // The step in which several run, some wait, and some were submitted while it ran.
        var (inStep, mayFail) = (new ManualResetEventSlim(), new ManualResetEventSlim());
        _atEnd.Add(mayFail.Set);
        _model.BeforeStep = step =>
        {
            if (step != 8) return;
            inStep.Set();
            mayFail.Wait(Patience);
            throw new BackendException(BackendErrorKind.Device, "the device is gone");
        };
        var states = new ConcurrentQueue<EngineState>();
        engine.StateChanged += states.Enqueue;
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        var streams = Enumerable.Range(0, 10).Select(i => Submit(engine, Harmless(100))).ToList();
        inStep.Wait(Patience);
        streams.AddRange(Enumerable.Range(0, 10).Select(i => Submit(engine, Request())));
        mayFail.Set();
        foreach (var stream in streams)
        {
            await stream.ReadToEndAsync(Patience);
            Assert.Equal(FinishReason.Error, stream.End!.Reason);
        }
        await engine.WhenStopped.WaitAsync(Patience);
        Assert.Equal(EngineState.Failed, engine.State);
        Assert.IsType<BackendException>(engine.Failure);
        Assert.Equal([EngineState.Ready, EngineState.Failed], states);
        Assert.Equal(RejectionReason.Unavailable, Assert.Throws<RequestRejectedException>(() => engine.Submit(Request())).Reason);
        await engine.DrainAsync(TimeSpan.FromHours(1)).WaitAsync(Patience);
        Assert.Equal(EngineState.Failed, engine.State);
    }

    [Fact]
    public async Task A_model_that_cannot_make_its_first_step_never_becomes_ready()
    {
        _model.BeforeStep = _ => throw new BackendException(BackendErrorKind.Capacity, "no memory");
        var engine = Make();
        engine.Start();
        Assert.Equal("no memory", (await Assert.ThrowsAsync<BackendException>(() => engine.WhenReady.WaitAsync(Patience))).Message);
        Assert.Equal(EngineState.Failed, engine.State);
    }

    [Fact]
    public async Task Requests_are_refused_before_the_first_step_and_after_the_stop()
    {
        var engine = Make();
        Assert.Equal(RejectionReason.Unavailable, Assert.Throws<RequestRejectedException>(() => engine.Submit(Request())).Reason);
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        await engine.DrainAsync(TimeSpan.Zero).WaitAsync(Patience);
        Assert.Equal(EngineState.Stopped, engine.State);
        Assert.Equal(RejectionReason.Unavailable, Assert.Throws<RequestRejectedException>(() => engine.Submit(Request())).Reason);
        Assert.Throws<InvalidOperationException>(engine.Start);
    }

    [Fact]
    public async Task An_engine_that_was_never_started_stops_too()
    {
        var engine = Make();
        await engine.DisposeAsync();
        Assert.Equal(EngineState.Stopped, engine.State);
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => engine.WhenReady);
    }

    [Fact]
    public async Task Draining_loses_none_of_the_accepted_answers_and_takes_no_more()
    {
        var engine = await StartAsync();
        var states = new ConcurrentQueue<EngineState>();
        engine.StateChanged += states.Enqueue;
        var streams = Enumerable.Range(0, 40).Select(i => Submit(engine, Request(20, 30, i))).ToList();
        var stopped = engine.DrainAsync(Timeout.InfiniteTimeSpan);
        Assert.Equal(RejectionReason.Unavailable, Assert.Throws<RequestRejectedException>(() => engine.Submit(Request())).Reason);
        foreach (var stream in streams) (await stream.ReadToEndAsync(Patience)).MustAgreeWith(SoloRun.Of(_model, stream.Request));
        await stopped.WaitAsync(Patience);
        Assert.DoesNotContain(streams, s => s.End!.Reason is FinishReason.Cancelled or FinishReason.DeadlineExceeded);
        Assert.Equal([EngineState.Draining, EngineState.Stopped], states);
    }

    [Fact]
    public async Task A_draining_engine_stops_when_its_last_request_is_cancelled()
    {
        for (int round = 0; round < 20; round++)
        {
            var engine = await StartAsync(Small with { OutboxMax = 4 });
            var stuck = Submit(engine, Harmless(100));  // its reader does not read, so only the cancellation ends it, in a step that runs nothing
            var stopped = engine.DrainAsync(Timeout.InfiniteTimeSpan);
            while (stuck.Handle.Events.Count < 4) await Task.Yield();
            stuck.Handle.Cancel();
            await stopped.WaitAsync(Patience);
            await stuck.ReadToEndAsync(Patience);
            Assert.Equal(FinishReason.Cancelled, stuck.End!.Reason);
        }
    }

    [Fact]
    public async Task What_outlives_the_drain_limit_is_told_so()
    {
        var engine = await StartAsync(Small with { OutboxMax = 4 });
        var stuck = Submit(engine, Harmless(100));  // its reader does not read, so it cannot end by itself
        var stopped = engine.DrainAsync(TimeSpan.FromSeconds(30));
        Assert.False(stopped.IsCompleted);
        _time.Advance(TimeSpan.FromSeconds(31));
        await stopped.WaitAsync(Patience);
        await stuck.ReadToEndAsync(Patience);
        Assert.Equal(FinishReason.Error, stuck.End!.Reason);
        Assert.Contains("stopped", stuck.End.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Submissions_that_race_a_drain_are_answered_or_refused()
    {
        for (int round = 0; round < 30; round++)
        {
            var engine = await StartAsync();
            var clients = Enumerable.Range(0, 4).Select(client => Task.Run(async () =>
            {
                for (int i = 0; ; i++)
                {
                    try
                    {
                        await Submit(engine, Request(3, 3, i)).ReadToEndAsync(Patience);
                    }
                    catch (RequestRejectedException e)
                    {
                        return e.Reason;
                    }
                }
            }, Patience)).ToList();
            await Submit(engine, Request(3, round + 1)).ReadToEndAsync(Patience);
            await engine.DrainAsync(Timeout.InfiniteTimeSpan).WaitAsync(Patience);
            Assert.All(await Task.WhenAll(clients), r => Assert.Equal(RejectionReason.Unavailable, r));
            Assert.Equal(engine.Stats.Accepted, engine.Stats.Finished.Sum());
        }
    }

    [Fact]
    public async Task A_deadline_wakes_an_idle_engine()
    {
        var engine = await StartAsync(Small with { OutboxMax = 4 });
        var stuck = Submit(engine, Harmless(100) with { Deadline = _time.GetUtcNow() + TimeSpan.FromSeconds(5) });
        while (stuck.Handle.Events.Count < 4) await Task.Yield();
        _time.Advance(TimeSpan.FromSeconds(6));
        await stuck.ReadToEndAsync(Patience);
        Assert.Equal(FinishReason.DeadlineExceeded, stuck.End!.Reason);
        Assert.InRange(stuck.End.Timings.Total, TimeSpan.FromSeconds(5), TimeSpan.FromSeconds(6));
    }

    [Fact]
    public async Task A_full_queue_refuses_at_once_and_says_when_to_come_again()
    {
        var engine = Make(Small with { SequencesMax = 1, QueueMax = 3 });
        var (hold, inStep) = (new ManualResetEventSlim(), new ManualResetEventSlim());
        _atEnd.Add(hold.Set);
        _model.BeforeStep = step =>
        {
            if (step != 1) return;
            inStep.Set();
            hold.Wait(Patience);
        };
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        var streams = new List<StreamRecord> { Submit(engine, Request()) };
        inStep.Wait(Patience);
        for (int i = 0; i < 3; i++) streams.Add(Submit(engine, Request()));
        var refusal = Assert.Throws<RequestRejectedException>(() => engine.Submit(Request()));
        Assert.Equal((RejectionReason.Overloaded, TimeSpan.FromSeconds(1)), (refusal.Reason, refusal.RetryAfter));
        Assert.Equal(3, engine.Queued);
        hold.Set();
        foreach (var stream in streams) await stream.ReadToEndAsync(Patience);
        Assert.Equal(0, engine.Queued);
    }

    [Fact]
    public async Task A_handler_that_throws_harms_nothing()
    {
        var engine = Make();
        engine.StateChanged += _ => throw new InvalidOperationException("handler");
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        await Submit(engine, Request()).ReadToEndAsync(Patience);
    }

    [Fact]
    public async Task Times_are_measured_from_the_submission()
    {
        var engine = Make();
        _model.BeforeStep = step => _time.Advance(TimeSpan.FromSeconds(step == 0 ? 0 : 2));
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        var stream = await Submit(engine, Harmless(3)).ReadToEndAsync(Patience);
        Assert.Equal(
            new GenerationTimings(TimeSpan.Zero, TimeSpan.FromSeconds(2), TimeSpan.FromSeconds(6)), stream.End!.Timings);
        Assert.Equal((TimeSpan.FromSeconds(2), _time.GetUtcNow()), (engine.Stats.LastStepDuration, engine.Stats.LastStepAt!.Value));
    }
}

using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Xunit;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Runtime.Tests.Scheduling;

public sealed class SchedulerTests : IDisposable
{
    // Pages of 4 tokens; capacity gives tokens / 4 + sequences of them.
    private static readonly KvStateSpec Kind = new("rows", 1, 1, 1, KvRetention.All, 0, 0, 4);
    private KvCacheManager _cache = null!;
    private Scheduler _scheduler = null!;
    private long _arrivals;

    private void Make(int sequences = 4, int stepTokens = 16, int pages = 100, int headroom = 0, int preemptions = 3)
    {
        _cache = new([Kind], new((pages - sequences) * 4, sequences, stepTokens), null);
        _scheduler = new(
            new(sequences, stepTokens, headroom)
            {
                PreemptionsMax = preemptions,
                PriorityAhead = 100,
                TenantWeights = new Dictionary<string, double> { ["gold"] = 3 },
            },
            _cache);
    }

    public void Dispose() => _cache.Dispose();

    private Sequence New(
        int prompt, int output = 10, long deadline = long.MaxValue, string tenant = "", int priority = 0, long firstToken = long.MaxValue) =>
        new(++_arrivals, new int[prompt], output, deadline, _cache.CreateTable())
        {
            Tenant = tenant,
            Priority = priority,
            FirstTokenDeadline = firstToken,
        };

    private static SchedulerEvent[] Submit(params Sequence[] sequences) => [.. sequences.Select(SchedulerEvent.Submitted)];

    private string Step(params SchedulerEvent[] events) => StepAt(0, events);

    // The plan in words, e.g. "1:0+8 2:5+1*": sequence:start+count, * = samples.
    private string StepAt(long now, params SchedulerEvent[] events) => StepAt(now, 0, events);

    private string StepAt(long now, long ticks, params SchedulerEvent[] events)
    {
        var batch = _scheduler.Step(events, now);
        string plan = string.Join(' ', batch.Chunks.Select(c => $"{c.Sequence.Arrival}:{c.Start}+{c.Count}{(c.Samples ? "*" : "")}"));
        if (batch.Chunks.Count > 0) _scheduler.Retire([.. batch.Chunks.Where(c => c.Samples).Select(_ => new ChunkOutcome(7, false))], ticks);
        return plan;
    }

    [Fact]
    public void A_long_prompt_comes_in_chunks_and_decodes_go_on_beside_it()
    {
        Make(stepTokens: 8);
        Assert.Equal("1:0+2*", Step(Submit(New(2))));
        Assert.Equal("1:2+1* 2:0+7", Step(Submit(New(20))));
        Assert.Equal("1:3+1* 2:7+7", Step());
        Assert.Equal("1:4+1* 2:14+6*", Step());
        Assert.Equal("1:5+1* 2:20+1*", Step());
    }

    [Fact]
    public void Half_of_a_step_goes_to_the_shortest_prompts_and_the_rest_to_the_oldest()
    {
        Make(stepTokens: 16);
        Assert.Equal("1:0+5* 2:0+4* 3:0+4 4:0+3*", Step(Submit(New(5), New(4), New(9), New(3))));
        Assert.Equal("1:5+1* 2:4+1* 3:4+5* 4:3+1*", Step());
    }

    [Fact]
    public void A_short_prompt_beside_a_long_one_takes_no_more_than_twice_its_steps()
    {
        Make(sequences: 8, stepTokens: 8, pages: 300);
        var (old, young) = (New(1000), New(17));
        for (int i = 0; i < 10; i++) Step(i == 0 ? Submit(old) : []);
        Assert.Equal("1:80+4 2:0+4", Step(Submit(young)));
        for (int i = 0; i < 3; i++) Step();
        Assert.Equal("1:96+7 2:16+1*", Step());   // 17 tokens at 4 a step
        Assert.Equal("1:103+7 2:17+1*", Step());
    }

    [Fact]
    public void A_long_prompt_that_finds_no_tokens_takes_no_place_from_short_ones()
    {
        Make(sequences: 2, stepTokens: 8, pages: 200);
        Assert.Equal("1:0+4 3:0+4", Step(Submit(New(200), New(300), New(10, 1))));
        Assert.Equal("1:4+4 3:4+4", Step());
        // As many as come, beside the first long one: the second loses nothing by it.
        for (int i = 0; i < 40; i++) Step(Submit(New(4, 1)));
        Assert.Equal([2L, 43L], _scheduler.Waiting.Select(s => s.Arrival));  // the last came just now
        Assert.Equal(0, _scheduler.Waiting[0].Bypassed);
    }

    [Fact]
    public void The_next_place_goes_to_the_tenant_that_had_least_for_its_weight()
    {
        Make(sequences: 1, stepTokens: 8);
        var requests = Enumerable.Range(0, 12).Select(i => New(2, 1, tenant: i < 8 ? "gold" : "a")).ToArray();
        var order = new List<long>();
        for (int i = 0; i < 12; i++)
        {
            var batch = _scheduler.Step(i == 0 ? Submit(requests) : [], 0);
            order.AddRange(batch.Started.Select(s => s.Arrival));
            _scheduler.Retire([new(7, false)]);
        }
        // Each costs 3 tokens, of gold's account one: three of gold's for one of the other's.
        Assert.Equal([1, 9, 2, 3, 4, 10, 5, 6, 7, 11, 8, 12], order);
    }

    [Fact]
    public void A_tenant_that_comes_late_has_saved_nothing_up_and_owes_nothing()
    {
        Make(sequences: 1, stepTokens: 8);
        var flood = Enumerable.Range(0, 10).Select(_ => New(4, 1, tenant: "a")).ToArray();
        for (int i = 0; i < 4; i++) Step(i == 0 ? Submit(flood) : []);
        Assert.Equal("11:0+2*", Step(Submit(New(2, 1, tenant: "b"), New(2, 1, tenant: "b"))));  // ahead of the six that wait
        Assert.Equal("12:0+2*", Step());  // 3 tokens against 5 of the one that ran last
        Assert.Equal("5:0+4*", Step());
    }

    [Fact]
    public void A_prompt_that_is_given_up_costs_its_tenant_only_what_was_computed_of_it()
    {
        Make(sequences: 1, stepTokens: 8);
        var given = New(200, 1, tenant: "a");
        Step(Submit(given, New(4, 1, tenant: "b"), New(4, 1, tenant: "b"), New(4, 1, tenant: "b"), New(4, 1, tenant: "b"), New(4, 1, tenant: "a")));
        var account = given.Account;
        Assert.Equal(200, account.Had);
        Assert.Equal("2:0+4*", Step(SchedulerEvent.Cancelled(given)));
        Assert.Equal(8, account.Had);
        Assert.Equal("3:0+4*", Step());      // b has had 5
        Assert.Equal("6:0+4*", Step());      // b 10, a 8
    }

    [Fact]
    public void Priority_goes_ahead_of_what_its_tenant_asked_for_shortly_before_and_of_nothing_older()
    {
        Make(sequences: 1, stepTokens: 8);
        StepAt(0, Submit(New(1, 100)));
        StepAt(1000, Submit(New(1, 1, priority: -1)));
        StepAt(1050, Submit(New(1, 1)));
        StepAt(1199, Submit(New(1, 1, priority: 1)));
        StepAt(1201, Submit(New(1, 1, priority: 1)));
        Assert.Equal([3L, 4L, 2L, 5L], Drain());  // as if they came at 1050, 1099, 1100, 1101

        long[] Drain()
        {
            _scheduler.Step([SchedulerEvent.Cancelled(_scheduler.Running[0])], 2000);
            var order = new List<long>();
            for (int i = 0; i < 4; i++)
            {
                if (i > 0) _scheduler.Step([], 2000);
                order.AddRange(_scheduler.Running.Select(s => s.Arrival));
                _scheduler.Retire([new(7, false)]);
            }
            return [.. order];
        }
    }

    [Fact]
    public void Who_lost_its_pages_often_enough_comes_back_with_room_to_its_end_and_keeps_it()
    {
        Make(sequences: 2, pages: 6, stepTokens: 24, preemptions: 1);
        var (a, b) = (New(8, 16), New(8, 16));  // 23 positions, 6 pages, each
        Step(Submit(a, b));
        while (b.Preemptions == 0) Step();
        Assert.Equal(SequenceState.Waiting, b.State);
        Assert.DoesNotContain("2:", Step());     // pages for what it has would be free before all are
        while (a.State != SequenceState.Finished) Assert.DoesNotContain("2:", Step());
        Assert.StartsWith("2:0+", Step(Submit(New(1))));
        while (b.State != SequenceState.Finished) Assert.DoesNotContain("3:", Step());
        Assert.Equal((1, FinishReason.Length), (b.Preemptions, b.Finish));
    }

    [Fact]
    public void A_request_that_waits_for_pages_is_overtaken_by_no_more_than_it_asks_for()
    {
        Make(pages: 10, stepTokens: 40);
        var (big, blocked) = (New(24, 8), New(20, 2));  // 31 and 21 positions
        Step(Submit(big, blocked, New(4, 5), New(3, 8), New(1, 4)));
        Assert.Equal([1L, 3L, 4L], _scheduler.Running.Select(s => s.Arrival));  // 8 and 10 positions went past it, 4 more would be 22
        Assert.Equal((SequenceState.Waiting, 18L), (blocked.State, blocked.Bypassed));
        while (blocked.State == SequenceState.Waiting) Step();
        Assert.Equal(2L, _scheduler.Running.Single(s => s.Processed > 0 && s.Turn > 3 && s.Length > 10).Arrival);
    }

    [Fact]
    public void The_deadline_of_the_first_token_ends_only_who_has_none()
    {
        Make(sequences: 1);
        var (a, b) = (New(1, 5, firstToken: 50), New(1, 5, firstToken: 50));
        StepAt(0, Submit(a, b));
        Assert.Equal(50, _scheduler.NextDeadline);
        Assert.Equal("1:1+1*", StepAt(50));
        Assert.Equal((FinishReason.FirstTokenDeadlineExceeded, SequenceState.Decoding), (b.Finish, a.State));
        Assert.Equal(long.MaxValue, _scheduler.NextDeadline);
    }

    [Fact]
    public void A_request_that_could_not_be_in_time_at_twice_the_measured_speed_is_refused_before_any_work()
    {
        Make(stepTokens: 8);
        Step(Submit(New(72, 1)));
        for (int i = 0; i < StepSpeed.SamplesMin; i++) StepAt(0, ticks: 80);  // 10 ticks a token
        var (late, inTime) = (New(40, deadline: 1199), New(40, deadline: 1200));
        Assert.Equal("3:0+8", StepAt(1000, Submit(late, inTime)));
        Assert.Equal((FinishReason.DeadlineUnreachable, false), (late.Finish, late.Started));
        Assert.Equal(new DeadlineEstimate(40, TimeSpan.FromTicks(200), TimeSpan.FromTicks(199)), late.Estimate);
    }

    [Fact]
    public void Nothing_is_refused_before_the_speed_is_known_and_a_queue_is_held_against_nobody()
    {
        Make(sequences: 1, stepTokens: 8);
        var early = New(40, 1, deadline: 1);
        Step(Submit(early));
        Assert.Equal(SequenceState.Prefilling, early.State);
        var (ahead, behind) = (New(400, 1), New(8, 1, firstToken: 100));
        Step([SchedulerEvent.Cancelled(early), .. Submit(ahead)]);
        for (int i = 0; i < StepSpeed.SamplesMin; i++) StepAt(0, ticks: 80);
        StepAt(0, Submit(behind));
        Assert.Equal(SequenceState.Waiting, behind.State);   // 300 tokens are ahead of it, and may be cancelled
        StepAt(60, ticks: 80);
        Assert.Equal(SequenceState.Waiting, behind.State);
        StepAt(61, ticks: 80);
        Assert.Equal(FinishReason.DeadlineUnreachable, behind.Finish);  // its own 8 tokens need 40
    }

    [Fact]
    public void Decodes_come_first_when_an_older_prompt_could_take_the_whole_step()
    {
        Make(stepTokens: 4, pages: 100);
        var (old, young) = (New(30), New(1));
        Assert.Equal("1:0+4", Step(Submit(old)));
        for (int i = 0; i < 6; i++) Step();
        Assert.Equal("1:28+2* 2:0+1*", Step(Submit(young)));
        // The old one stalls, loses its place to nobody, and has to start again behind a decode that never pauses.
        Assert.Equal("2:1+1*", Step(SchedulerEvent.Stalled(old)));
        Assert.Equal("1:30+1* 2:2+1*", Step(SchedulerEvent.Resumed(old)));
    }

    [Fact]
    public void Nobody_as_long_overtakes_a_request_that_waits_for_pages()
    {
        Make(pages: 10, stepTokens: 40);
        Assert.Equal("1:0+24*", Step(Submit(New(24), New(20), New(1, 30))));
        Assert.Equal([2L, 3L], _scheduler.Waiting.Select(s => s.Arrival));
        var first = _scheduler.Running[0];
        Assert.Equal("2:0+20* 3:0+1*", Step(SchedulerEvent.Cancelled(first)));
    }

    [Fact]
    public void Headroom_keeps_a_request_out_until_running_ones_could_grow()
    {
        Make(pages: 10, stepTokens: 40, headroom: 8);
        Assert.Equal("1:0+16*", Step(Submit(New(16, 20), New(9, 20))));  // 16 + 8 = 6 pages, 9 + 8 = 5 pages: 11 of 10
        Assert.Equal([2L], _scheduler.Waiting.Select(s => s.Arrival));
        Make(pages: 11, stepTokens: 40, headroom: 8);
        _arrivals = 0;
        Assert.Equal("1:0+16* 2:0+9*", Step(Submit(New(16, 20), New(9, 20))));
    }

    [Fact]
    public void Headroom_asks_for_no_more_than_a_request_may_ever_need()
    {
        Make(pages: 10, stepTokens: 40, headroom: 256);
        Assert.Equal("1:0+16* 2:0+20*", Step(Submit(New(16, 5), New(20, 1))));
    }

    [Fact]
    public void When_pages_run_out_the_youngest_goes_back_and_starts_again_with_what_it_had()
    {
        Make(sequences: 3, pages: 6, stepTokens: 24);
        var (a, b, c) = (New(8), New(7), New(4, 2));
        Assert.Equal("1:0+8* 2:0+7* 3:0+4*", Step(Submit(a, b, c)));  // 2 + 2 + 1 pages
        Assert.Equal("1:8+1* 2:7+1*", Step());                        // 3 + 2 pages, 0 left for c
        Assert.Equal((SequenceState.Waiting, 1, 0), (c.State, c.Preemptions, c.Processed));
        Assert.Equal(5, c.Length);                                    // its token is not lost
        Step(SchedulerEvent.Cancelled(a));
        Assert.Equal(SequenceState.Finished, c.State);                // 3:0+5* made its second and last token
        Assert.Equal(FinishReason.Length, c.Finish);
    }

    [Fact]
    public void A_preempted_sequence_keeps_its_place_ahead_of_those_who_came_later()
    {
        Make(sequences: 2, pages: 5, stepTokens: 20);
        var (a, b, c) = (New(8, 12), New(8, 5), New(1));
        Step(Submit(a, b, c));
        Assert.Equal("1:8+1*", Step());  // a takes the last page, b loses its own
        Assert.Equal([2L, 3L], _scheduler.Waiting.Select(s => s.Arrival));
        Assert.StartsWith("2:0+9* 3:0+1*", Step(SchedulerEvent.Cancelled(a)));
    }

    [Fact]
    public void The_youngest_may_have_to_give_way_to_itself()
    {
        Make(sequences: 2, pages: 4, stepTokens: 16);
        var (a, b) = (New(7, 3), New(8, 9));
        Step(Submit(a, b));
        Assert.Equal("1:7+1*", Step());  // b needs a third page and is the youngest
        Assert.Equal(SequenceState.Waiting, b.State);
        Assert.Equal("1:8+1*", Step());  // 3 pages for a, 1 left: not enough for b
        Assert.Equal(FinishReason.Length, a.Finish);
        Assert.Equal("2:0+9*", Step());
    }

    [Fact]
    public void A_sequence_ends_with_its_last_token_and_its_pages_are_free_at_once()
    {
        Make();
        var a = New(4, 2);
        Step(Submit(a));
        Step();
        Assert.Equal((FinishReason.Length, 2), (a.Finish, a.OutputCount));
        Assert.Equal(_cache.Pools[0].PageCount, _cache.Pools[0].FreeCount);
        Assert.Equal("", Step());
    }

    [Fact]
    public void Outcomes_decide_over_their_own_sequence_only()
    {
        Make();
        var (a, b, c) = (New(1), New(1), New(1));
        _scheduler.Step(Submit(a, b, c), 0);
        var finished = _scheduler.Retire([new(5, Stops: true), new(0, false, "broken"), new(6, false)]);
        Assert.Equal([a, b], finished);
        Assert.Equal((FinishReason.Stop, 1, 5), (a.Finish, a.OutputCount, a.TokenAt(1)));
        Assert.Equal((FinishReason.Error, "broken", 0), (b.Finish, b.Error, b.OutputCount));
        Assert.Equal("3:1+1*", Step());
    }

    [Theory]
    [InlineData(nameof(SequenceState.Waiting))]
    [InlineData(nameof(SequenceState.Prefilling))]
    [InlineData(nameof(SequenceState.Decoding))]
    public void Cancelling_frees_the_pages_in_the_next_step_in_every_state(string stateName)
    {
        var state = Enum.Parse<SequenceState>(stateName);
        Make(sequences: 1, stepTokens: 4);
        var (other, victim) = (New(1, 100), New(state == SequenceState.Decoding ? 3 : 9, 100));
        if (state == SequenceState.Waiting) Step(Submit(other));
        Step(Submit(victim));
        Assert.Equal(state, victim.State);
        var batch = _scheduler.Step([SchedulerEvent.Cancelled(victim)], 0);
        Assert.Equal([victim], batch.Finished);
        Assert.Equal(FinishReason.Cancelled, victim.Finish);
        Assert.Equal(state == SequenceState.Waiting ? 1 : 0, _cache.Pools[0].PageCount - _cache.Pools[0].FreeCount);
        Assert.DoesNotContain(batch.Chunks, c => c.Sequence == victim);
    }

    [Fact]
    public void A_second_end_of_the_same_sequence_is_ignored()
    {
        Make();
        var a = New(1);
        Step(Submit(a));
        _scheduler.Step([SchedulerEvent.Cancelled(a), SchedulerEvent.Ended(a, "late"), SchedulerEvent.Stalled(a)], 0);
        Assert.Equal((FinishReason.Cancelled, false), (a.Finish, a.Stalled));
        Assert.Empty(_scheduler.Step([SchedulerEvent.Cancelled(a)], 0).Finished);
    }

    [Fact]
    public void No_step_is_planned_for_an_expired_request_running_or_waiting()
    {
        Make(sequences: 2);
        var (a, b, c) = (New(1, 50, deadline: 100), New(1, 50), New(1, 50, deadline: 90));
        StepAt(10, Submit(a, b, c));
        Assert.Equal(90, _scheduler.NextDeadline);
        Assert.Equal("1:1+1* 2:1+1*", StepAt(89));
        Assert.Equal("1:2+1* 2:2+1*", StepAt(90));
        Assert.Equal(FinishReason.DeadlineExceeded, c.Finish);
        Assert.Equal("2:3+1*", StepAt(100));
        Assert.Equal(FinishReason.DeadlineExceeded, a.Finish);
        Assert.Equal(long.MaxValue, _scheduler.NextDeadline);
    }

    [Fact]
    public void A_stalled_sequence_rests_and_keeps_its_pages_while_nobody_needs_them()
    {
        Make();
        var a = New(1);
        Step(Submit(a));
        Assert.Equal("", Step(SchedulerEvent.Stalled(a)));
        Assert.Equal((SequenceState.Decoding, 1), (a.State, a.Processed));
        Assert.Equal("1:1+1*", Step(SchedulerEvent.Resumed(a)));
    }

    [Fact]
    public void Stalled_sequences_lose_their_places_and_pages_to_others_and_do_not_block_the_line()
    {
        Make(sequences: 2, pages: 6, stepTokens: 16);
        var (a, b, c) = (New(8, 9), New(8, 9), New(8, 4));
        Step(Submit(a, b));
        Assert.Equal("2:8+1* 3:0+8*", Step([SchedulerEvent.Stalled(a), .. Submit(c)]));  // a gives up its place
        Assert.Equal((SequenceState.Waiting, 9), (a.State, a.Length));
        Assert.Equal("2:9+1* 3:8+1*", Step());
        Assert.Equal("2:10+1* 3:9+1*", Step(SchedulerEvent.Resumed(a)));                 // no place yet, but first in the line
        Assert.Equal("1:0+9* 3:10+1*", Step([SchedulerEvent.Cancelled(b), .. Submit(New(1))]));
    }

    [Fact]
    public void A_step_must_be_retired_before_the_next()
    {
        Make();
        _scheduler.Step(Submit(New(1)), 0);
        Assert.Throws<InvalidOperationException>(() => _scheduler.Step([], 0));
        Assert.Throws<ArgumentException>(() => _scheduler.Retire([new(1, false), new(1, false)]));
    }

    [Fact]
    public void A_step_in_the_steady_state_allocates_nothing()
    {
        Make(stepTokens: 16, pages: 2000);
        Step(Submit(New(4, 4000), New(4, 4000), New(4, 4000)));
        var outcomes = new ChunkOutcome[] { new(1, false), new(2, false), new(3, false) };
        for (int i = 0; i < 600; i++) StepOnce();
        // Between two doublings of the sequences' token arrays and of the tables' lists.
        long least = long.MaxValue;
        for (int i = 0; i < 50; i++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            StepOnce();
            least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
        }
        Assert.Equal(0, least);

        void StepOnce()
        {
            _scheduler.Step([], 0);
            _scheduler.Retire(outcomes);
        }
    }
}

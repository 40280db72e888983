using System.Diagnostics;
using Inference.Backends.Cpu;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed unsafe class WorkerPoolTests
{
    private struct Count : IParallelBody
    {
        public int* Times;
        public long* Workers;
        public int Fail;

        public readonly void Run(int start, int end, int worker)
        {
            if (Workers is not null) Interlocked.Or(ref *Workers, 1L << worker);
            for (var i = start; i < end; i++)
            {
                if (i == Fail) throw new InvalidOperationException($"item {i}");
                Interlocked.Increment(ref Times[i]);
            }
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(7)]
    public void Every_item_runs_exactly_once_in_loops_of_any_size(int threads)
    {
        using var pool = new WorkerPool(threads, grainWork: 1);
        var random = new Random(threads);
        var times = stackalloc int[5000];
        for (var loop = 0; loop < 3000; loop++)
        {
            var items = random.Next(0, loop % 50 == 0 ? 5000 : 40);
            new Span<int>(times, items).Clear();
            var body = new Count { Times = times, Fail = -1 };
            pool.For(ref body, items, random.Next(1, 4));
            for (var i = 0; i < items; i++)
                Assert.Equal(1, times[i]);
            if (loop % 300 == 0) Thread.Sleep(2); // long enough for the workers to fall asleep
        }
    }

    private struct Straggle : IParallelBody
    {
        private static readonly long Frequency = Stopwatch.Frequency;

        public int* Times;
        public long Ticks;

        public readonly void Run(int start, int end, int worker)
        {
            // The caller takes long enough for the others to come, and they so long that it waits for them.
            for (var until = Stopwatch.GetTimestamp() + (worker == 0 ? Frequency / 100_000 : Ticks); Stopwatch.GetTimestamp() < until;) Thread.SpinWait(1);
            for (var i = start; i < end; i++) Interlocked.Increment(ref Times[i]);
        }
    }

    /// <summary>Around the moment at which a caller that waits goes to sleep, no wake-up is lost (the loop would not end) and none is left over
    /// (the next would end too early).</summary>
    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void A_caller_that_fell_asleep_is_woken_once(int threads)
    {
        using var pool = new WorkerPool(threads, grainWork: 1);
        var random = new Random(threads);
        var times = stackalloc int[64];
        for (var loop = 0; loop < 3000; loop++)
        {
            new Span<int>(times, 64).Clear();
            var body = new Straggle { Times = times, Ticks = random.Next(0, 400) * Stopwatch.Frequency / 1_000_000 };
            pool.For(ref body, 64, 1);
            for (var i = 0; i < 64; i++)
                Assert.Equal(1, times[i]);
        }
    }

    [Fact]
    public void A_loop_below_two_grains_stays_on_the_caller()
    {
        using var pool = new WorkerPool(4);
        var times = stackalloc int[10];
        long workers = 0;
        var body = new Count { Times = times, Workers = &workers, Fail = -1 };
        pool.For(ref body, 10, grain: 6);
        Assert.Equal(1, workers);
    }

    [Fact]
    public void An_exception_in_a_body_reaches_the_caller_and_the_pool_goes_on()
    {
        using var pool = new WorkerPool(3);
        var times = stackalloc int[100];
        for (var loop = 0; loop < 200; loop++)
        {
            new Span<int>(times, 100).Clear();
            var failing = new Count { Times = times, Fail = loop % 100 };
            Assert.Throws<InvalidOperationException>(() => Run(pool, failing));
            new Span<int>(times, 100).Clear();
            var body = new Count { Times = times, Fail = -1 };
            pool.For(ref body, 100, 1);
            for (var i = 0; i < 100; i++)
                Assert.Equal(1, times[i]);
        }

        static void Run(WorkerPool pool, Count body) => pool.For(ref body, 100, 1);
    }

    [Fact]
    public void Loops_allocate_nothing()
    {
        using var pool = new WorkerPool(2);
        var times = stackalloc int[64];
        var body = new Count { Times = times, Fail = -1 };
        pool.For(ref body, 64, 1);
        var before = GC.GetAllocatedBytesForCurrentThread();
        for (var i = 0; i < 1000; i++)
            pool.For(ref body, 64, 1);
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    [Fact]
    public void Sleeping_workers_use_no_processor_time()
    {
        using var pool = new WorkerPool(3);
        var times = stackalloc int[64];
        var body = new Count { Times = times, Fail = -1 };
        pool.For(ref body, 64, 1);
        Assert.True(SpinWait.SpinUntil(() => pool.SleepingWorkers == 2, TimeSpan.FromSeconds(30)), "the workers never went to sleep");
    }
}

// The engine's side of KV state on disk, pumped by hand on a simulated disk: parts come in order and verified, memory stays within its bound,
// ends come once, and no disk error comes out.
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Testing;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.Time.Testing;
using Xunit;
using static Inference.Simulation.KvExtents;

namespace Inference.Runtime.Tests.KvCache.Disk;

public sealed class KvTierTests
{
    private static readonly PrefixHash A = PrefixHash.Root("a");

    private sealed class Bench : IDisposable
    {
        public Bench(int seed = 1, long writeStaging = 64 << 10, long readStaging = 32 << 10, long pieceBytes = 2000, int queue = 8, long bytesMax = 1 << 20)
        {
            Disk = new SimulatedDisk(seed);
            var options = new KvTierOptions
            {
                WriteStagingBytes = writeStaging,
                ReadStagingBytes = readStaging,
                PieceBytes = pieceBytes,
                WriteQueueMax = queue,
            };
            Tier = new KvTier(KvStore.Open(Disk, Layout, bytesMax, NullLogger.Instance), options, () => Wakes++, Time, NullLogger.Instance);
        }

        public SimulatedDisk Disk { get; }
        public KvTier Tier { get; }
        public FakeTimeProvider Time { get; } = new();
        public int Wakes { get; private set; }

        public KvTicket? Write(KvExtentHeader header, bool saved = false) => Tier.TryWrite(header, saved, payload => Fill(header, payload));

        public void Run()
        {
            while (Tier.RunOne()) { }
        }

        public KvChain? Find(int[] tokens) => Tier.Find(A, Names(A, tokens), tokens, tokens.Length);

        /// <summary>Takes and checks all parts, running the disk whenever none is there; the number of parts.</summary>
        public int ReadAll(KvRead read, int fromBlock = 0)
        {
            int parts = 0;
            while (read.State == KvReadState.Reading)
            {
                if (!read.TryTake(out var part)) Tier.RunOne();
                else CheckPart(read.Chain, part, fromBlock + parts++);
            }
            return parts;
        }

        public static void CheckPart(KvChain chain, KvPart part, int index)
        {
            Assert.Equal(index == chain.BlockCount, part.IsSnapshot);
            if (!part.IsSnapshot) Assert.Equal(index, part.Block);
            var extent = part.IsSnapshot ? chain.Snapshot : chain.Ranges.Single(r => index >= r.FirstBlock && index < r.FirstBlock + r.BlockCount).Extent;
            Assert.True(Agrees(extent.Header, index - extent.Header.FirstBlock, part.Bytes));
        }

        public void MustBeIdle()
        {
            Run();
            Assert.Equal(0, Tier.Counts().StagingBytes);
            Assert.Equal(0, Tier.Counts().WritesQueued);
        }

        public void Dispose() => Tier.Dispose();
    }

    private static int[] Tokens(int count, int from = 100) => [.. Enumerable.Range(from, count)];

    [Fact]
    public void A_chain_over_several_extents_comes_back_in_order_from_any_block_on()
    {
        using var bench = new Bench();
        int[] tokens = Tokens(42);
        var tickets = new[]
        {
            bench.Write(Header(A, tokens[..20], 0, snapshot: false)), bench.Write(Header(A, tokens[..28], 5, snapshot: true)),
            bench.Write(Header(A, tokens, 7, snapshot: true)),
        };
        Assert.All(Names(A, tokens), name => Assert.True(bench.Tier.Contains(name)));
        Assert.True(bench.Tier.ContainsSnapshot(Names(A, tokens)[9], tokens.AsSpan(40)));
        Assert.Null(bench.Find(tokens));
        bench.Run();
        Assert.All(tickets, t => Assert.Equal(KvWriteResult.Written, t!.Result));
        var chain = bench.Find(tokens)!;
        for (int from = 0; from <= 10; from++)
        {
            using var read = bench.Tier.BeginRead(chain, from);
            Assert.Equal(10 - from + 1, bench.ReadAll(read, from));
            Assert.Equal(KvReadState.Done, read.State);
        }
        Assert.Equal(11, bench.Tier.Counts().ReadsDone);
        bench.MustBeIdle();
    }

    [Fact]
    public void Writes_are_refused_when_staging_is_full_or_the_queue_is_long_and_taken_again_later()
    {
        using var bench = new Bench(writeStaging: 8192, queue: 100);
        Assert.NotNull(bench.Write(Header(A, Tokens(20), 0, snapshot: true)));
        Assert.NotNull(bench.Write(Header(A, Tokens(20, 500), 0, snapshot: true)));
        bool called = false;
        Assert.Null(bench.Tier.TryWrite(Header(A, Tokens(20, 900), 0, snapshot: true), false, _ => called = true));
        Assert.False(called);
        bench.Run();
        Assert.NotNull(bench.Write(Header(A, Tokens(20, 900), 0, snapshot: true)));
        bench.MustBeIdle();

        using var narrow = new Bench(queue: 1);
        Assert.NotNull(narrow.Write(Header(A, Tokens(3), 0, snapshot: true)));
        Assert.Null(narrow.Write(Header(A, Tokens(3, 500), 0, snapshot: true)));
        Assert.Equal(1, narrow.Tier.Counts().WritesRefused);
    }

    [Fact]
    public void A_fill_that_throws_gives_its_memory_back()
    {
        using var bench = new Bench();
        Assert.Throws<InvalidTimeZoneException>(() => bench.Tier.TryWrite(Header(A, Tokens(20), 0, true), false, _ => throw new InvalidTimeZoneException()));
        bench.MustBeIdle();
    }

    [Fact]
    public void Read_ahead_stays_within_its_memory_and_reads_share_it()
    {
        using var bench = new Bench(readStaging: 16 << 10, pieceBytes: 4096);
        int[] tokens = Tokens(200);
        bench.Write(Header(A, tokens, 0, snapshot: true));
        bench.Run();
        var chain = bench.Find(tokens)!;
        using var first = bench.Tier.BeginRead(chain, 0);
        bench.Run();
        Assert.InRange(bench.Tier.Counts().StagingBytes, 8193, 16 << 10);
        using var second = bench.Tier.BeginRead(chain, 0);
        bench.Run();
        Assert.InRange(bench.Tier.Counts().StagingBytes, 8193, 16 << 10);
        Assert.Equal(51, bench.ReadAll(first));
        Assert.Equal(51, bench.ReadAll(second));
        bench.MustBeIdle();
    }

    [Fact]
    public void A_read_can_be_cancelled_before_during_and_after_any_operation()
    {
        for (int at = 0; at < 40; at++)
        {
            using var bench = new Bench();
            int[] tokens = Tokens(42);
            bench.Write(Header(A, tokens, 0, snapshot: true));
            bench.Run();
            using var read = bench.Tier.BeginRead(bench.Find(tokens)!, 0);
            int points = 0, parts = 0;
            bench.Disk.AtPoint = () =>
            {
                if (points++ == at) read.Cancel();
            };
            while (read.State == KvReadState.Reading)
                if (read.TryTake(out var part)) Bench.CheckPart(read.Chain, part, parts++);
                else bench.Tier.RunOne();
            Assert.Equal(at < points ? KvReadState.Cancelled : KvReadState.Done, read.State);
            bench.MustBeIdle();  // without another call on the read
            Assert.False(read.TryTake(out _));
            read.Cancel();
            bench.MustBeIdle();
            var counts = bench.Tier.Counts();
            Assert.Equal(1, counts.ReadsDone + counts.ReadsCancelled);
        }
    }

    [Fact]
    public void A_flipped_part_fails_the_read_and_drops_the_extent_with_what_stands_on_it()
    {
        using var bench = new Bench();
        int[] tokens = Tokens(42);
        bench.Write(Header(A, tokens[..20], 0, snapshot: true));
        bench.Write(Header(A, tokens, 5, snapshot: true));
        bench.Run();
        var chain = bench.Find(tokens)!;
        using (var read = bench.Tier.BeginRead(chain, 0))
        {
            var bytes = bench.Disk.Contents("0000000000000001.kv");
            bytes[4096 + 2 * 700 + 5] ^= 1;  // of the third block, in the second piece
            bench.Disk.Put("0000000000000001.kv", bytes);
            Assert.InRange(bench.ReadAll(read), 0, 2);
            Assert.Equal((KvReadState.Failed, KvDrop.Flipped), (read.State, read.Failure));
        }
        Assert.Null(bench.Find(tokens));
        bench.MustBeIdle();
        Assert.Empty(bench.Disk.Names());
        var counts = bench.Tier.Counts();
        Assert.Equal((1, 1, 0), (counts.Store.Drops[(int)KvDrop.Flipped], counts.Store.Drops[(int)KvDrop.Orphan], counts.Store.Extents));
        using var late = bench.Tier.BeginRead(chain, 0);
        Assert.Equal((KvReadState.Failed, KvDrop.Evicted), (late.State, late.Failure));
    }

    [Fact]
    public void Short_reads_are_continued()
    {
        using var bench = new Bench();
        int[] tokens = Tokens(42);
        bench.Write(Header(A, tokens, 0, snapshot: true));
        bench.Run();
        bench.Disk.Faults = (operation, _) => operation == DiskOperation.Read ? DiskFault.Short : DiskFault.None;
        using var read = bench.Tier.BeginRead(bench.Find(tokens)!, 0);
        Assert.Equal(11, bench.ReadAll(read));
        Assert.Equal(KvReadState.Done, read.State);
    }

    [Fact]
    public void A_part_in_use_stays_what_it_is_when_the_read_fails_behind_it()
    {
        using var bench = new Bench();
        int[] tokens = Tokens(42), others = Tokens(42, 900);
        bench.Write(Header(A, tokens, 0, snapshot: true));
        bench.Write(Header(A, others, 0, snapshot: true));
        bench.Run();
        using var read = bench.Tier.BeginRead(bench.Find(tokens)!, 0);
        bench.Tier.RunOne();
        Assert.True(read.TryTake(out var part));
        bench.Disk.Faults = (operation, _) => operation == DiskOperation.Read ? DiskFault.InputOutput : DiskFault.None;
        bench.Run();
        Assert.Equal((KvReadState.Failed, KvDrop.Unreadable), (read.State, read.Failure));
        bench.Disk.Faults = (_, _) => DiskFault.None;
        using var other = bench.Tier.BeginRead(bench.Find(others)!, 0);
        bench.Run();  // into all memory there is
        Bench.CheckPart(read.Chain, part, 0);
        Assert.False(read.TryTake(out _));
        Assert.Equal(11, bench.ReadAll(other));
        bench.MustBeIdle();
    }

    [Fact]
    public void What_is_being_read_or_saved_is_not_dropped_to_make_room()
    {
        using var bench = new Bench(bytesMax: 48 << 10);
        int[] read = Tokens(20), kept = Tokens(20, 500);
        bench.Write(Header(A, read, 0, snapshot: true));
        bench.Write(Header(A, kept, 0, snapshot: true));
        bench.Run();
        Assert.Equal(KvWriteResult.Written, Done(bench.Tier.TrySave(bench.Find(kept)!, true)));
        using (bench.Tier.BeginRead(bench.Find(read)!, 0))
        {
            for (int i = 0; i < 10; i++) Assert.Equal(KvWriteResult.Written, Done(bench.Write(Header(A, Tokens(20, 1000 + 100 * i), 0, snapshot: true))));
            Assert.NotNull(bench.Find(read));
            Assert.Equal(KvWriteResult.NoRoom, Done(bench.Write(Header(A, Tokens(180, 5000), 0, snapshot: true))));
        }
        Assert.Single(bench.Tier.Saved());
        for (int i = 0; i < 10; i++) Done(bench.Write(Header(A, Tokens(20, 3000 + 100 * i), 0, snapshot: true)));
        Assert.Null(bench.Find(read));
        Assert.NotNull(bench.Find(kept));
        Assert.Equal(KvWriteResult.Written, Done(bench.Tier.TrySave(bench.Find(kept)!, false)));
        for (int i = 0; i < 10; i++) Done(bench.Write(Header(A, Tokens(20, 7000 + 100 * i), 0, snapshot: true)));
        Assert.Null(bench.Find(kept));

        KvWriteResult Done(KvTicket? ticket)
        {
            bench.Run();
            Assert.True(ticket!.IsDone);
            return ticket.Result;
        }
    }

    [Fact]
    public void Failures_in_a_row_pause_writing_longer_each_time_until_one_succeeds()
    {
        using var bench = new Bench();
        bench.Disk.Faults = (operation, _) => operation == DiskOperation.Write ? DiskFault.NoSpace : DiskFault.None;
        var tickets = Enumerable.Range(0, 5).Select(i => bench.Write(Header(A, Tokens(8, 100 * i), 0, snapshot: true))!).ToArray();
        bench.Run();
        Assert.All(tickets, t => Assert.Equal(KvWriteResult.Failed, t.Result));
        Assert.Equal(3, bench.Tier.Counts().WriteFailures);  // the other two were not tried
        Assert.True(bench.Tier.Counts().Paused);
        Assert.Null(bench.Write(Header(A, Tokens(8), 0, snapshot: true)));
        foreach (int seconds in new[] { 1, 2, 4 })
        {
            bench.Time.Advance(TimeSpan.FromSeconds(seconds));
            Assert.False(bench.Tier.Counts().Paused);
            if (seconds == 4) bench.Disk.Faults = (_, _) => DiskFault.None;
            Assert.NotNull(bench.Write(Header(A, Tokens(8), 0, snapshot: true)));
            bench.Run();
            Assert.Equal(seconds < 4, bench.Tier.Counts().Paused);
        }
        Assert.NotNull(bench.Find(Tokens(8)));
        bench.MustBeIdle();
    }

    [Fact]
    public void Closing_ends_every_read_and_every_ticket()
    {
        var bench = new Bench();
        int[] tokens = Tokens(42);
        bench.Write(Header(A, tokens, 0, snapshot: true));
        bench.Run();
        var read = bench.Tier.BeginRead(bench.Find(tokens)!, 0);
        bench.Tier.RunOne();
        bench.Tier.RunOne();
        var ticket = bench.Write(Header(A, Tokens(8, 900), 0, snapshot: true))!;
        bench.Dispose();
        Assert.Equal(KvReadState.Cancelled, read.State);
        Assert.Equal(KvWriteResult.Cancelled, ticket.Result);
        Assert.Null(bench.Write(Header(A, Tokens(8, 900), 0, snapshot: true)));
        read.Dispose();
    }

    [Fact]
    public void With_threads_on_a_failing_disk_everything_ends_and_no_byte_is_wrong()
    {
        var load = new KvLoad(9);
        var disk = new SimulatedDisk(9) { Faults = (_, n) => n * 2654435761 % 100 < 2 ? (DiskFault)(1 + n % 5) : DiskFault.None };
        KvStore store;
        while (true)
        {
            try
            {
                store = KvStore.Open(disk, Layout, 200 << 10, NullLogger.Instance);
                break;
            }
            catch (IOException)
            {
            }
        }
        var options = new KvTierOptions
        {
            WriteStagingBytes = 64 << 10,
            ReadStagingBytes = 24 << 10,
            PieceBytes = 2000,
            Readers = 3,
            PauseMin = TimeSpan.FromMilliseconds(1),
            PauseMax = TimeSpan.FromMilliseconds(2),
        };
        int[] ends = new int[4];
        var tickets = new List<KvTicket>();
        using var woken = new AutoResetEvent(false);
        using (var tier = new KvTier(store, options, () => woken.Set(), TimeProvider.System, NullLogger.Instance))
        {
            tier.Start();
            for (int i = 0; i < 800; i++)
            {
                var prompt = load.Prompt();
                foreach (var header in load.Missing(prompt, tier.Contains))
                    if (tier.TryWrite(header, load.Random.Next(60) == 0, payload => Fill(header, payload)) is { } ticket) tickets.Add(ticket);
                if (tickets.Count > 0 && load.Random.Next(8) > 0) SpinWait.SpinUntil(() => tickets[^1].IsDone, 2000);
                if (tier.Find(prompt.Root, Names(prompt.Root, prompt.Tokens), prompt.Tokens, prompt.Tokens.Length) is not { } chain) continue;
                if (load.Random.Next(8) == 0 && tier.TrySave(chain, load.Random.Next(4) == 0) is { } saving) tickets.Add(saving);
                using var read = tier.BeginRead(chain, 0);
                int stopAfter = load.Random.Next(4) == 0 ? load.Random.Next(chain.BlockCount + 1) : int.MaxValue, parts = 0;
                for (int idle = 0; read.State == KvReadState.Reading && parts < stopAfter && idle < 500;)
                {
                    if (read.TryTake(out var part)) Bench.CheckPart(chain, part, parts++);
                    else if (!woken.WaitOne(20)) idle++;
                }
                if (parts < stopAfter) Assert.NotEqual(KvReadState.Reading, read.State);
                read.Dispose();
                ends[(int)read.State]++;
            }
            Assert.True(SpinWait.SpinUntil(() => tickets.All(t => t.IsDone) && tier.Counts() is { StagingBytes: 0, WritesQueued: 0 }, 10_000));
            Assert.True(tier.Counts().Store.Bytes <= 200 << 10);
        }
        Assert.Equal(0, ends[(int)KvReadState.Reading]);
        Assert.All(ends[1..], n => Assert.True(n > 4, string.Join(' ', ends)));
        foreach (var result in new[] { KvWriteResult.Written, KvWriteResult.Failed }) Assert.Contains(tickets, t => t.Result == result);
    }

    // D10: the k-th operation of the disk fails, once or from then on, in a scenario that writes, saves, drops, reads and cancels.
    [Theory]
    [InlineData((int)DiskFault.InputOutput)]
    [InlineData((int)DiskFault.NoSpace)]
    [InlineData((int)DiskFault.Short)]
    [InlineData((int)DiskFault.Flip)]
    [InlineData((int)DiskFault.Misdirect)]
    public void Whichever_operation_fails_once_or_for_ever_nothing_throws_and_no_byte_is_wrong(int fault)
    {
        long operations = long.MaxValue;
        foreach (bool forEver in new[] { false, true })
        {
            for (int k = 1; k <= Math.Min(operations, 400); k++)
            {
                using var bench = new Bench(seed: k, bytesMax: 64 << 10);
                bench.Disk.Faults = (_, n) => n - Opening == k || forEver && n - Opening > k ? (DiskFault)fault : DiskFault.None;
                Scenario(bench);
                if (k == 1) operations = bench.Disk.Operations;
                bench.Disk.Faults = static (_, _) => DiskFault.None;
                bench.Time.Advance(TimeSpan.FromMinutes(2));
                Assert.NotNull(bench.Write(Header(A, Tokens(3, 5000), 0, snapshot: true)));
                bench.MustBeIdle();
                // What could not be written or deleted then is gone now.
                var names = bench.Disk.Names();
                Assert.DoesNotContain(names, n => n.EndsWith(".tmp", StringComparison.Ordinal));
                Assert.Equal(bench.Tier.Counts().Store.Extents, names.Count(n => n.EndsWith(".kv", StringComparison.Ordinal)));
                bench.Tier.Dispose();
                CheckTree(KvStore.Open(bench.Disk.Crash(k), Layout, 1 << 20, NullLogger.Instance));
            }
        }
    }

    private const long Opening = 1;  // operations of opening an empty store

    private static void Scenario(Bench bench)
    {
        var load = new KvLoad(7);
        for (int i = 0; i < 12; i++)
        {
            var prompt = load.Prompt();
            foreach (var header in load.Missing(prompt, bench.Tier.Contains)) bench.Write(header, saved: load.Random.Next(6) == 0);
            bench.Time.Advance(TimeSpan.FromSeconds(20));
            for (int n = load.Random.Next(3); n > 0; n--) bench.Tier.RunOne();
            var (root, tokens) = load.Prompt();
            if (bench.Tier.Find(root, Names(root, tokens), tokens, tokens.Length) is not { } chain) continue;
            if (load.Random.Next(3) == 0) bench.Tier.TrySave(chain, load.Random.Next(2) == 0);
            int from = load.Random.Next(chain.BlockCount + 1);
            using var read = bench.Tier.BeginRead(chain, from);
            if (load.Random.Next(3) > 0) bench.ReadAll(read, from);
            else bench.Tier.RunOne();
        }
        bench.Run();
    }
}

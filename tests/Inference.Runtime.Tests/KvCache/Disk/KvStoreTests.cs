// What a KvStore finds, refuses, drops and keeps, on a simulated disk: everything it gives is what was written, whatever is on the disk.
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;
using static Inference.Simulation.KvExtents;

namespace Inference.Runtime.Tests.KvCache.Disk;

public sealed class KvStoreTests
{
    private static readonly PrefixHash A = PrefixHash.Root("a"), B = PrefixHash.Root("b");

    private static KvStore Open(SimulatedDisk disk, long bytesMax = 1 << 20, KvLayout? layout = null) =>
        KvStore.Open(disk, layout ?? Layout, bytesMax, NullLogger.Instance);

    private static int[] Tokens(int count, int from = 100) => [.. Enumerable.Range(from, count)];

    private static KvWriteResult Write(KvStore store, KvExtentHeader header, bool saved = false) => store.Write(header, Payload(header), saved);

    private static KvChain? Find(KvStore store, PrefixHash root, int[] tokens, int? lengthMax = null) =>
        store.Find(root, Names(root, tokens), tokens, lengthMax ?? tokens.Length);

    [Fact]
    public void What_was_written_is_found_and_read_back_also_after_opening_again()
    {
        var disk = new SimulatedDisk(1);
        var store = Open(disk);
        int[] tokens = Tokens(11);
        Assert.Equal(KvWriteResult.Written, Write(store, Header(A, tokens[..8], 0, snapshot: false)));
        Assert.Null(Find(store, A, tokens));
        Assert.Equal(KvWriteResult.Written, Write(store, Header(A, tokens, 2, snapshot: true)));
        foreach (var s in new[] { store, Open(disk.Crash(1)) })
        {
            var chain = Find(s, A, [.. tokens, 7, 8]);
            Assert.Equal(11, chain!.Length);
            Assert.Equal([(0, 2), (2, 0)], chain.Ranges.Select(r => (r.FirstBlock, r.BlockCount)));
            Assert.All(chain.Ranges, r => Assert.True(Check(s, r.Extent)));
            Assert.True(s.Contains(Names(A, tokens)[1]));
            Assert.True(s.ContainsSnapshot(Names(A, tokens)[1], tokens.AsSpan(8)));
            Assert.False(s.ContainsSnapshot(Names(A, tokens)[1], tokens.AsSpan(9)));
        }
    }

    [Fact]
    public void The_longest_snapshot_that_is_a_prefix_within_the_limit_is_found()
    {
        var store = Open(new SimulatedDisk(1));
        int[] tokens = Tokens(22);
        Write(store, Header(A, tokens[..3], 0, snapshot: true));
        Write(store, Header(A, tokens[..8], 0, snapshot: true));
        Write(store, Header(A, tokens[..10], 2, snapshot: true));
        Write(store, Header(A, tokens[..16], 2, snapshot: false));
        Write(store, Header(A, tokens[..21], 4, snapshot: true));
        Assert.Equal(21, Find(store, A, tokens)!.Length);
        Assert.Equal(10, Find(store, A, tokens, 20)!.Length);
        Assert.Equal(8, Find(store, A, tokens, 9)!.Length);
        Assert.Equal(3, Find(store, A, tokens, 7)!.Length);
        Assert.Null(Find(store, A, tokens, 2));
        Assert.Null(Find(store, A, tokens, 0));
        Assert.Equal(10, Find(store, A, [.. tokens[..18], 0, 0, 0, 0])!.Length);
        Assert.Null(Find(store, B, tokens));
    }

    [Fact]
    public void A_branch_takes_the_blocks_before_it_from_the_middle_of_another_extent()
    {
        var store = Open(new SimulatedDisk(1));
        int[] tokens = Tokens(20), branch = [.. tokens[..8], .. Tokens(6, 500)];
        Write(store, Header(A, tokens, 0, snapshot: true));
        Write(store, Header(A, branch, 2, snapshot: true));
        var chain = Find(store, A, branch)!;
        Assert.Equal([(0, 2), (2, 1)], chain.Ranges.Select(r => (r.FirstBlock, r.BlockCount)));
        CheckTree(store);
    }

    [Fact]
    public void Equal_names_of_other_tokens_are_no_hit()
    {
        var store = Open(new SimulatedDisk(1));
        int[] tokens = Tokens(10), other = [.. tokens[..5], 1, 2, 3, .. tokens[8..]];
        Write(store, Header(A, tokens, 0, snapshot: true));
        Assert.Null(store.Find(A, Names(A, tokens), other, 10));
        // Both the second blocks have one name, but stand on different ones.
        var forged = Header(A, [9, 9, 9, 9, .. tokens[4..8]], 0, snapshot: true);
        forged = forged with { Names = [forged.Names[0], new PrefixHash(7, 7)] };
        Write(store, forged);
        Assert.Null(store.Find(A, [Names(A, tokens)[0], new PrefixHash(7, 7)], tokens, 8));
    }

    [Fact]
    public void What_is_there_or_stands_on_nothing_is_refused()
    {
        var store = Open(new SimulatedDisk(1));
        int[] tokens = Tokens(10);
        Assert.Equal(KvWriteResult.ParentMissing, Write(store, Header(A, tokens, 1, snapshot: true)));
        Write(store, Header(A, tokens, 0, snapshot: true));
        Assert.Equal(KvWriteResult.Duplicate, Write(store, Header(A, tokens, 1, snapshot: true)));
        Assert.Equal(KvWriteResult.Duplicate, Write(store, Header(A, tokens, 2, snapshot: true)));
        Assert.Equal(KvWriteResult.Written, Write(store, Header(A, tokens[..9], 2, snapshot: true)));
        Assert.Throws<ArgumentException>(() => Write(store, Header(A, tokens, 2, snapshot: false)));
        Assert.Throws<ArgumentException>(() => store.Write(Header(B, tokens, 0, snapshot: true), new byte[3], false));
        Assert.Equal(2, store.Counts().Extents);
    }

    [Fact]
    public void The_least_recently_used_leaf_goes_first_and_what_it_stood_on_after_it()
    {
        var store = Open(new SimulatedDisk(1), bytesMax: 32 << 10);  // four extents
        int[] first = Tokens(9), second = [.. first[..8], 5], other = Tokens(9, 300), third = Tokens(9, 600);
        Write(store, Header(A, first[..8], 0, snapshot: false));
        Write(store, Header(A, second, 2, snapshot: true));
        Write(store, Header(A, other, 0, snapshot: true));
        Write(store, Header(A, third, 0, snapshot: true));
        Use(second);
        Write(store, Header(A, Tokens(9, 900), 0, snapshot: true));
        Assert.Null(Find(store, A, other));
        Write(store, Header(A, Tokens(9, 1200), 0, snapshot: true));
        Assert.Null(Find(store, A, third));
        Assert.NotNull(Find(store, A, second));
        Write(store, Header(A, Tokens(9, 1500), 0, snapshot: true));
        Write(store, Header(A, Tokens(9, 1800), 0, snapshot: true));
        // The block went after its last snapshot, for all that it was written first.
        Assert.Null(Find(store, A, second));
        Assert.False(store.Contains(Names(A, first)[0]));
        Assert.Equal(4, store.Counts().Extents);
        Assert.Equal(4, store.Counts().Drops[(int)KvDrop.Evicted]);

        void Use(int[] tokens)
        {
            var chain = Find(store, A, tokens)!;
            Assert.True(store.TryPin(chain));
            store.Unpin(chain);
        }
    }

    [Fact]
    public void A_write_that_cannot_fit_drops_nothing()
    {
        var store = Open(new SimulatedDisk(1), bytesMax: 24 << 10);
        Write(store, Header(A, Tokens(9), 0, snapshot: true), saved: true);
        Write(store, Header(A, Tokens(9, 300), 0, snapshot: true));
        Write(store, Header(A, Tokens(9, 600), 0, snapshot: true));
        Assert.Equal(KvWriteResult.NoRoom, Write(store, Header(A, Tokens(80, 900), 0, snapshot: true)));
        Assert.Equal(3, store.Counts().Extents);
        Assert.Equal((1, 8L << 10), (store.Counts().SavedExtents, store.Counts().SavedBytes));
        Assert.Equal([9], store.Saved().Select(c => c.Length));
    }
}

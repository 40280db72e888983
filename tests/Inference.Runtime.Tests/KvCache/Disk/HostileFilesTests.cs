// Files that are not what a store wrote: flipped, cut, extended, exchanged, of another model, contradicting themselves. Each is detected when the
// store is opened or when it is read, counted by cause, deleted, and never used.
using System.Buffers.Binary;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;
using static Inference.Simulation.KvExtents;

namespace Inference.Runtime.Tests.KvCache.Disk;

public sealed class HostileFilesTests
{
    private static readonly PrefixHash A = PrefixHash.Root("a");
    private const string First = "0000000000000001.kv", Second = "0000000000000002.kv", Third = "0000000000000003.kv";

    private static int[] Tokens(int count, int from = 100) => [.. Enumerable.Range(from, count)];

    private static KvStore Open(SimulatedDisk disk, KvLayout? layout = null, long bytesMax = 1 << 20) =>
        KvStore.Open(disk, layout ?? Layout, bytesMax, NullLogger.Instance);

    /// <summary>Two extents of one prefix, and one of another.</summary>
    private static SimulatedDisk Written()
    {
        var disk = new SimulatedDisk(1);
        var store = Open(disk);
        foreach (var header in new[] { Header(A, Tokens(8), 0, true), Header(A, Tokens(19), 2, true), Header(A, Tokens(14, 500), 0, true) })
            Assert.Equal(KvWriteResult.Written, store.Write(header, Payload(header), false));
        return disk;
    }

    private static int HeaderBytes(SimulatedDisk disk, string name)
    {
        var bytes = disk.Contents(name);
        return KvExtentFormat.Measure(bytes, bytes.Length, out _)!.Value;
    }

    /// <summary>Opens; the ids that are there, after checking that each gives what was written or says that it may not be used.</summary>
    private static ulong[] Ids(SimulatedDisk disk, out KvStore store, KvLayout? layout = null)
    {
        store = Open(disk, layout);
        CheckTree(store);
        var good = new List<ulong>();
        foreach (var extent in store.Extents())
            if (Check(store, extent)) good.Add(extent.Id);
        good.Sort();
        return [.. good];
    }

    private static void MustDrop(SimulatedDisk disk, string name, KvDrop why, ulong[] left, KvLayout? layout = null)
    {
        Assert.Equal(left, Ids(disk, out var store, layout));
        Assert.Equal(1, store.Counts().Drops[(int)why]);
        Assert.DoesNotContain(name, disk.Names());
    }

    [Fact]
    public void Every_flipped_bit_is_detected()
    {
        var written = Written();
        var bytes = written.Contents(First);
        int header = HeaderBytes(written, First), detected = 0;
        var random = new Random(3);
        for (int at = 0; at < bytes.Length; at += at < 600 ? 1 : 13)
        {
            var disk = Written();
            var flipped = (byte[])bytes.Clone();
            flipped[at] ^= (byte)(1 << random.Next(8));
            disk.Put(First, flipped);
            // In the header, it costs the extent and what stands on it; in the payload, itself when it is read.
            Assert.Equal(at < header ? [3UL] : [2, 3], Ids(disk, out var store));
            if (at < header)
            {
                Assert.Equal(1, store.Counts().Drops[(int)KvDrop.Orphan]);
                Assert.DoesNotContain(First, disk.Names());
            }
            detected++;
        }
        Assert.True(detected > 900);
    }

    [Fact]
    public void Every_length_but_the_right_one_is_torn()
    {
        var written = Written();
        var bytes = written.Contents(Third);
        int header = HeaderBytes(written, Third);
        int[] lengths = [0, 1, 7, 8, 100, KvExtentFormat.FixedBytes - 1, KvExtentFormat.FixedBytes, 500, 4095, header, header + 1, header + 700, bytes.Length - 1, bytes.Length + 1, bytes.Length + 4096];
        foreach (int length in lengths)
        {
            var disk = Written();
            var cut = bytes;
            Array.Resize(ref cut, length);
            disk.Put(Third, cut);
            MustDrop(disk, Third, KvDrop.Torn, [1, 2]);
        }
    }

    [Fact]
    public void Files_that_are_no_extents_or_of_another_version_are_foreign()
    {
        foreach (var contents in new[] { "#!/bin/sh\n"u8.ToArray().Concat(new byte[5000]).ToArray(), new byte[10_000], Versioned() })
        {
            var disk = Written();
            disk.Put(Third, contents);
            MustDrop(disk, Third, KvDrop.Foreign, [1, 2]);
        }

        static byte[] Versioned()
        {
            var bytes = Written().Contents(Third);
            bytes[8]++;
            return bytes;
        }
    }

    [Fact]
    public void Names_that_no_store_gives_are_not_touched()
    {
        var disk = Written();
        disk.Put("../../etc/passwd", [1]);
        disk.Put("README", [1]);
        Assert.Equal([1UL, 2, 3], Ids(disk, out _));
        Assert.Contains("README", disk.Names());
    }

    [Fact]
    public void A_file_under_the_name_of_another_is_misplaced()
    {
        var disk = Written();
        disk.Put(Third, disk.Contents(First));
        MustDrop(disk, Third, KvDrop.Misplaced, [1, 2]);
        disk = Written();
        disk.Put("0000000000000009.kv", disk.Contents(Third));
        MustDrop(disk, "0000000000000009.kv", KvDrop.Misplaced, [1, 2, 3]);
    }

    [Fact]
    public void Another_model_another_geometry_or_a_larger_snapshot_is_stale()
    {
        var other = Layout.Fingerprint.ToArray();
        other[31] ^= 1;
        foreach (var layout in new[] { Layout with { Fingerprint = other }, Layout with { BlockBytes = 701 }, Layout with { BlockTokens = 2 } })
        {
            var disk = Written();
            Assert.Empty(Ids(disk, out var store, layout));
            Assert.Equal(3, store.Counts().Drops[(int)KvDrop.Stale]);
            Assert.Empty(disk.Names());
        }
    }

    [Fact]
    public void An_extent_whose_parent_is_gone_is_an_orphan()
    {
        var disk = Written();
        disk.Put(First, null);
        MustDrop(disk, Second, KvDrop.Orphan, [3]);
    }

    [Fact]
    public void What_is_there_twice_is_there_once()
    {
        // The same blocks and snapshot under two numbers: a sound header with another id.
        foreach (var header in new[] { Header(A, Tokens(8), 0, true), Header(A, Tokens(19), 2, true), Header(A, [.. Tokens(8), 7], 2, true) })
        {
            var disk = Written();
            var store = Open(disk);
            if (header.Names.Length == 0) store.Write(header, Payload(header), false);
            disk.Put("0000000000000009.kv", Forged(header, 9));
            MustDrop(disk, "0000000000000009.kv", KvDrop.Duplicate, header.Names.Length == 0 ? [1, 2, 3, 4] : [1, 2, 3]);
        }
    }

    private static byte[] Forged(KvExtentHeader header, ulong id, Action<byte[]>? change = null)
    {
        var payload = Payload(header);
        var sums = new UInt128[header.PartCount];
        for (int i = 0, at = 0; i < sums.Length; at += (int)header.PartBytes(Layout, i), i++)
            sums[i] = KvExtentFormat.Checksum(payload.AsSpan(at, (int)header.PartBytes(Layout, i)));
        var bytes = KvExtentFormat.Encode(id, header, sums, Layout);
        if (change is not null)
        {
            change(bytes);
            bytes.AsSpan(152, 16).Clear();
            BinaryPrimitives.WriteUInt128LittleEndian(bytes.AsSpan(152), KvExtentFormat.Checksum(bytes));
        }
        return [.. bytes, .. payload];
    }

    // Someone who computes checksums as well: numbers out of range end as a drop, and nothing is allocated from them.
    [Fact]
    public void Well_checked_headers_that_contradict_themselves_are_dropped()
    {
        var header = Header(A, Tokens(11, 900), 0, true);
        (int At, long Value, int Bytes)[] changes =
        [
            (12, 0, 4), (12, 2, 4), (12, uint.MaxValue, 4), (120, 1, 4), (120, -1, 4), (120, int.MaxValue, 4), (120, int.MinValue, 4),
            (124, 0, 4), (124, 1, 4), (124, 3, 4), (124, -1, 4), (124, int.MaxValue, 4), (124, 4097, 4), (128, 0, 4), (128, 2, 4), (128, 4, 4), (128, -1, 4), (128, int.MaxValue, 4),
            (132, 0, 4), (132, 1, 4), (132, 65536, 4), (132, int.MaxValue, 4), (132, -1, 4), (136, 0, 8), (136, 699, 8), (136, long.MaxValue, 8), (136, -1, 8),
            (144, 0, 8), (144, 901, 8), (144, long.MaxValue, 8), (144, long.MinValue, 8),
        ];
        foreach (var (at, value, size) in changes)
        {
            var disk = Written();
            disk.Put("0000000000000009.kv", Forged(header, 9, bytes =>
            {
                if (size == 4) BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(at), unchecked((int)value));
                else BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(at), value);
            }));
            long before = GC.GetAllocatedBytesForCurrentThread();
            Assert.Equal([1UL, 2, 3], Ids(disk, out var store));
            Assert.True(GC.GetAllocatedBytesForCurrentThread() - before < 1 << 20, $"field at {at} with {value} made the store allocate");
            // Fewer tail tokens make a sound header whose checksums are others: that shows when it is read.
            Assert.Equal(1, store.Counts().Drops.Sum() + store.Counts().Extents - 3);
        }
        // A parent that is not the root under a first block, one name twice, the root's own name.
        foreach (var forged in new[] { header with { Parent = new(1, 2) }, header with { Names = [header.Names[0], header.Names[0]] }, header with { FirstBlock = 1, Parent = A } })
        {
            var disk = Written();
            disk.Put("0000000000000009.kv", Forged(forged, 9));
            Assert.Equal([1UL, 2, 3], Ids(disk, out var store));
            Assert.Equal(1, store.Counts().Drops.Sum());
        }
    }

    [Fact]
    public void Random_bytes_and_random_changes_never_give_anything_wrong()
    {
        var random = new Random(11);
        for (int i = 0; i < 1500; i++)
        {
            var disk = Written();
            foreach (string name in new[] { First, Second, Third })
            {
                var bytes = disk.Contents(name);
                int from = random.Next(3) == 0 ? random.Next(bytes.Length) : random.Next(200), count = Math.Min(random.Next(1, 40), bytes.Length - from);
                if (random.Next(2) == 0) random.NextBytes(bytes.AsSpan(from, count));
                if (random.Next(3) == 0) bytes.AsSpan(random.Next(bytes.Length - 40), 40).CopyTo(bytes.AsSpan(from / 2));
                if (random.Next(4) == 0) Array.Resize(ref bytes, random.Next(bytes.Length + 100));
                disk.Put(name, bytes);
            }
            Ids(disk, out _);
        }
    }

    [Fact]
    public void A_tree_as_deep_as_files_make_it_is_dropped_without_recursion()
    {
        var layout = Layout with { BlockTokens = 1, BlockBytes = 0, SnapshotBytesMax = 0 };
        var disk = new SimulatedDisk(1);
        var name = A;
        for (int i = 0; i < 20_000; i++)
        {
            var header = new KvExtentHeader { Root = A, Parent = name, FirstBlock = i, Names = [name.Then([i])], Tokens = [i] };
            disk.Put($"{i + 1:x16}.kv", KvExtentFormat.Encode((ulong)i + 1, header, [KvExtentFormat.Checksum([])], layout));
            name = header.Names[0];
        }
        var store = KvStore.Open(disk, layout, long.MaxValue, NullLogger.Instance);
        Assert.Equal(20_000, store.Counts().Extents);
        store.Drop(store.Extents().Single(e => e.Id == 1), KvDrop.Flipped);
        Assert.Equal(0, store.Counts().Extents);
    }

    [Fact]
    public void Leftovers_go_and_their_numbers_are_not_used_again()
    {
        var disk = Written();
        disk.Put("00000000000000ff.tmp", new byte[5000]);
        disk.Put("0000000000000001.tmp", new byte[50]);
        disk.Put("0000000000000077.saved", []);
        disk.Put("0000000000000003.saved", []);
        Assert.Equal([1UL, 2, 3], Ids(disk, out var store));
        Assert.Equal([First, Second, Third, "0000000000000003.saved"], disk.Names().OrderBy(n => n.EndsWith("saved", StringComparison.Ordinal)));
        Assert.Equal(3UL, store.Extents().Single(e => e.Saved).Id);
        var header = Header(A, Tokens(3, 2000), 0, true);
        store.Write(header, Payload(header), false);
        Assert.Contains("0000000000000100.kv", disk.Names());
    }

    [Fact]
    public void Header_reads_that_fail_or_fall_short_only_cost_what_they_must()
    {
        foreach (var fault in new[] { DiskFault.InputOutput, DiskFault.Short })
        {
            var disk = Written();
            disk.Faults = (operation, _) => operation == DiskOperation.Read ? fault : DiskFault.None;
            var store = Open(disk);
            Assert.Equal(fault == DiskFault.Short ? 3 : 0, store.Counts().Extents);
            Assert.Equal(fault == DiskFault.Short ? 0 : 3, store.Counts().Drops[(int)KvDrop.Unreadable]);
        }
    }

    [Fact]
    public void A_smaller_bound_drops_the_oldest_leaves_when_it_is_opened()
    {
        var disk = Written();
        var store = Open(disk, bytesMax: 17 << 10);
        Assert.Equal(new ulong[] { 1, 3 }, store.Extents().Select(e => e.Id).Order());
        Assert.Equal(2, disk.Names().Count);
        CheckTree(store);
    }
}

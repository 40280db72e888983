using System.Buffers;
using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>What became of a write.</summary>
internal enum KvWriteResult
{
    Written,
    /// <summary>One of its blocks, or its snapshot, is on disk already.</summary>
    Duplicate,
    /// <summary>The block before its first is not on disk.</summary>
    ParentMissing,
    /// <summary>No room, even after dropping all that may be dropped.</summary>
    NoRoom,
    /// <summary>The disk reported an error.</summary>
    Failed,
    /// <summary>It was given up before it began.</summary>
    Cancelled,
}

/// <summary>Counts and sizes at one moment.</summary>
/// <param name="Bytes">All files, those included that are still to be deleted.</param>
/// <param name="SavedBytes">Of saved extents and those they stand on.</param>
/// <param name="Drops">By <see cref="KvDrop"/>, since the store was opened.</param>
internal readonly record struct KvStoreCounts(int Extents, long Bytes, int SavedExtents, long SavedBytes, long BytesMax, IReadOnlyList<long> Drops);

/// <summary>
/// KV state on a disk: a tree of extents, one file each. Opening reads and verifies the headers and drops what is not usable; payload
/// is verified whenever it is read. An extent is published by writing a temporary file, flushing it, renaming it and flushing the folder, and
/// enters the index after that; so what <see cref="Find"/> returns is durable and complete. All files together never exceed
/// <see cref="BytesMax"/>: before a write, extents that nothing stands on, that are not saved and not being read go, least recently
/// used first. The index (tokens included) is in memory; recency begins anew when the store is opened, in order of writing.
///
/// Threads: the index has a lock that is never held during disk operations. Any thread may look up and read; one at a time writes,
/// saves or cleans. Read and write end with an <see cref="IOException"/> where the disk does, and leave the store as it was before.
/// Invariant: every extent in the index stands on others there, down to block 0.
/// </summary>
internal sealed class KvStore : IDisposable
{
    private const string Published = ".kv", Temporary = ".tmp", SavedMark = ".saved";
    private static readonly SearchValues<char> LowerHex = SearchValues.Create("0123456789abcdef");
    private const int WriteBytes = 8 << 20;  // of one call

    private readonly Lock _gate = new();
    private readonly IDisk _disk;
    private readonly ILogger _log;
    private readonly Dictionary<PrefixHash, KvExtent> _blocks = [];             // by block name
    private readonly Dictionary<PrefixHash, List<KvExtent>> _snapshots = [];   // by name of the last whole block
    private readonly LinkedList<KvExtent> _byUse = [];                          // least recently used first
    private readonly List<(string[] Names, long Bytes)> _garbage = [];          // files to delete
    private readonly long[] _drops = new long[Enum.GetValues<KvDrop>().Length];
    private long _live, _garbageBytes;  // bytes of extents in the index or being written; of garbage
    private ulong _nextId = 1;

    private KvStore(IDisk disk, KvLayout layout, long bytesMax, ILogger log) => (_disk, Layout, BytesMax, _log) = (disk, layout, bytesMax, log);

    public KvLayout Layout { get; }
    public long BytesMax { get; }

    /// <summary>Whether a file name is one that the store gives.</summary>
    public static bool IsOurs(string name) => TryParse(name, out _, out _);

    // ---- opening ----

    /// <summary>Reads what is there. The store owns the disk from then on.</summary>
    /// <exception cref="IOException">The folder cannot be listed. What is wrong with a single file only costs that file.</exception>
    public static KvStore Open(IDisk disk, KvLayout layout, long bytesMax, ILogger log)
    {
        layout.Check();
        var store = new KvStore(disk, layout, bytesMax, log);
        store.Scan();
        store.Clean();
        var counts = store.Counts();
        KvDiskLog.Opened(log, counts.Extents, counts.Bytes, counts.SavedExtents);
        for (int why = 0; why < counts.Drops.Count; why++)
            if (counts.Drops[why] > 0) KvDiskLog.DroppedAtOpen(log, counts.Drops[why], (KvDrop)why);
        return store;
    }

    private void Scan()
    {
        var extents = new List<KvExtent>();
        var saved = new HashSet<ulong>();
        var found = new HashSet<ulong>();
        var buffer = new byte[64 << 10];
        foreach (var (name, length) in _disk.List())
        {
            if (!TryParse(name, out ulong id, out string kind)) continue;
            _nextId = Math.Max(_nextId, id + 1);
            if (kind == SavedMark) saved.Add(id);
            if (kind == Temporary) AddGarbage(Round(length), name);
            if (kind != Published) continue;
            found.Add(id);
            if (ReadHeader(name, id, length, ref buffer, out var why) is { } extent) extents.Add(extent);
            else Discard(id, Round(length), why);
        }
        // What stands on other extents comes after them.
        extents.Sort((a, b) => (a.Header.FirstBlock, a.Id).CompareTo((b.Header.FirstBlock, b.Id)));
        foreach (var extent in extents)
        {
            if (Enter(extent) is { } why) Discard(extent.Id, Round(extent.FileBytes), why);
            else (_live, extent.Saved) = (_live + Round(extent.FileBytes), saved.Contains(extent.Id));
        }
        foreach (ulong id in saved.Where(id => !found.Contains(id))) AddGarbage(0, Name(id, SavedMark));
        foreach (var extent in extents.Where(e => e.Entry is not null).OrderBy(e => e.Id)) Touch(extent);
        while (_live > BytesMax && LeastRecent() is { } victim) Remove(victim, KvDrop.Evicted);
    }

    private KvExtent? ReadHeader(string name, ulong id, long length, ref byte[] buffer, out KvDrop why)
    {
        try
        {
            using var file = _disk.OpenRead(name);
            int have = ReadFully(file, buffer, 0, (int)Math.Min(buffer.Length, length));
            if (KvExtentFormat.Measure(buffer.AsSpan(0, have), length, out why) is not { } header) return null;
            if (header > buffer.Length) Array.Resize(ref buffer, header);
            if (header > have) have += ReadFully(file, buffer.AsSpan(have, header - have), have, header - have);
            why = KvDrop.Torn;
            return have < header ? null : KvExtentFormat.Decode(buffer.AsSpan(0, header), id, Layout, out why);
        }
        catch (IOException)
        {
            why = KvDrop.Unreadable;
            return null;
        }
    }

    // ---- looking up ----

    /// <summary>Whether a block is on disk, with all blocks before it.</summary>
    public bool Contains(PrefixHash block)
    {
        lock (_gate) return _blocks.ContainsKey(block);
    }

    /// <summary>Whether the snapshot is on disk that stands <paramref name="tail"/> tokens after a block (or root).</summary>
    public bool ContainsSnapshot(PrefixHash last, ReadOnlySpan<int> tail)
    {
        lock (_gate) return SnapshotAt(last, tail) is not null;
    }

    /// <summary>
    /// The longest snapshot on disk that is a prefix of the tokens, of at most <paramref name="lengthMax"/> of them; null if none.
    /// </summary>
    /// <param name="names">Names of the whole blocks of the tokens, as far as they are to be looked for. They find candidates; tokens decide.</param>
    public KvChain? Find(PrefixHash root, IReadOnlyList<PrefixHash> names, ReadOnlySpan<int> tokens, int lengthMax)
    {
        tokens = tokens[..Math.Min(tokens.Length, Math.Max(0, lengthMax))];
        lock (_gate)
        {
            KvExtent? best = null;
            var at = root;
            for (int depth = 0; ; depth++)
            {
                int from = depth * Layout.BlockTokens;
                foreach (var extent in SnapshotsAt(at))
                    if (extent.Header.Root == root && extent.Header.EndBlock == depth && tokens[from..].StartsWith(extent.Header.Tail(Layout))
                        && extent.Header.Length(Layout) > (best?.Header.Length(Layout) ?? 0))
                        best = extent;
                if (depth == names.Count || tokens.Length - from < Layout.BlockTokens) break;
                if (!Continues(root, at, names[depth], depth, tokens.Slice(from, Layout.BlockTokens))) break;
                at = names[depth];
            }
            return best is null ? null : ChainOf(best);
        }
    }

    // The block of this name stands on the one before, not only on one of its depth: names alone are not trusted.
    private bool Continues(PrefixHash root, PrefixHash before, PrefixHash name, int depth, ReadOnlySpan<int> tokens)
    {
        if (!_blocks.TryGetValue(name, out var extent)) return false;
        var header = extent.Header;
        int index = depth - header.FirstBlock;
        return header.Root == root && index >= 0 && index < header.Names.Length && header.Names[index] == name
            && (index == 0 ? header.Parent : header.Names[index - 1]) == before
            && header.BlockTokens(Layout, depth).SequenceEqual(tokens);
    }

    private ReadOnlySpan<KvExtent> SnapshotsAt(PrefixHash last) =>
        _snapshots.TryGetValue(last, out var there) ? CollectionsMarshal.AsSpan(there) : [];

    private KvExtent? SnapshotAt(PrefixHash last, ReadOnlySpan<int> tail)
    {
        foreach (var extent in SnapshotsAt(last))
            if (extent.Header.Tail(Layout).SequenceEqual(tail)) return extent;
        return null;
    }

    private KvChain ChainOf(KvExtent snapshot)
    {
        var ranges = new List<KvExtentRange>();
        int end = snapshot.Header.EndBlock;
        for (KvExtent? e = snapshot; e is not null; end = e.Header.FirstBlock, e = e.Parent)
            ranges.Add(new KvExtentRange(e, e.Header.FirstBlock, end - e.Header.FirstBlock));
        ranges.Reverse();
        return new KvChain(snapshot.Header.Length(Layout), ranges);
    }

    /// <summary>All snapshots that are saved, each with what it stands on, in order of writing.</summary>
    public IReadOnlyList<KvChain> Saved()
    {
        lock (_gate) return [.. _byUse.Where(e => e.Saved && e.Header.HasSnapshot).OrderBy(e => e.Id).Select(ChainOf)];
    }

    public KvStoreCounts Counts()
    {
        lock (_gate)
        {
            var held = WithAncestors(_byUse.Where(e => e.Saved));
            return new KvStoreCounts(_byUse.Count, _live + _garbageBytes, _byUse.Count(e => e.Saved), held.Sum(e => Round(e.FileBytes)), BytesMax, [.. _drops]);
        }
    }

    /// <summary>All extents in the index, for tests.</summary>
    internal IReadOnlyList<KvExtent> Extents()
    {
        lock (_gate) return [.. _byUse];
    }

    // ---- reading ----

    /// <summary>Keeps a chain from being dropped to make room, and notes that it is used; false if part of it is gone.</summary>
    public bool TryPin(KvChain chain)
    {
        lock (_gate)
        {
            if (chain.Ranges.Any(r => r.Extent.Dropped)) return false;
            for (int i = chain.Ranges.Count - 1; i >= 0; i--)
            {
                chain.Ranges[i].Extent.Readers++;
                Touch(chain.Ranges[i].Extent);
            }
            return true;
        }
    }

    public void Unpin(KvChain chain)
    {
        lock (_gate)
        {
            foreach (var range in chain.Ranges)
                if (--range.Extent.Readers < 0) throw new InvalidOperationException($"KV extent {range.Extent.Id} is let go more often than it was pinned.");
        }
    }

    /// <summary>
    /// Reads consecutive parts of an extent's payload (blocks, then the snapshot) and verifies them. Null if they are what was written;
    /// otherwise why not, and nothing in <paramref name="into"/> may be used.
    /// </summary>
    /// <param name="into">As long as <see cref="KvExtentFormat.Reach"/> says, and with the parts where it says; fastest where its memory is aligned.</param>
    /// <exception cref="IOException">The disk reports an error, or the extent was dropped meanwhile.</exception>
    public KvDrop? Read(KvExtent extent, int part, int partCount, Span<byte> into)
    {
        var (offset, length, skip, bytes) = KvExtentFormat.Reach(extent.Header, Layout, part, partCount);
        using (var file = _disk.OpenRead(Name(extent.Id, Published)))
            if (ReadFully(file, into[..length], offset, skip + bytes) < skip + bytes) return KvDrop.Torn;
        into = into[skip..];
        for (int i = part; i < part + partCount; i++)
        {
            int partBytes = (int)extent.Header.PartBytes(Layout, i);
            if (KvExtentFormat.Checksum(into[..partBytes]) != extent.Checksums[i] && !SeededBug.Is(12)) return KvDrop.Flipped;
            into = into[partBytes..];
        }
        return null;
    }

    /// <summary>Takes an extent that turned out unusable, and all that stands on it, out of the index. Its files go with the next <see cref="Clean"/>.</summary>
    public void Drop(KvExtent extent, KvDrop why)
    {
        lock (_gate)
        {
            if (extent.Dropped) return;
            KvDiskLog.Dropped(_log, extent.Id, why);
            DropTree(extent, why);
        }
    }

    // ---- writing ----

    /// <summary>Publishes an extent. Anything but <see cref="KvWriteResult.Written"/>, and an exception, means that it is not there.</summary>
    /// <exception cref="IOException">The disk reports an error.</exception>
    /// <exception cref="ArgumentException">The header contradicts itself or the payload.</exception>
    public KvWriteResult Write(KvExtentHeader header, ReadOnlySpan<byte> payload, bool saved)
    {
        if (header.Fault(Layout) is { } fault) throw new ArgumentException($"This is no KV extent: {fault}.", nameof(header));
        if (header.PayloadBytes(Layout) != payload.Length)
            throw new ArgumentException($"The payload has {payload.Length} bytes, the header says {header.PayloadBytes(Layout)}.", nameof(payload));
        Clean();
        if (MakeRoom(header) is { } refused) return refused;
        Clean();
        if (Begin(header, payload, out var extent) is { } none) return none;
        bool published = false;
        try
        {
            Publish(extent!, payload, saved);
            lock (_gate)
            {
                extent!.Saved = saved;
                if (extent.Dropped || Enter(extent) is not null) return KvWriteResult.ParentMissing;
                published = true;
                return KvWriteResult.Written;
            }
        }
        finally
        {
            if (!published) Abandon(extent!);
        }
    }

    // Drops what has to go; null if there is room then and nothing else is in the way.
    private KvWriteResult? MakeRoom(KvExtentHeader header)
    {
        long bytes = Round(KvExtentFormat.FileBytes(header, Layout));
        lock (_gate)
        {
            if (ParentOf(header, out var parent) is { } orphan) return orphan;
            if (header.Names.Any(_blocks.ContainsKey)) return KvWriteResult.Duplicate;
            if (header is { HasSnapshot: true, Names: [] } && SnapshotAt(header.Last, header.Tail(Layout)) is not null) return KvWriteResult.Duplicate;
            bytes += _garbageBytes;  // what the disk does not let go
            if (_live + bytes <= BytesMax) return null;
            // Nothing goes for what would not fit in the end.
            var kept = WithAncestors(_byUse.Where(e => e.Saved || e.Readers > 0 || e == parent));
            if (kept.Sum(e => Round(e.FileBytes)) + bytes > BytesMax) return KvWriteResult.NoRoom;
            while (_live + bytes > BytesMax && LeastRecent(except: parent) is { } victim) Remove(victim, KvDrop.Evicted);
            return null;
        }
    }

    // The extent, its room taken and its place in the tree held; null if nothing is in the way.
    private KvWriteResult? Begin(KvExtentHeader header, ReadOnlySpan<byte> payload, out KvExtent? extent)
    {
        var checksums = new UInt128[header.PartCount];
        for (int i = 0, at = 0; i < checksums.Length; at += (int)header.PartBytes(Layout, i), i++)
            checksums[i] = KvExtentFormat.Checksum(payload.Slice(at, (int)header.PartBytes(Layout, i)));
        extent = null;
        long bytes = KvExtentFormat.FileBytes(header, Layout);
        lock (_gate)
        {
            if (ParentOf(header, out var parent) is { } orphan) return orphan;
            if (_live + _garbageBytes + Round(bytes) > BytesMax) return KvWriteResult.NoRoom;
            extent = new KvExtent(_nextId++, header, checksums, bytes) { Parent = parent };
            parent?.Children.Add(extent);
            _live += Round(bytes);
            return null;
        }
    }

    private void Publish(KvExtent extent, ReadOnlySpan<byte> payload, bool saved)
    {
        var header = KvExtentFormat.Encode(extent.Id, extent.Header, extent.Checksums, Layout);
        using (var file = _disk.Create(Name(extent.Id, Temporary), extent.FileBytes))
        {
            file.WriteAt(header, 0);
            for (int at = 0; at < payload.Length; at += WriteBytes)
                file.WriteAt(payload.Slice(at, Math.Min(WriteBytes, payload.Length - at)), header.Length + at);
            if (!SeededBug.Is(11)) file.Flush();
        }
        if (saved) Mark(extent.Id);
        _disk.Rename(Name(extent.Id, Temporary), Name(extent.Id, Published));
        _disk.FlushFolder();
    }

    private void Abandon(KvExtent extent)
    {
        lock (_gate)
        {
            extent.Parent?.Children.Remove(extent);
            extent.Dropped = true;
            _live -= Round(extent.FileBytes);
            AddGarbage(Round(extent.FileBytes), Name(extent.Id, Temporary), Name(extent.Id, Published), Name(extent.Id, SavedMark));
        }
        Clean();
    }

    /// <summary>Whether files wait to be deleted.</summary>
    public bool HasGarbage
    {
        get { lock (_gate) return _garbage.Count > 0; }
    }

    /// <summary>Deletes the files of what was dropped. What the disk does not let go is tried again next time, and counts until then.</summary>
    public void Clean()
    {
        (string[] Names, long Bytes)[] garbage;
        lock (_gate)
        {
            if (_garbage.Count == 0) return;
            garbage = [.. _garbage];
            _garbage.Clear();
        }
        foreach (var (names, bytes) in garbage)
        {
            bool gone = TryDelete(names);
            lock (_gate)
            {
                if (gone) _garbageBytes -= bytes;
                else _garbage.Add((names, bytes));
            }
        }
    }

    private bool TryDelete(params string[] names)
    {
        try
        {
            foreach (string name in names) _disk.Delete(name);
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>
    /// Keeps an extent, and what it stands on, until it is released again; durable when the call returns. False if it is gone. A flag, not a
    /// count.
    /// </summary>
    /// <exception cref="IOException">The disk reports an error. The flag is as it was before; after a restart it may be either.</exception>
    public bool Save(KvExtent extent, bool saved)
    {
        lock (_gate)
        {
            if (extent.Dropped) return false;
            if (extent.Saved == saved) return true;
            extent.Saved = true;  // until it is durable that it is not
        }
        bool done = false;
        try
        {
            if (saved) Mark(extent.Id);
            else _disk.Delete(Name(extent.Id, SavedMark));
            _disk.FlushFolder();
            done = true;
        }
        finally
        {
            if (!done && saved) TryDelete(Name(extent.Id, SavedMark));
            lock (_gate) extent.Saved = done ? saved : !saved;
        }
        return !extent.Dropped;
    }

    private void Mark(ulong id)
    {
        using var mark = _disk.Create(Name(id, SavedMark), 0);
    }

    // ---- room ----

    private KvExtent? LeastRecent(KvExtent? except = null)
    {
        foreach (var extent in _byUse)
            if (extent is { Saved: false, Readers: 0, Children.Count: 0 } && extent != except) return extent;
        return null;
    }

    private static HashSet<KvExtent> WithAncestors(IEnumerable<KvExtent> extents)
    {
        var all = new HashSet<KvExtent>();
        foreach (var extent in extents)
            for (var e = extent; e is not null && all.Add(e); e = e.Parent) { }
        return all;
    }

    // What a file takes on the disk.
    private static long Round(long bytes) => (bytes + KvExtentFormat.Alignment - 1) / KvExtentFormat.Alignment * KvExtentFormat.Alignment;

    // ---- the index ----

    // Null, with the parent if there is one, if the extent stands on what is there.
    private KvWriteResult? ParentOf(KvExtentHeader header, out KvExtent? parent)
    {
        parent = null;
        if (header.FirstBlock == 0) return null;
        if (!_blocks.TryGetValue(header.Parent, out parent)) return KvWriteResult.ParentMissing;
        int index = header.FirstBlock - 1 - parent.Header.FirstBlock;
        return parent.Header.Root == header.Root && index >= 0 && index < parent.Header.Names.Length && parent.Header.Names[index] == header.Parent
            ? null : KvWriteResult.ParentMissing;
    }

    // Null if the extent is in the index now.
    private KvDrop? Enter(KvExtent extent)
    {
        var header = extent.Header;
        if (ParentOf(header, out var parent) is not null) return KvDrop.Orphan;
        if (header is { HasSnapshot: true, Names: [] } && SnapshotAt(header.Last, header.Tail(Layout)) is not null) return KvDrop.Duplicate;
        for (int i = 0; i < header.Names.Length; i++)
        {
            if (_blocks.TryAdd(header.Names[i], extent)) continue;
            while (--i >= 0) _blocks.Remove(header.Names[i]);
            return KvDrop.Duplicate;
        }
        if (header.HasSnapshot)
        {
            if (!_snapshots.TryGetValue(header.Last, out var there)) _snapshots.Add(header.Last, there = []);
            there.Add(extent);
        }
        extent.Parent = parent;
        parent?.Children.Add(extent);
        extent.Entry = _byUse.AddLast(extent);
        return null;
    }

    private void Touch(KvExtent extent)
    {
        _byUse.Remove(extent.Entry!);
        _byUse.AddLast(extent.Entry!);
    }

    private void DropTree(KvExtent extent, KvDrop why)
    {
        // Children after their parents; no recursion, for files decide how deep the tree is.
        var tree = new List<KvExtent> { extent };
        for (int i = 0; i < tree.Count; i++) tree.AddRange(tree[i].Children);
        for (int i = tree.Count - 1; i >= 0; i--)
        {
            if (tree[i].Entry is null) tree[i].Dropped = true;  // being written: its writer finds out
            else Remove(tree[i], i == 0 ? why : KvDrop.Orphan);
        }
    }

    private void Remove(KvExtent extent, KvDrop why)
    {
        var header = extent.Header;
        foreach (var name in header.Names) _blocks.Remove(name);
        if (header.HasSnapshot && _snapshots.TryGetValue(header.Last, out var there) && there.Remove(extent) && there.Count == 0) _snapshots.Remove(header.Last);
        extent.Parent?.Children.Remove(extent);
        _byUse.Remove(extent.Entry!);
        extent.Dropped = true;
        _live -= Round(extent.FileBytes);
        _drops[(int)why]++;
        AddGarbage(Round(extent.FileBytes), Name(extent.Id, Published), Name(extent.Id, SavedMark));
    }

    private void Discard(ulong id, long bytes, KvDrop why)
    {
        _drops[(int)why]++;
        AddGarbage(bytes, Name(id, Published), Name(id, SavedMark));
    }

    private void AddGarbage(long bytes, params string[] names)
    {
        _garbage.Add((names, bytes));
        _garbageBytes += bytes;
    }

    // ---- files ----

    // Until it has enough; the span may reach beyond the file.
    private static int ReadFully(IDiskFile file, Span<byte> into, long offset, int enough)
    {
        int read = 0;
        while (read < enough && file.ReadAt(into[read..], offset + read) is var n and > 0) read += n;
        return read;
    }

    private static string Name(ulong id, string kind) => id.ToString("x16", CultureInfo.InvariantCulture) + kind;

    private static bool TryParse(string name, out ulong id, out string kind)
    {
        kind = name.Length > 16 ? name[16..] : "";
        id = 0;
        return kind is Published or Temporary or SavedMark
            && name.AsSpan(0, 16).IndexOfAnyExcept(LowerHex) < 0
            && ulong.TryParse(name.AsSpan(0, 16), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out id);
    }

    public void Dispose() => _disk.Dispose();
}

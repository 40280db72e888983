using Inference.Runtime.KvCache.Disk;

namespace Inference.Testing.KvCache;

/// <summary>What an operation of a <see cref="SimulatedDisk"/> does.</summary>
internal enum DiskOperation { List, Create, OpenRead, Read, Write, Flush, Rename, Delete, FlushFolder }

/// <summary>What goes wrong with an operation. The first four are reported, the others are not.</summary>
internal enum DiskFault
{
    None,
    /// <summary>EIO: nothing happens. A flush that fails loses what it should have flushed, and later ones pretend that all is well.</summary>
    InputOutput,
    /// <summary>ENOSPC: nothing happens.</summary>
    NoSpace,
    /// <summary>A write stops half way with ENOSPC; a read gives half of the bytes, which is no error.</summary>
    Short,
    /// <summary>One bit of what is written or read changes.</summary>
    Flip,
    /// <summary>The bytes go to, or come from, another place of the same or another file.</summary>
    Misdirect,
}

/// <summary>
/// A disk in memory that can lose power. What was not flushed is lost, kept or torn at 512-byte sectors, each sector for itself; names that were
/// made, changed or deleted since the last flush of the folder are kept or lost, each for itself. Everything it decides comes from its
/// seed. <see cref="AtPoint"/> runs before and in the middle of every operation: there a test looks at what a crash would leave
/// (<see cref="Crash"/>), or lets something else happen during a slow operation. Any thread; operations exclude each other.
/// </summary>
internal sealed class SimulatedDisk(int seed) : IDisk
{
    private const int Sector = 512;

    private readonly object _gate = new();
    private readonly Random _random = new(seed);
    private readonly Dictionary<string, Inode> _names = [];
    private readonly Dictionary<string, Inode> _durableNames = [];
    private readonly List<NameChange> _changes = [];  // of names, not flushed

    private sealed class Inode
    {
        public byte[] Now = [], Durable = [];
        public SortedSet<int> Dirty { get; } = [];  // sectors
        public bool LengthDirty { get; set; }
    }

    // A new name (From null), a renaming, or a deletion (To null).
    private readonly record struct NameChange(string? From, string? To, Inode Inode);

    /// <summary>Operations so far.</summary>
    public long Operations { get; private set; }

    /// <summary>Decides, for the operation with this number (from 1), what goes wrong.</summary>
    public Func<DiskOperation, long, DiskFault> Faults { get; set; } = static (_, _) => DiskFault.None;

    public Action? AtPoint { get; set; }

    // ---- IDisk ----

    public IReadOnlyList<(string Name, long Length)> List()
    {
        lock (_gate)
        {
            Begin(DiskOperation.List, "list");
            return [.. _names.Select(n => (n.Key, (long)n.Value.Now.Length)).OrderBy(n => n.Key, StringComparer.Ordinal)];
        }
    }

    public IDiskFile Create(string name, long length)
    {
        lock (_gate)
        {
            Begin(DiskOperation.Create, name);
            var inode = new Inode();
            Change(new NameChange(null, name, inode), _names);
            _changes.Add(new NameChange(null, name, inode));
            return new OpenFile(this, name, inode);
        }
    }

    public IDiskFile OpenRead(string name)
    {
        lock (_gate)
        {
            Begin(DiskOperation.OpenRead, name);
            return _names.TryGetValue(name, out var inode) ? new OpenFile(this, name, inode) : throw new FileNotFoundException($"no {name}");
        }
    }

    public void Rename(string from, string to)
    {
        lock (_gate)
        {
            Begin(DiskOperation.Rename, from);
            if (!_names.TryGetValue(from, out var inode)) throw new FileNotFoundException($"no {from}");
            Change(new NameChange(from, to, inode), _names);
            _changes.Add(new NameChange(from, to, inode));
        }
    }

    public void Delete(string name)
    {
        lock (_gate)
        {
            Begin(DiskOperation.Delete, name);
            if (!_names.TryGetValue(name, out var inode)) return;
            _names.Remove(name);
            _changes.Add(new NameChange(name, null, inode));
        }
    }

    public void FlushFolder()
    {
        lock (_gate)
        {
            Begin(DiskOperation.FlushFolder, "folder");
            int first = _random.Next(_changes.Count + 1);
            Persist(first);
            AtPoint?.Invoke();
            Persist(_changes.Count);
        }

        void Persist(int count)
        {
            foreach (var change in _changes.Take(count)) Change(change, _durableNames);
            _changes.RemoveRange(0, count);
        }
    }

    public void Dispose()
    {
    }

    private static void Change(NameChange change, Dictionary<string, Inode> names)
    {
        if (change.From is not null && !(names.TryGetValue(change.From, out var there) && there == change.Inode)) return;
        if (change.From is not null) names.Remove(change.From);
        if (change.To is not null) names[change.To] = change.Inode;
    }

    private DiskFault Begin(DiskOperation operation, string name)
    {
        AtPoint?.Invoke();
        var fault = Faults(operation, ++Operations);
        if (fault == DiskFault.InputOutput) throw new IOException($"EIO in {operation} of {name}");
        if (fault == DiskFault.NoSpace) throw new IOException($"ENOSPC in {operation} of {name}");
        return fault;
    }

    private sealed class OpenFile(SimulatedDisk disk, string name, Inode inode) : IDiskFile
    {
        public int ReadAt(Span<byte> bytes, long offset)
        {
            lock (disk._gate)
            {
                var fault = disk.Begin(DiskOperation.Read, name);
                var from = inode;
                if (fault == DiskFault.Misdirect) (from, offset) = disk.Elsewhere(offset);
                int count = (int)Math.Clamp(from.Now.Length - offset, 0, bytes.Length);
                if (fault == DiskFault.Short) count = (count + 1) / 2;
                from.Now.AsSpan((int)Math.Min(offset, from.Now.Length), count).CopyTo(bytes);
                if (fault == DiskFault.Flip && count > 0) bytes[disk._random.Next(count)] ^= (byte)(1 << disk._random.Next(8));
                disk.AtPoint?.Invoke();
                return count;
            }
        }

        public void WriteAt(ReadOnlySpan<byte> bytes, long offset)
        {
            lock (disk._gate)
            {
                var fault = disk.Begin(DiskOperation.Write, name);
                var to = inode;
                if (fault == DiskFault.Misdirect) (to, offset) = disk.Elsewhere(offset);
                if (fault == DiskFault.Flip)
                {
                    var flipped = bytes.ToArray();
                    if (flipped.Length > 0) flipped[disk._random.Next(flipped.Length)] ^= (byte)(1 << disk._random.Next(8));
                    bytes = flipped;
                }
                int first = disk._random.Next(bytes.Length + 1);
                Put(to, bytes[..first], offset);
                disk.AtPoint?.Invoke();
                if (fault == DiskFault.Short) throw new IOException($"ENOSPC in the middle of Write of {name}");
                Put(to, bytes[first..], offset + first);
            }
        }

        private static void Put(Inode to, ReadOnlySpan<byte> bytes, long offset)
        {
            if (bytes.Length == 0) return;
            if (to.Now.Length < offset + bytes.Length)
            {
                Array.Resize(ref to.Now, (int)offset + bytes.Length);
                to.LengthDirty = true;
            }
            bytes.CopyTo(to.Now.AsSpan((int)offset));
            for (int s = (int)offset / Sector; s <= ((int)offset + bytes.Length - 1) / Sector; s++) to.Dirty.Add(s);
        }

        public void Flush()
        {
            lock (disk._gate)
            {
                try
                {
                    disk.Begin(DiskOperation.Flush, name);
                }
                catch (IOException)
                {
                    (inode.LengthDirty, _) = (false, 0);
                    inode.Dirty.Clear();
                    throw;
                }
                var sectors = inode.Dirty.ToArray();
                disk._random.Shuffle(sectors);
                if (inode.LengthDirty) Array.Resize(ref inode.Durable, inode.Now.Length);
                inode.LengthDirty = false;
                for (int i = 0; i < sectors.Length; i++)
                {
                    if (i == sectors.Length / 2) disk.AtPoint?.Invoke();
                    SectorOf(inode.Now, sectors[i]).CopyTo(SectorOf(inode.Durable, sectors[i]));
                    inode.Dirty.Remove(sectors[i]);
                }
            }
        }

        public void Dispose()
        {
        }
    }

    private static Span<byte> SectorOf(byte[] bytes, int sector) => bytes.AsSpan(sector * Sector, Math.Min(Sector, bytes.Length - sector * Sector));

    private (Inode Inode, long Offset) Elsewhere(long offset)
    {
        var inode = _names.OrderBy(n => n.Key, StringComparer.Ordinal).ElementAt(_random.Next(_names.Count)).Value;
        long other = _random.Next(inode.Now.Length / Sector + 1) * Sector;
        return (inode, _random.Next(2) == 0 ? offset : other);
    }

    // ---- for tests ----

    /// <summary>The disk as a loss of power at this moment may leave it.</summary>
    public SimulatedDisk Crash(int seed)
    {
        lock (_gate)
        {
            var random = new Random(seed);
            var after = new SimulatedDisk(seed);
            var names = new Dictionary<string, Inode>(_durableNames);
            double keptNames = Share(random), keptSectors = Share(random);
            foreach (var change in _changes)
                if (random.NextDouble() < keptNames) Change(change, names);
            foreach (var (name, inode) in names)
            {
                var left = Left(inode, keptSectors, random);
                after._names[name] = after._durableNames[name] = new Inode { Now = left, Durable = [.. left] };
            }
            return after;
        }
    }

    // How much of what was not flushed is kept: all, nothing, or anything between.
    private static double Share(Random random) => random.Next(4) switch { 0 => 0, 1 => 1, _ => random.NextDouble() };

    private static byte[] Left(Inode inode, double kept, Random random)
    {
        int length = inode.Durable.Length;
        if (inode.LengthDirty && random.NextDouble() < kept)
            length = random.Next(3) == 0 ? random.Next(Math.Min(length, inode.Now.Length), Math.Max(length, inode.Now.Length) + 1) : inode.Now.Length;
        var left = new byte[length];
        inode.Durable.AsSpan(0, Math.Min(length, inode.Durable.Length)).CopyTo(left);
        foreach (int sector in inode.Dirty)
        {
            if (sector * Sector >= length || random.NextDouble() >= kept) continue;
            var now = SectorOf(inode.Now, sector);
            var there = SectorOf(left, sector);
            int bytes = Math.Min(now.Length, there.Length);
            if (random.Next(4) == 0) bytes = random.Next(bytes);
            now[..bytes].CopyTo(there);
        }
        return left;
    }

    /// <summary>A copy of a file.</summary>
    public byte[] Contents(string name)
    {
        lock (_gate) return [.. _names[name].Now];
    }

    /// <summary>Puts a file there, durable; null takes it away.</summary>
    public void Put(string name, byte[]? contents)
    {
        lock (_gate)
        {
            _names.Remove(name);
            _durableNames.Remove(name);
            if (contents is not null) _names[name] = _durableNames[name] = new Inode { Now = [.. contents], Durable = [.. contents] };
        }
    }

    public IReadOnlyList<string> Names()
    {
        lock (_gate) return [.. _names.Keys.Order(StringComparer.Ordinal)];
    }

    public long Bytes()
    {
        lock (_gate) return _names.Values.Sum(i => (long)i.Now.Length);
    }
}

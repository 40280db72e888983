using Inference.Runtime.KvCache.Disk;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;

namespace Inference.Simulation;

/// <summary>
/// A seeded sequence of writes, drops, saves and lookups on a simulated disk whose power fails at every operation and in the middle of it.
/// Whatever is left, a store opened on it holds everything that was published before, nothing else than what was written, and nothing without
/// what it stands on. Half of them, by the seed, have operations that fail, flip bits and go astray: then what is found must be right or known
/// to be wrong.
/// </summary>
internal sealed class StoreSimulation : ISimulation
{
    private const long BytesMax = 96 << 10;
    private const int Prompts = 30;
    private readonly KvLoad _load;
    private readonly SimulatedDisk _disk;
    private readonly KvStore _store;
    private readonly HashSet<ulong> _saved = [];  // that must be saved after a crash; others must not
    private ulong _changing;  // the one that may be either
    private readonly bool _faults;
    private readonly int _seed;

    public StoreSimulation(int seed, int traceLines = 0, bool? faults = null)
    {
        Trace = new(traceLines);
        (_seed, _faults, _load) = (seed, faults ?? seed % 2 == 1, new KvLoad(seed));
        _disk = new SimulatedDisk(seed);
        _store = KvStore.Open(_disk, KvExtents.Layout, BytesMax, NullLogger.Instance);
        if (_faults) _disk.Faults = (_, _) => _load.Random.Next(25) == 0 ? (DiskFault)_load.Random.Next(1, 6) : DiskFault.None;
        _disk.AtPoint = Crash;
    }

    public Laws Laws { get; } = new();
    public Trace Trace { get; }

    /// <summary>Points at which the power failed.</summary>
    public long Steps { get; private set; }

    /// <summary>Extents found after a crash: good, and known to be bad.</summary>
    public long Kept { get; private set; }
    public long Detected { get; private set; }
    public IEnumerable<(string, long)> Reached => [("extents found", Kept), ("damaged extents detected", Detected)];

    public void Run()
    {
        for (int i = 0; i < Prompts; i++)
        {
            foreach (var header in _load.Missing(_load.Prompt(), _store.Contains)) Write(header);
            if (_load.Random.Next(3) == 0) SaveOrRelease();
            if (_load.Random.Next(4) == 0) Use();
            if (_load.Random.Next(12) == 0 && Any() is { } lost) _store.Drop(lost, KvDrop.Flipped);
            KvExtents.CheckTree(_store);
            // What could not be deleted counts too, so the bound is the bound.
            Laws.Check(Law.MemoryBounded, _store.Counts().Bytes <= BytesMax, $"{_store.Counts().Bytes} bytes in a store of {BytesMax}");
            Laws.Check(Law.MemoryBounded, !_faults, _faults || _disk.Bytes() <= BytesMax, "the disk holds more than the store may");
            Trace.Mix(_store.Extents().Count);
            Trace.Mix(_disk.Bytes());
        }
    }

    public void Dispose() => _store.Dispose();

    private void Write(KvExtentHeader header)
    {
        bool saved = _load.Random.Next(10) == 0;
        try
        {
            var result = _store.Write(header, KvExtents.Payload(header), saved);
            if (Trace.KeepsLines) Trace.Line($"point {Steps}: write of blocks {header.FirstBlock} to {header.EndBlock}, snapshot {header.HasSnapshot}: {result}");
            if (result == KvWriteResult.Written && saved) _saved.Add(_store.Extents()[^1].Id);
        }
        catch (IOException e) when (_faults)
        {
            if (Trace.KeepsLines) Trace.Line($"point {Steps}: write of blocks {header.FirstBlock} to {header.EndBlock}: {e.Message}");
        }
    }

    private void SaveOrRelease()
    {
        if (Any() is not { } extent) return;
        bool save = _load.Random.Next(3) == 0;
        if (Trace.KeepsLines) Trace.Line($"point {Steps}: {(save ? "save" : "release")} {extent.Id}");
        _changing = extent.Id;
        try
        {
            Laws.Check(Law.OperationsEndOnce, _store.Save(extent, save), $"extent {extent.Id} is there and cannot be saved or released");
            if (save) _saved.Add(extent.Id);
            else _saved.Remove(extent.Id);
        }
        catch (IOException) when (_faults)
        {
        }
        _changing = 0;
    }

    private void Use()
    {
        var (root, tokens) = _load.Prompt();
        if (_store.Find(root, KvExtents.Names(root, tokens), tokens, tokens.Length) is not { } chain) return;
        Laws.Check(Law.OperationsEndOnce, _store.TryPin(chain), $"a chain was found and is gone");
        _store.Unpin(chain);
    }

    private KvExtent? Any() => _store.Extents() is { Count: > 0 } extents ? extents[_load.Random.Next(extents.Count)] : null;

    private void Crash()
    {
        Steps++;
        var left = _disk.Crash((int)(_seed * 100_003 + Steps));
        // Files whose deletion was lost are back: the room is larger, so that nothing is dropped for them.
        using var after = KvStore.Open(left, KvExtents.Layout, 1 << 30, NullLogger.Instance);
        KvExtents.CheckTree(after);
        Laws.Check(Law.EverythingComesBack, left.Names().All(n => !n.EndsWith(".tmp", StringComparison.Ordinal)), $"point {Steps}: temporary files are left");
        var there = after.Extents().ToDictionary(e => e.Id);
        foreach (var extent in there.Values)
        {
            bool good = KvExtents.Check(after, extent);
            Laws.Note(Law.DiskVerified, !good || !_faults);
            if (good) Kept++;
            else Detected++;
        }
        if (!_faults) CheckComplete(after, there);
    }

    private void CheckComplete(KvStore after, Dictionary<ulong, KvExtent> there)
    {
        Laws.Check(Law.DiskVerified, Detected == 0, $"point {Steps}: {Detected} damaged extents, and nothing was damaged");
        foreach (var extent in _store.Extents())
        {
            Laws.Check(Law.DiskVerified, there.TryGetValue(extent.Id, out var same), $"point {Steps}: extent {extent.Id} was published and is gone");
            Laws.Check(Law.DiskVerified, extent.Header.Tokens.AsSpan().SequenceEqual(same!.Header.Tokens), $"point {Steps}: extent {extent.Id} has other tokens");
            if (extent.Id != _changing) Laws.Check(Law.DiskVerified, _saved.Contains(extent.Id) == same.Saved, $"point {Steps}: extent {extent.Id}, saved or not");
        }
        var drops = after.Counts().Drops;
        foreach (var why in (KvDrop[])[KvDrop.Misplaced, KvDrop.Stale, KvDrop.Malformed, KvDrop.Unreadable, KvDrop.Foreign, KvDrop.Flipped, KvDrop.Torn])
            Laws.Check(Law.DiskVerified, drops[(int)why] == 0, $"point {Steps}: {drops[(int)why]} extents were dropped as {why}");
    }
}

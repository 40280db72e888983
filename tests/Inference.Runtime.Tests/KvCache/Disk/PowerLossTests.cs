// Power fails at every operation and in the middle of it, in seeded random sequences of writes, drops, saves and lookups. Whatever is left, a
// store opened on it holds everything that was published before, nothing else than what was written, and nothing without what it stands on.
using Inference.Runtime.KvCache.Disk;
using Inference.Testing.KvCache;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.KvCache.Disk;

public sealed class PowerLossTests
{
    private const long BytesMax = 96 << 10;

    private sealed class Run : IDisposable
    {
        private readonly KvLoad _load;
        private readonly SimulatedDisk _disk;
        private readonly KvStore _store;
        private readonly HashSet<ulong> _saved = [];  // that must be saved after a crash; others must not
        private ulong _changing;  // the one that may be either
        private readonly bool _faults;
        private readonly int _seed;

        public Run(int seed, bool faults)
        {
            (_seed, _faults, _load) = (seed, faults, new KvLoad(seed));
            _disk = new SimulatedDisk(seed);
            _store = KvStore.Open(_disk, KvExtents.Layout, BytesMax, NullLogger.Instance);
            if (faults) _disk.Faults = (_, _) => _load.Random.Next(25) == 0 ? (DiskFault)_load.Random.Next(1, 6) : DiskFault.None;
            _disk.AtPoint = Crash;
        }

        public int Points { get; private set; }
        public int Kept { get; private set; }
        public int Detected { get; private set; }

        public void Go(int prompts)
        {
            for (int i = 0; i < prompts; i++)
            {
                foreach (var header in _load.Missing(_load.Prompt(), _store.Contains)) Write(header);
                if (_load.Random.Next(3) == 0) SaveOrRelease();
                if (_load.Random.Next(4) == 0) Use();
                if (_load.Random.Next(12) == 0 && Any() is { } lost) _store.Drop(lost, KvDrop.Flipped);
                KvExtents.CheckTree(_store);
                // What could not be deleted counts too, so the bound is the bound.
                Assert.True(_store.Counts().Bytes <= BytesMax);
                if (!_faults) Assert.True(_disk.Bytes() <= BytesMax);
            }
        }

        public void Dispose() => _store.Dispose();

        private void Write(KvExtentHeader header)
        {
            bool saved = _load.Random.Next(10) == 0;
            try
            {
                if (_store.Write(header, KvExtents.Payload(header), saved) == KvWriteResult.Written && saved) _saved.Add(_store.Extents()[^1].Id);
            }
            catch (IOException) when (_faults)
            {
            }
        }

        private void SaveOrRelease()
        {
            if (Any() is not { } extent) return;
            bool save = _load.Random.Next(3) == 0;
            _changing = extent.Id;
            try
            {
                Assert.True(_store.Save(extent, save));
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
            Assert.True(_store.TryPin(chain));
            _store.Unpin(chain);
        }

        private KvExtent? Any() => _store.Extents() is { Count: > 0 } extents ? extents[_load.Random.Next(extents.Count)] : null;

        private void Crash()
        {
            Points++;
            var left = _disk.Crash(_seed * 100_003 + Points);
            // Files whose deletion was lost are back: the room is larger, so that nothing is dropped for them.
            var after = KvStore.Open(left, KvExtents.Layout, 1 << 30, NullLogger.Instance);
            KvExtents.CheckTree(after);
            Assert.DoesNotContain(left.Names(), n => n.EndsWith(".tmp", StringComparison.Ordinal));
            var there = after.Extents().ToDictionary(e => e.Id);
            foreach (var extent in there.Values)
            {
                if (KvExtents.Check(after, extent)) Kept++;
                else Detected++;
            }
            if (_faults) return;
            Assert.Equal(0, Detected);
            foreach (var extent in _store.Extents())
            {
                Assert.True(there.TryGetValue(extent.Id, out var same), $"seed {_seed}, point {Points}: extent {extent.Id} was published and is gone");
                Assert.Equal(extent.Header.Tokens, same.Header.Tokens);
                if (extent.Id != _changing) Assert.True(_saved.Contains(extent.Id) == same.Saved, $"seed {_seed}, point {Points}: extent {extent.Id}, saved or not");
            }
            var drops = after.Counts().Drops;
            foreach (var why in new[] { KvDrop.Misplaced, KvDrop.Stale, KvDrop.Malformed, KvDrop.Unreadable, KvDrop.Foreign, KvDrop.Flipped, KvDrop.Torn })
                Assert.Equal(0, drops[(int)why]);
        }
    }

    [Fact]
    public void What_was_published_is_there_after_a_power_loss_at_any_of_50000_points()
    {
        int points = 0, kept = 0;
        for (int seed = 1; points < 50_000; seed++)
        {
            using var run = new Run(seed, faults: false);
            run.Go(30);
            (points, kept) = (points + run.Points, kept + run.Kept);
        }
        Assert.True(kept > 3 * points, $"{kept} extents were found at {points} points: too few to tell");
    }

    [Fact]
    public void With_flips_misdirected_and_failing_operations_nothing_wrong_is_ever_given()
    {
        int points = 0, kept = 0, detected = 0;
        for (int seed = 1; points < 10_000; seed++)
        {
            using var run = new Run(seed, faults: true);
            run.Go(30);
            (points, kept, detected) = (points + run.Points, kept + run.Kept, detected + run.Detected);
        }
        Assert.True(kept > points && detected > 100, $"{kept} found, {detected} detected at {points} points: too few to tell");
    }
}

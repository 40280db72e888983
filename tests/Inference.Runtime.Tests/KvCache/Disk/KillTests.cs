// A process that writes extents without a pause is killed at random moments, sixty times, on the real file system. (That does not lose the page
// cache, so it says nothing about flushing; StoreSimulation does.) The process is this test assembly, entered again through CrashingWriter.
using System.Diagnostics;
using System.Globalization;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;
using static Inference.Simulation.KvExtents;

namespace Inference.Runtime.Tests.KvCache.Disk;

public sealed class KillTests
{
    private const int Cycles = 60;
    private const long BytesMax = 4 << 20;

    /// <summary>Room for larger blocks than elsewhere, so that a kill often lands in the middle of a file.</summary>
    internal static readonly KvLayout Large = Layout with { BlockBytes = 50_000 };

    [Fact]
    public async Task Sixty_kills_leave_nothing_corrupted_and_no_leftovers()
    {
        var stop = TestContext.Current.CancellationToken;
        using var folder = new TemporaryFolder();
        string path = folder["kv"];
        var random = new Random(5);
        int extents = 0, lost = 0, leftovers = 0;
        for (int cycle = 0; cycle < Cycles; cycle++)
        {
            using (var child = Process.Start(Child(path, cycle))!)
            {
                // It says that the folder is its own, then which extents are published.
                var published = new List<ulong>();
                Assert.Equal("open", await child.StandardOutput.ReadLineAsync(stop).AsTask().WaitAsync(TimeSpan.FromSeconds(60), stop));
                if (cycle == 0) Assert.Contains("in use", Assert.Throws<KvFolderException>(() => FolderDisk.Open(path)).Message);
                // Somewhere in or after the write that comes next; how far the child gets by then is a matter of the machine's load.
                for (int n = random.Next(6); n > 0; n--) Take(await child.StandardOutput.ReadLineAsync(stop).AsTask().WaitAsync(TimeSpan.FromSeconds(60), stop), published);
                await Task.Delay(random.Next(12), stop);
                child.Kill();
                while (await child.StandardOutput.ReadLineAsync(stop) is { } line) Take(line, published);
                await child.WaitForExitAsync(stop);
                leftovers += Directory.GetFiles(path, "*.tmp").Length;
                using var store = KvStore.Open(FolderDisk.Open(path), Large, BytesMax, NullLogger.Instance);
                Assert.Empty(Directory.GetFiles(path, "*.tmp"));
                CheckTree(store);
                var there = store.Extents().ToDictionary(e => e.Id);
                foreach (var extent in there.Values) Assert.True(Check(store, extent, Large));
                var drops = store.Counts().Drops;
                Assert.Equal(drops[(int)KvDrop.Orphan] + drops[(int)KvDrop.Evicted], drops.Sum());
                // The child drops the least recently used itself, so of what it published the last is there.
                if (published.Count > 0) Assert.True(there.ContainsKey(published[^1]), $"cycle {cycle}: extent {published[^1]} was published and is gone");
                extents += published.Count;
                lost += (int)drops[(int)KvDrop.Orphan];
            }
        }
        Assert.True(extents > 2 * Cycles, $"only {extents} extents in {Cycles} cycles: too few to tell");
        Assert.True(leftovers > 3, $"only {leftovers} of {Cycles} kills came in the middle of a write: too few to tell");
        Assert.Equal(0, lost);
    }

    private static void Take(string? line, List<ulong> published)
    {
        if (ulong.TryParse(line, CultureInfo.InvariantCulture, out ulong id)) published.Add(id);
    }

    private static ProcessStartInfo Child(string path, int cycle) => new("dotnet", [typeof(KillTests).Assembly.Location])
    {
        RedirectStandardOutput = true,
        Environment = { [CrashingWriter.Variable] = $"{cycle} {path}" },
    };

    /// <summary>Called by the child: writes until it is killed.</summary>
    internal static void WriteForEver(int seed, string path)
    {
        using var store = KvStore.Open(FolderDisk.Open(path), Large, BytesMax, NullLogger.Instance);
        Console.Out.WriteLine("open");
        var load = new KvLoad(seed);
        while (true)
        {
            foreach (var header in load.Missing(load.Prompt(), store.Contains))
            {
                var payload = new byte[header.PayloadBytes(Large)];
                Fill(header, payload, Large);
                if (store.Write(header, payload, saved: false) == KvWriteResult.Written)
                    Console.Out.WriteLine(store.Extents()[^1].Id.ToString(CultureInfo.InvariantCulture));
            }
        }
    }
}

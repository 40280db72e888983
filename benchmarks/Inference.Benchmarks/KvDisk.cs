// `kv-disk`: how near saving and restoring the KV state of a long session come to what the disk can do. Every round writes and reads a plain
// file past the page cache, and then the same number of bytes as extents through a KvTier, so that a change of the disk's mood meets both; the
// table shows medians over the rounds, ratios within a round. Before a read the extents' pages are dropped (posix_fadvise DONTNEED after
// fsync), and the bytes that the kernel says it fetched from the disk are printed beside: a read from memory would show there.
using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Inference.Backends.Cpu;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Win32.SafeHandles;

namespace Inference.Benchmarks;

internal sealed unsafe partial class KvDisk
{
    private const int RawBytes = 4 << 20, BlocksPerExtent = 32;
    private const long SnapshotBytes = 12L << 20;

    private readonly StringBuilder _report = new();
    private readonly string _folder;
    private readonly int _blocks, _readers;
    private readonly KvLayout _layout;
    private readonly byte[] _source = new byte[64 << 20];
    private readonly byte[] _sink = new byte[64 << 20];

    private KvDisk(string folder, int blocks, long bytesPerBlock, int readers)
    {
        (_folder, _blocks, _readers) = (folder, blocks, readers);
        _layout = new KvLayout { Fingerprint = new byte[32], BlockBytes = bytesPerBlock, SnapshotBytesMax = SnapshotBytes };
        new Random(1).NextBytes(_source);
    }

    private long PayloadBytes => _blocks * _layout.BlockBytes + SnapshotBytes;

    /// <summary>Arguments: [--folder where] [--tokens n] [--bytes-per-token n] [--rounds n] [--readers n] [--out file] [--note text].</summary>
    public static int Run(string[] args)
    {
        string folder = Path.GetTempPath(), output = "", note = "";
        int tokens = 1 << 20, bytesPerToken = 3512, rounds = 5, readers = new KvTierOptions().Readers;  // 3.43 GiB: DeepSeek-V4 Flash at a million tokens
        for (var i = 0; i + 1 < args.Length; i += 2)
        {
            switch (args[i])
            {
                case "--folder": folder = args[i + 1]; break;
                case "--tokens": tokens = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--bytes-per-token": bytesPerToken = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--rounds": rounds = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--readers": readers = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--out": output = args[i + 1]; break;
                case "--note": note = args[i + 1]; break;
                default: throw new ArgumentException($"kv-disk: unknown option {args[i]}");
            }
        }
        folder = Path.Combine(folder, $"inference-kv-disk-{Environment.ProcessId}");
        Directory.CreateDirectory(folder);
        try
        {
            var benchmark = new KvDisk(folder, tokens / KvStateSpec.BlockTokens, (long)bytesPerToken * KvStateSpec.BlockTokens, readers);
            benchmark.Rounds(rounds, note);
            if (output.Length > 0) File.WriteAllText(output, benchmark._report.ToString());
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
        return 0;
    }

    private void Rounds(int rounds, string note)
    {
        Line($"# KV state on disk, on {CpuTopology.ProcessorName()}");
        Line($"");
        Line($"{DateTime.UtcNow:yyyy-MM-dd}, {Environment.ProcessorCount} processors, .NET {Environment.Version}, {RuntimeInformation.OSDescription}, load {File.ReadAllText("/proc/loadavg").Split(' ')[0]}. {note}");
        Line($"");
        Line($"{_blocks} blocks of {_layout.BlockBytes} bytes and a snapshot of {SnapshotBytes}, {PayloadBytes / (double)(1 << 30):F2} GiB, {BlocksPerExtent} blocks per extent. Median of {rounds} rounds;");
        Line($"a ratio is that of one round. Plain: {RawBytes >> 20} MiB operations with O_DIRECT on one file, fsync included; extents: through KvTier,");
        Line($"checksums, one fsync per extent and publishing included, each part copied once on the caller's thread.");
        Line($"");
        var names = new[] { "plain write", "extents written", "plain read, one in flight", "plain read, two in flight", "extents read" };
        var seconds = names.Select(_ => new double[rounds]).ToArray();
        double fetched = 0;
        for (int r = 0; r < rounds; r++)
        {
            string raw = Path.Combine(_folder, "plain"), kv = Path.Combine(_folder, "kv");
            seconds[0][r] = Time(() => RawWrite(raw));
            seconds[2][r] = Time(() => RawRead(raw, 1));
            seconds[3][r] = Time(() => RawRead(raw, 2));
            File.Delete(raw);
            using (var tier = Open(kv))
            {
                seconds[1][r] = Time(() => Write(tier));
                DropPages(kv);
                long before = BytesFetched();
                seconds[4][r] = Time(() => Read(tier));
                fetched += (BytesFetched() - before) / (double)PayloadBytes / rounds;
            }
            Directory.Delete(kv, recursive: true);
        }
        Line($"| operation | MB/s | of plain, same round |");
        Line($"|---|---|---|");
        for (int i = 0; i < names.Length; i++)
        {
            int plain = i == 1 ? 0 : i == 4 ? 3 : i;
            var ratios = seconds[i].Select((s, r) => (plain == 3 ? Math.Min(seconds[2][r], seconds[3][r]) : seconds[plain][r]) / s).ToArray();
            string ratio = i is 1 or 4 ? string.Create(CultureInfo.InvariantCulture, $"{Median(ratios) * 100:F0} % ({ratios.Min() * 100:F0} to {ratios.Max() * 100:F0})") : "";
            Line($"| {names[i]} | {PayloadBytes / Median(seconds[i]) / 1e6:F0} | {ratio} |");
        }
        Line($"");
        Line($"Extents are compared with the faster of the two plain reads. The kernel fetched {fetched * 100:F0} % of the bytes read from the disk.");
    }

    private static double Median(IEnumerable<double> values)
    {
        var sorted = values.Order().ToArray();
        return (sorted[(sorted.Length - 1) / 2] + sorted[sorted.Length / 2]) / 2;
    }

    private static double Time(Action action)
    {
        var clock = Stopwatch.StartNew();
        action();
        return clock.Elapsed.TotalSeconds;
    }

    // ---- plain ----

    private void RawWrite(string path)
    {
        using var file = Native.OpenDirect(path, write: true);
        var buffer = (byte*)NativeMemory.AlignedAlloc(RawBytes, 4096);
        for (long at = 0; at < PayloadBytes; at += RawBytes)
        {
            _source.AsSpan((int)(at % _source.Length), RawBytes).CopyTo(new Span<byte>(buffer, RawBytes));
            RandomAccess.Write(file, new ReadOnlySpan<byte>(buffer, RawBytes), at);
        }
        RandomAccess.FlushToDisk(file);
        NativeMemory.AlignedFree(buffer);
    }

    private void RawRead(string path, int inFlight)
    {
        using var file = Native.OpenDirect(path, write: false);
        long next = -RawBytes;
        var threads = Enumerable.Range(0, inFlight).Select(_ => new Thread(() =>
        {
            var buffer = (byte*)NativeMemory.AlignedAlloc(RawBytes, 4096);
            while (Interlocked.Add(ref next, RawBytes) is var at && at < PayloadBytes) RandomAccess.Read(file, new Span<byte>(buffer, RawBytes), at);
            NativeMemory.AlignedFree(buffer);
        })).ToArray();
        foreach (var thread in threads) thread.Start();
        foreach (var thread in threads) thread.Join();
    }

    // ---- extents ----

    private KvTier Open(string folder)
    {
        var store = KvStore.Open(FolderDisk.Open(folder), _layout, 1L << 50, NullLogger.Instance);
        var tier = new KvTier(store, new KvTierOptions { Readers = _readers }, _woken.Set, TimeProvider.System, NullLogger.Instance);
        tier.Start();
        return tier;
    }

    private readonly ManualResetEventSlim _woken = new();
    private static readonly PrefixHash Root = PrefixHash.Root("");

    private int[] Tokens() => [.. Enumerable.Range(0, _blocks * KvStateSpec.BlockTokens)];

    private static PrefixHash[] Names(int[] tokens)
    {
        var names = new PrefixHash[tokens.Length / KvStateSpec.BlockTokens];
        for (int i = 0; i < names.Length; i++)
            names[i] = (i == 0 ? Root : names[i - 1]).Then(tokens.AsSpan(i * KvStateSpec.BlockTokens, KvStateSpec.BlockTokens));
        return names;
    }

    private void Write(KvTier tier)
    {
        var tokens = Tokens();
        var names = Names(tokens);
        KvTicket? last = null;
        for (int at = 0; at < _blocks; at += BlocksPerExtent)
        {
            int count = Math.Min(BlocksPerExtent, _blocks - at);
            bool end = at + count == _blocks;
            var header = new KvExtentHeader
            {
                Root = Root,
                Parent = at == 0 ? Root : names[at - 1],
                FirstBlock = at,
                Names = names[at..(at + count)],
                Tokens = tokens[(at * KvStateSpec.BlockTokens)..((at + count) * KvStateSpec.BlockTokens)],
                HasSnapshot = end,
                SnapshotBytes = end ? SnapshotBytes : 0,
            };
            while ((last = tier.TryWrite(header, false, Fill)) is null) Wait();
        }
        while (!last!.IsDone) Wait();
        if (last.Result != KvWriteResult.Written) throw new IOException($"The benchmark's extents could not be written: {last.Result}.");
    }

    private void Fill(Span<byte> payload)
    {
        for (int at = 0; at < payload.Length; at += RawBytes)
            _source.AsSpan(at % _source.Length, Math.Min(RawBytes, payload.Length - at)).CopyTo(payload[at..]);
    }

    private void Read(KvTier tier)
    {
        var tokens = Tokens();
        using var read = tier.BeginRead(tier.Find(Root, Names(tokens), tokens, tokens.Length)!, 0);
        long bytes = 0;
        while (read.State == KvReadState.Reading)
        {
            if (!read.TryTake(out var part))
            {
                if (read.State == KvReadState.Reading) Wait();
                continue;
            }
            part.Bytes.CopyTo(_sink.AsSpan((int)(bytes % (_sink.Length - part.Bytes.Length))));
            bytes += part.Bytes.Length;
        }
        if (read.State != KvReadState.Done || bytes != PayloadBytes) throw new IOException($"The benchmark's extents could not be read: {read.State}, {read.Failure}.");
    }

    private void Wait()
    {
        _woken.Wait(100);
        _woken.Reset();
    }

    private static void DropPages(string folder)
    {
        foreach (string path in Directory.GetFiles(folder, "*.kv"))
        {
            using var file = File.OpenHandle(path);
            Native.DropPages(file);
        }
    }

    private static long BytesFetched() => long.Parse(
        File.ReadLines("/proc/self/io").First(l => l.StartsWith("read_bytes:", StringComparison.Ordinal)).Split(' ')[1], CultureInfo.InvariantCulture);

    private void Line(FormattableString line)
    {
        var text = line.ToString(CultureInfo.InvariantCulture);
        Console.WriteLine(text);
        _report.Append(text).Append('\n');
    }

    private static partial class Native
    {
        private const int DontNeed = 4;

        // O_DIRECT differs between architectures.
        public static SafeFileHandle OpenDirect(string path, bool write)
        {
            int direct = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 0x10000 : 0x4000;
            int descriptor = open(path, direct | (write ? 0x1 | 0x40 | 0x200 : 0), 0x180);  // write only, create, truncate; 0600
            if (descriptor < 0) throw new IOException($"{path}: {Marshal.GetLastPInvokeErrorMessage()}");
            return new SafeFileHandle(descriptor, ownsHandle: true);
        }

        public static void DropPages(SafeFileHandle file)
        {
            if (posix_fadvise(file, 0, 0, DontNeed) != 0) throw new IOException("posix_fadvise failed");
        }

        [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
        private static partial int open(string path, int flags, uint mode);

        [LibraryImport("libc")]
        private static partial int posix_fadvise(SafeFileHandle file, long offset, long length, int advice);
    }
}

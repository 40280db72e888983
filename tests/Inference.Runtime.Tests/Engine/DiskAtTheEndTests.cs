using Inference.Runtime.Engine;
using Inference.Runtime.KvCache.Disk;
using Inference.Runtime.Sampling;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

/// <summary>An engine that ends in good order leaves on disk what it was about to write, however slow the disk is; the next one resumes from it.</summary>
public sealed class DiskAtTheEndTests
{
    public static bool HasDisk => OperatingSystem.IsLinux();

    [Fact(SkipUnless = nameof(HasDisk), Skip = "State on disk needs Linux.")]
    public async Task What_is_on_its_way_to_the_disk_arrives_before_the_engine_stops()
    {
        using var folder = new TemporaryFolder();
        int[][] prompts = [.. Enumerable.Range(1, 8).Select(p => Enumerable.Range(0, 600).Select(i => i * p % 63).ToArray())];
        Assert.All(await RunAsync(folder.Path, prompts), u => Assert.Equal(0, u.DiskTokens));
        Assert.All(await RunAsync(folder.Path, prompts), u => Assert.Equal((599, 599), (u.CachedTokens, u.DiskTokens)));
    }

    private static async Task<List<GenerationUsage>> RunAsync(string folder, int[][] prompts)
    {
        using var model = new HashModel();
        using var backend = new HostMemoryBackend();
        await using var engine = new InferenceEngine(model, backend, r => new LetterText(r), new EngineOptions
        {
            SequencesMax = 1,
            StepTokensMax = 128,
            KvCapacityTokens = 8192,
            PrefixesMax = 32,
            Disk = new(folder, 1L << 30) { WorthTokens = 1, Open = (path, isOurs) => new SlowDisk(FolderDisk.Open(path, isOurs)) },
        }, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady;
        var usages = new List<GenerationUsage>();
        foreach (int[] prompt in prompts)
        {
            using var handle = engine.Submit(new() { RequestId = "r", PromptTokenIds = prompt, OutputTokensMax = 1, Sampling = SamplingParams.Greedy });
            await foreach (var e in handle.Events.ReadAllAsync(TestContext.Current.CancellationToken))
                if (e is GenerationFinished finished) usages.Add(finished.Usage);
        }
        await engine.DrainAsync(Timeout.InfiniteTimeSpan);
        return usages;
    }

    private sealed class SlowDisk(IDisk disk) : IDisk
    {
        public IReadOnlyList<(string Name, long Length)> List() => disk.List();
        public IDiskFile Create(string name, long length) => new SlowFile(disk.Create(name, length));
        public IDiskFile OpenRead(string name) => disk.OpenRead(name);
        public void Rename(string from, string to) => disk.Rename(from, to);
        public void Delete(string name) => disk.Delete(name);
        public void FlushFolder() => disk.FlushFolder();
        public void Dispose() => disk.Dispose();
    }

    private sealed class SlowFile(IDiskFile file) : IDiskFile
    {
        public int ReadAt(Span<byte> bytes, long offset) => file.ReadAt(bytes, offset);
        public void WriteAt(ReadOnlySpan<byte> bytes, long offset) => file.WriteAt(bytes, offset);

        public void Flush()
        {
            Thread.Sleep(150);
            file.Flush();
        }

        public void Dispose() => file.Dispose();
    }
}

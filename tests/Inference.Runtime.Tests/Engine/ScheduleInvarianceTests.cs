// The contract of ADR 3 on the whole engine: tokens and log-probabilities of a request, bit for bit, alone, in batches, prefilled in chunks and
// whole, preempted, resumed from a kept prefix, and resumed from disk in another engine. Half of the requests draw with a seed and penalties,
// half are greedy. 200 prompts on 11 schedules; with INFERENCE_SWEEP=full 1,000 on 23 (minutes).
using System.Globalization;
using System.Text.Json;
using Inference.Backends.Cpu;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Sampling;
using Inference.Runtime.Weights;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class ScheduleInvarianceTests(ITestOutputHelper output)
{
    private const int OutputTokens = 12;

    private static readonly bool Full = Environment.GetEnvironmentVariable("INFERENCE_SWEEP") == "full";
    private static readonly int PromptCount = Full ? 1000 : 200;

    /// <summary>One output token: id, log-probability and the five most likely, as bits.</summary>
    private sealed record Drawn(int TokenId, string Bits);

    /// <param name="Twice">The requests run two times; the second time counts.</param>
    /// <param name="Disk">And that is after a restart, on an engine that has the first one's disk.</param>
    private sealed record Schedule(
        int Sequences, int StepTokens, int KvTokens = 8192, int Prefixes = 0, bool Twice = false, bool Disk = false, int Threads = 0, int Headroom = 256,
        KvRowFormat Rows = KvRowFormat.F32);

    private static readonly Schedule[] InCi =
    [
        new(1, 1), new(1, 7), new(1, 64), new(1, 256, Threads: 1),
        new(8, 8), new(8, 64), new(8, 512), new(32, 256),
        // Only some of them fit at once: sequences are preempted and computed again.
        new(8, 64, KvTokens: 1536, Headroom: 0),
        // Nearly all of each prompt comes from the cache, and from the disk.
        new(4, 64, 1 << 19, Prefixes: 4096, Twice: true), new(4, 64, 1 << 19, Prefixes: 4096, Twice: true, Disk: true),
    ];

    private static readonly Schedule[] Further =
    [
        new(1, 2), new(1, 3), new(1, 5), new(1, 13), new(2, 100, Threads: 1), new(3, 31), new(5, 128), new(16, 16), new(16, 1024), new(64, 64),
        new(32, 32, KvTokens: 1024, Headroom: 0), new(8, 40, 1 << 19, Prefixes: 4096, Twice: true, Threads: 1),
    ];

    [Fact]
    public async Task Every_prompt_gives_the_same_bits_on_every_schedule()
    {
        var requests = Requests();
        var alone = await RunAsync(new(1, 4096), requests);
        Assert.True(alone.Sum(a => a.Count) > PromptCount * 3, "answers of some length");
        int compared = 0;
        foreach (var schedule in Full ? [.. InCi, .. Further] : InCi)
        {
            if (schedule.Disk && !OperatingSystem.IsLinux()) continue;
            AssertSame(alone, await RunAsync(schedule, requests), schedule);
            compared += alone.Sum(a => a.Count);
        }
        output.WriteLine($"{PromptCount} prompts, {compared} tokens compared, no differences");
    }

    [Theory]
    [InlineData(KvRowFormat.BF16)]
    [InlineData(KvRowFormat.Fp8WithFp4Index)]
    [InlineData(KvRowFormat.Fp8WithFp8Index)]
    public async Task Rows_in_every_format_give_the_same_bits_in_batches_preempted_resumed_and_from_disk(KvRowFormat rows)
    {
        var requests = Requests()[50..74]; // some of the examples, some long random ones
        var alone = await RunAsync(new(1, 4096, Rows: rows), requests);
        var exact = await RunAsync(new(1, 4096), requests);
        Assert.Contains(requests.Index(), r => !alone[r.Index].SequenceEqual(exact[r.Index]));
        Schedule[] schedules = [new(8, 64), InCi[^3], InCi[^2], InCi[^1]];
        foreach (var schedule in schedules)
            if (!schedule.Disk || OperatingSystem.IsLinux()) AssertSame(alone, await RunAsync(schedule with { Rows = rows }, requests), schedule);
    }

    private static List<GenerationRequest> Requests()
    {
        var examples = JsonDocument.Parse(File.ReadAllText(Path.Combine(RepositoryPaths.Pebble, "examples.json"))).RootElement.EnumerateArray()
            .Select(e => e.GetProperty("prompt_ids").EnumerateArray().Select(i => i.GetInt32()).ToArray()).Take(60).ToList();
        var random = new Random(20261125);
        // Most are short; some are long enough to come back from disk whole blocks.
        while (examples.Count < PromptCount)
            examples.Add([.. Enumerable.Range(0, random.Next(1, random.Next(8) == 0 ? 700 : 150)).Select(_ => random.Next(1024))]);
        return [.. examples.Select((prompt, i) => new GenerationRequest
        {
            RequestId = i.ToString(CultureInfo.InvariantCulture),
            PromptTokenIds = prompt,
            OutputTokensMax = OutputTokens,
            StopTokenIds = [1],
            TopLogprobs = 5,
            Sampling = i % 2 == 0
                ? SamplingParams.Greedy
                : new SamplingParams(0.9f, i % 4 == 1 ? 40 : 0, 0.95f, 0.01f, 1.1f, 0.2f, 0.1f, (ulong)i),
        })];
    }

    private static async Task<List<Drawn>[]> RunAsync(Schedule schedule, List<GenerationRequest> requests)
    {
        using var folder = new TemporaryFolder();
        using var backend = new CpuBackend(schedule.Threads);
        using var model = DeepSeekV4.Load(
            DeepSeekV4Config.Read(ModelFolder.Open(RepositoryPaths.Pebble)), Checkpoint.Open(RepositoryPaths.Pebble), backend,
            new DeepSeekV4Options(schedule.Rows));
        var options = new EngineOptions
        {
            SequencesMax = schedule.Sequences,
            StepTokensMax = schedule.StepTokens,
            KvCapacityTokens = schedule.KvTokens,
            ContextMax = 1024,
            PrefixesMax = schedule.Prefixes,
            QueueMax = 2 * requests.Count,
            HeadroomTokens = schedule.Headroom,
            Disk = schedule.Disk ? new(folder.Path, 1L << 32) { WorthTokens = 1 } : null,
        };
        if (schedule.Disk)
        {
            var (_, first) = await RunAsync(model, backend, options, requests);
            Assert.Equal(0, first.DiskTokens);
        }
        var (answers, found) = await RunAsync(model, backend, options, schedule is { Twice: true, Disk: false } ? [.. requests, .. requests] : requests);
        if (schedule.Twice && !schedule.Disk) answers = answers[requests.Count..];
        long prompts = requests.Sum(r => r.PromptTokenIds.Count - 1L);
        if (schedule.Twice) Assert.True(found.CachedTokens >= prompts, $"{schedule}: only {found.CachedTokens} of {prompts} tokens from the cache");
        if (schedule.Disk) Assert.True(found.DiskTokens >= prompts / 2, $"{schedule}: only {found.DiskTokens} of {prompts} tokens from disk");
        return answers;
    }

    private static async Task<(List<Drawn>[] Answers, (long CachedTokens, long DiskTokens) Found)> RunAsync(
        IModel model, CpuBackend backend, EngineOptions options, List<GenerationRequest> requests)
    {
        await using var engine = new InferenceEngine(model, backend, r => new LetterText(r), options, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady;
        var handles = new List<GenerationHandle>();
        var answers = new List<(List<Drawn> Drawn, GenerationUsage Usage)>();
        // Not all at once: what twice the same prompt finds then depends on what was kept, not on who ran beside it.
        foreach (var part in requests.Chunk(100))
            answers.AddRange(await Task.WhenAll(part.Select(engine.Submit).ToList().Select(Read)));
        await engine.DrainAsync(TimeSpan.FromSeconds(30));
        return ([.. answers.Select(a => a.Drawn)], (answers.Sum(a => (long)a.Usage.CachedTokens), answers.Sum(a => (long)a.Usage.DiskTokens)));
    }

    private static async Task<(List<Drawn> Drawn, GenerationUsage Usage)> Read(GenerationHandle handle)
    {
        var drawn = new List<Drawn>();
        GenerationUsage? usage = null;
        await foreach (var e in handle.Events.ReadAllAsync())
        {
            if (e is GenerationFinished finished)
            {
                Assert.NotEqual(FinishReason.Error, finished.Reason);
                usage = finished.Usage;
            }
            if (e is not GenerationDelta delta) continue;
            for (int i = 0; i < delta.TokenIds.Count; i++)
            {
                var l = delta.Logprobs![i];
                string bits = string.Join(' ', l.Top.Prepend(new TokenLogprob(l.TokenId, l.Logprob))
                    .Select(t => $"{t.TokenId}:{BitConverter.SingleToInt32Bits(t.Logprob):x8}"));
                drawn.Add(new Drawn(delta.TokenIds[i], bits));
            }
        }
        return (drawn, usage!);
    }

    private static void AssertSame(List<Drawn>[] expected, List<Drawn>[] actual, Schedule schedule)
    {
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.True(expected[i].Count == actual[i].Count, $"{schedule}, prompt {i}: {actual[i].Count} tokens instead of {expected[i].Count}");
            for (int t = 0; t < expected[i].Count; t++)
                Assert.True(expected[i][t] == actual[i][t], $"{schedule}, prompt {i}, token {t}: {actual[i][t]} instead of {expected[i][t]}");
        }
    }
}

// The contract of ADR 3 on the whole engine: tokens and log-probabilities of a request, bit for bit, alone, in a batch of eight, and prefilled
// in chunks of 1, 7, 64 and whole, computed or resumed from a kept prefix. Half of the requests draw with a seed and penalties, half are greedy.
using System.Globalization;
using System.Text.Json;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class ScheduleInvarianceTests
{
    private const int PromptCount = 50, OutputTokens = 12;

    /// <summary>One output token: id, log-probability and the five most likely, as bits.</summary>
    private sealed record Drawn(int TokenId, string Bits);

    [Fact]
    public async Task Fifty_prompts_give_the_same_bits_on_every_schedule()
    {
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "cpu");
        var requests = Requests();
        var alone = await RunAll(loaded, requests, sequences: 1, stepTokens: 4096);
        foreach (int chunk in (int[])[1, 7, 64])
            AssertSame(alone, await RunAll(loaded, requests, sequences: 1, stepTokens: chunk), $"chunks of {chunk}");
        foreach (int stepTokens in (int[])[8, 64, 512])
            AssertSame(alone, await RunAll(loaded, requests, sequences: 8, stepTokens), $"batch of 8, {stepTokens} tokens per step");
        // 1536 positions hold only some of them at once: sequences are preempted and computed again.
        AssertSame(alone, await RunAll(loaded, requests, sequences: 8, stepTokens: 64, kvTokens: 1536), "tiny cache");
        // The same requests twice on one engine: the second time nearly all of each prompt comes from the cache.
        var cached = new long[1];
        var twice = await RunAll(loaded, [.. requests, .. requests], sequences: 1, stepTokens: 64, cachedTokens: cached);
        AssertSame(alone, twice[..PromptCount], "before its prefix was kept");
        AssertSame(alone, twice[PromptCount..], "from a kept prefix");
        Assert.True(cached[0] > requests.Sum(r => r.PromptTokenIds.Count - 1), $"only {cached[0]} tokens from the cache");
        Assert.True(alone.Sum(a => a.Count) > PromptCount * 3, "answers of some length");
    }

    private static List<GenerationRequest> Requests()
    {
        var examples = JsonDocument.Parse(File.ReadAllText(Path.Combine(RepositoryPaths.Pebble, "examples.json"))).RootElement.EnumerateArray()
            .Select(e => e.GetProperty("prompt_ids").EnumerateArray().Select(i => i.GetInt32()).ToArray()).Take(30).ToList();
        var random = new Random(20261125);
        while (examples.Count < PromptCount)
            examples.Add([.. Enumerable.Range(0, random.Next(1, 400)).Select(_ => random.Next(1024))]);
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

    private static async Task<List<Drawn>[]> RunAll(LoadedModel loaded, List<GenerationRequest> requests, int sequences, int stepTokens, int kvTokens = 8192,
        long[]? cachedTokens = null)
    {
        var options = new EngineOptions
        {
            SequencesMax = sequences,
            StepTokensMax = stepTokens,
            KvCapacityTokens = cachedTokens is null ? kvTokens : 65536,
            ContextMax = 1024,
            PrefixesMax = cachedTokens is null ? 0 : 1000,
        };
        await using var engine = new InferenceEngine(
            loaded.Model, loaded.Backend, r => new LetterText(r), options, TimeProvider.System, NullLogger.Instance);
        engine.Start();
        await engine.WhenReady;
        var handles = requests.Select(engine.Submit).ToList();
        var results = await Task.WhenAll(handles.Select(h => Read(h, cachedTokens)));
        await engine.DrainAsync(TimeSpan.FromSeconds(30));
        return results;
    }

    private static async Task<List<Drawn>> Read(GenerationHandle handle, long[]? cachedTokens)
    {
        var drawn = new List<Drawn>();
        await foreach (var e in handle.Events.ReadAllAsync())
        {
            if (e is GenerationFinished finished)
            {
                Assert.NotEqual(FinishReason.Error, finished.Reason);
                if (cachedTokens is not null) Interlocked.Add(ref cachedTokens[0], finished.Usage.CachedTokens);
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
        return drawn;
    }

    private static void AssertSame(List<Drawn>[] expected, List<Drawn>[] actual, string schedule)
    {
        for (int i = 0; i < expected.Length; i++)
        {
            Assert.True(expected[i].Count == actual[i].Count, $"{schedule}, prompt {i}: {actual[i].Count} tokens instead of {expected[i].Count}");
            for (int t = 0; t < expected[i].Count; t++)
                Assert.True(expected[i][t] == actual[i][t], $"{schedule}, prompt {i}, token {t}: {actual[i][t]} instead of {expected[i][t]}");
        }
    }
}

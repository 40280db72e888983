using System.Text.Json;
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Sampling;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Testing;
using Microsoft.Extensions.Logging.Abstractions;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

/// <summary>The engine on real numbers: DeepSeek-V4's mechanisms on the Cpu backend, through the whole way of a token.</summary>
public sealed class RealModelTests
{
    private static CancellationToken Patience => TestContext.Current.CancellationToken;

    private static DeepSeekV4 Load(string folder, IBackend backend) => DeepSeekV4.Load(
        DeepSeekV4Config.Read(ModelFolder.Open(folder)), Checkpoint.Open(folder), backend, new DeepSeekV4Options());

    private static async Task<(List<StreamRecord> Streams, EngineStats Stats)> RunAsync(
        Func<InferenceEngine> make, IEnumerable<GenerationRequest> requests, bool together)
    {
        await using var engine = make();
        engine.Start();
        await engine.WhenReady.WaitAsync(Patience);
        var streams = new List<StreamRecord>();
        foreach (var request in requests)
        {
            streams.Add(new(engine.Submit(request), request));
            if (!together) await streams[^1].ReadToEndAsync(Patience);
        }
        if (together)
            foreach (var stream in streams) await stream.ReadToEndAsync(Patience);
        return (streams, engine.Stats);
    }

    /// <summary>Bits, not tolerances: tokens and logprobs alone, in a batch, in small chunks, and after preemptions.</summary>
    [Fact]
    public async Task Answers_have_the_same_bits_however_they_are_scheduled()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        using var backend = new CpuBackend(2);
        using var model = Load(folder.Path, backend);
        var requests = Enumerable.Range(0, 7).Select(i => new GenerationRequest
        {
            RequestId = $"r{i}",
            PromptTokenIds = [.. Enumerable.Range(i * 11, 236 + i * 3).Select(t => TinyDeepSeekV4.TA.Token(t) % 96)],
            OutputTokensMax = 48,
            Sampling = i == 0 ? SamplingParams.Greedy : new(1, 0, 0.9f, 0, 1.1f, 0, 0, (ulong)i),
            TopLogprobs = 2,
        }).ToList();
        var alone = new EngineOptions { SequencesMax = 1, StepTokensMax = 512, KvCapacityTokens = 1024, HeadroomTokens = 0 };
        var (expected, _) = await RunAsync(() => Make(alone), requests, together: false);

        foreach (var options in new[]
        {
            alone with { SequencesMax = 7, KvCapacityTokens = 4096 },
            alone with { SequencesMax = 7, StepTokensMax = 13, KvCapacityTokens = 4096 },
            alone with { SequencesMax = 6, StepTokensMax = 200, KvCapacityTokens = 256 },  // 7 blocks: too few once two sequences need a second
        })
        {
            var (streams, stats) = await RunAsync(() => Make(options), requests, together: true);
            for (int i = 0; i < requests.Count; i++)
            {
                Assert.Equal(expected[i].Tokens, streams[i].Tokens);
                Assert.Equal(expected[i].Logprobs.Select(Bits), streams[i].Logprobs.Select(Bits));
            }
            Assert.Equal(options.KvCapacityTokens == 256, stats.Preemptions > 0);
        }

        InferenceEngine Make(EngineOptions options) =>
            new(model, backend, r => new LetterText(r), options, TimeProvider.System, NullLogger.Instance);

        static string Bits(TokenLogprobs l) => string.Join(' ', l.Top.Prepend(new(l.TokenId, l.Logprob)).Select(
            t => $"{t.TokenId}:{BitConverter.SingleToUInt32Bits(t.Logprob):x8}"));
    }

    /// <summary>The embedded model says what its training code says, all conversations at once.</summary>
    [Fact]
    public async Task Pebble_answers_its_examples()
    {
        using var backend = new CpuBackend(2);
        using var model = Load(RepositoryPaths.Pebble, backend);
        var tokenizer = TokenizerFactory.Load(RepositoryPaths.Pebble);
        using var file = JsonDocument.Parse(await File.ReadAllTextAsync(Path.Combine(RepositoryPaths.Pebble, "examples.json"), Patience));
        var examples = file.RootElement.EnumerateArray().Where(e => e.GetProperty("smallest_gap").GetDouble() > 0.01).ToList();
        Assert.True(examples.Count > 20);
        var requests = examples.Select(e => new GenerationRequest
        {
            RequestId = e.GetProperty("task").GetString()!,
            PromptTokenIds = Ids(e, "prompt_ids"),
            OutputTokensMax = 400,
            Sampling = SamplingParams.Greedy,
            StopTokenIds = [1],
            KeepSpecialTokens = true,
        });
        var options = new EngineOptions { SequencesMax = 12, KvCapacityTokens = 12 * 1024 };
        var (streams, stats) = await RunAsync(
            () => new(model, backend, tokenizer, options, TimeProvider.System, NullLogger.Instance), requests, together: true);
        for (int i = 0; i < examples.Count; i++)
        {
            Assert.Equal(Ids(examples[i], "completion_ids"), streams[i].Tokens.Append(streams[i].End!.StopTokenId ?? -1));
            Assert.Equal(examples[i].GetProperty("completion").GetString(), streams[i].Text + tokenizer.TokenText(1));
        }
        Assert.Equal(stats.OutputTokens, streams.Sum(s => s.End!.Usage.OutputTokens));

        static List<int> Ids(JsonElement e, string name) => [.. e.GetProperty(name).EnumerateArray().Select(x => x.GetInt32())];
    }
}

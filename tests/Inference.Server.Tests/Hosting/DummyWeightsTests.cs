// --dummy: a model of random weights made in memory, from a folder with a config and nothing else, or from the name of one that ships.
using Grpc.Core;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Inference.Server.Tests.Commands;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

public sealed class DummyWeightsTests
{
    private static readonly string PebbleConfig = Path.Combine(RepositoryPaths.Pebble, "config.json");

    [Fact]
    public async Task A_config_alone_is_served_and_answers_token_ids_and_text()
    {
        using var folder = new TemporaryFolder();
        File.Copy(PebbleConfig, folder["config.json"]);
        await using var server = await ServerProcess.StartServingAsync("--model", folder.Path, "--dummy", "--context-max", "512");
        Assert.Contains("The weights are random", server.Log, StringComparison.Ordinal);
        Assert.Contains("model " + folder.Path + " with random weights", server.Log, StringComparison.Ordinal);
        var ids = new V1.GenerateRequest { TokenIds = new V1.TokenIds { Ids = { 0, 300, 1023 } }, Stopping = new V1.StoppingOptions { MaxTokens = 5, IgnoreEos = true } };
        Assert.Equal((3, 5), await UsageAsync(server, ids));
        // Without a tokenizer.json text is one token per byte.
        var text = new V1.GenerateRequest { Text = "Grüße", Stopping = new V1.StoppingOptions { MaxTokens = 2, IgnoreEos = true } };
        Assert.Equal((7, 2), await UsageAsync(server, text));
    }

    private static async Task<(int Prompt, int Output)> UsageAsync(ServerProcess server, V1.GenerateRequest request)
    {
        using var call = server.Completions.Generate(request);
        V1.Finished? finished = null;
        await foreach (var e in call.ResponseStream.ReadAllAsync())
            if (e.Finished is not null) finished = e.Finished;
        return ((int)finished!.Usage.PromptTokens, (int)finished.Usage.OutputTokens);
    }

    [Fact]
    public void Weights_in_memory_are_those_that_synthesize_writes()
    {
        using var folder = new TemporaryFolder();
        Cli.Run("synthesize", "--config", RepositoryPaths.Pebble, "--dtype", "bf16", "--output", folder["m"]).Succeeds();
        using var backend = ModelHost.Backend(Options(RepositoryPaths.Pebble));
        using var model = ModelHost.LoadModel(RepositoryPaths.Pebble, backend, dummy: true).Model;
        using var stored = ModelHost.LoadModel(folder["m"], backend).Model;
        int[] tokens = [.. Enumerable.Range(0, 40).Select(i => i * 97 % 1024)];
        Assert.Equal(Last(stored, tokens), Last(model, tokens));

        float[] Last(IModel m, int[] of)
        {
            using var session = new ModelSession(m, backend);
            return session.Run(of)[^1];
        }
    }

    [Fact]
    public void A_tokenizer_beside_the_config_is_used()
    {
        var run = Cli.Run("run", "--model", "pebble", "--dummy", "--stats", "--max-tokens", "3", "What are you?").Succeeds();
        Assert.Contains("The weights are random (--dummy)", run.Error, StringComparison.Ordinal);
        Assert.Contains("prompt 9 tokens", run.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void Benchmarks_say_that_weights_were_random()
    {
        string[] small = ["bench", "--prompt-tokens", "4", "--output-tokens", "2", "--concurrency", "1", "--model", "pebble"];
        Assert.Equal("random", Cli.Run([.. small, "--dummy", "--json", "-"]).Json.GetProperty("model").GetProperty("weights").GetString());
        Assert.Equal("stored", Cli.Run([.. small, "--json", "-"]).Json.GetProperty("model").GetProperty("weights").GetString());
        Assert.Contains("random weights", Cli.Run([.. small, "--dummy"]).Succeeds().Out, StringComparison.Ordinal);
    }

    [Fact]
    public void The_config_of_a_billion_parameters_ships_without_weights()
    {
        var folder = ModelFolder.Open(Path.Combine(RepositoryPaths.Root, "models", "deepseek-v4-1b"));
        var config = DeepSeekV4Config.Read(folder);
        Assert.Equal(SyntheticStorage.Fp8Fp4, SyntheticConfig.StorageOf(folder.ConfigFile, folder.ConfigJson));
        Assert.Equal((1, 4, 3), (config.LayersOf(AttentionKind.Sliding), config.LayersOf(AttentionKind.Selected), config.LayersOf(AttentionKind.Compressed)));
        Assert.Equal(1 << 20, config.ContextMax);
        Assert.Throws<CheckpointException>(() => Checkpoint.Open(folder.FolderPath));
        Cli.Run("run", "--model", "no-such-model", "x").Fails(2, "no-such-model", "deepseek-v4-1b, pebble");
    }

    private static ModelOptions Options(string folder) => new(
        folder, null, "cpu", 1, 512, null, SequencesMax: 2, StepTokensMax: 64, PrefixesMax: 0, QueueMax: 4, null, null, null);
}

using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class ModelFolderTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    private ModelConfigException Refused(string? path = null) => Assert.Throws<ModelConfigException>(() => ModelFolder.Open(path ?? _folder.Path));

    [Fact]
    public void The_embedded_model_is_recognised_and_its_weights_open()
    {
        var folder = ModelFolder.Open(RepositoryPaths.Pebble);
        Assert.Equal("deepseek_v4", folder.ModelType);
        Assert.Equal(RepositoryPaths.Pebble, folder.FolderPath);
        using var checkpoint = folder.OpenCheckpoint();
        Assert.Equal(535, checkpoint.Tensors.Count);
    }

    [Fact]
    public void A_path_that_is_not_there_says_what_to_give()
    {
        var error = Refused(_folder["nope"]);
        Assert.Equal(_folder["nope"], error.File);
        Assert.Contains("no such folder", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_is_answered_with_its_folder()
    {
        var error = Refused(Path.Combine(RepositoryPaths.Pebble, "model.safetensors"));
        Assert.Contains($"Give the folder that holds it: {RepositoryPaths.Pebble}", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_folder_of_model_folders_is_answered_with_them()
    {
        var error = Refused(RepositoryPaths.Combine("models"));
        Assert.Contains("Did you mean ", error.Message, StringComparison.Ordinal);
        Assert.Contains(RepositoryPaths.Pebble, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_snapshots_of_a_hub_cache_are_found()
    {
        Directory.CreateDirectory(_folder["snapshots/abc"]);
        File.WriteAllText(_folder["snapshots/abc/config.json"], "{}");
        Assert.Contains($"Did you mean {_folder["snapshots/abc"]}?", Refused().Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_folder_without_config_says_so_and_gguf_gets_its_own_hint()
    {
        Assert.Contains("holds no config.json", Refused().Message, StringComparison.Ordinal);
        File.WriteAllText(_folder["m.gguf"], "GGUF");
        Assert.Contains("GGUF files, which this build does not read", Refused().Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("""{"model_type":"llama"}""", "\"llama\"")]
    [InlineData("""{"model_type":"DeepSeek_V4"}""", "\"DeepSeek_V4\"")]
    [InlineData("""{"model_type":5}""", "5")]
    [InlineData("""{}""", null)]
    [InlineData("""{"model_type":null}""", null)]
    public void An_unknown_family_lists_the_known_ones(string config, string? value)
    {
        File.WriteAllText(_folder["config.json"], config);
        var error = Refused();
        Assert.Equal(("model_type", value), (error.Key, error.Value));
        if (value != "5")
            Assert.Contains("supported families (deepseek_v4)", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_damaged_or_empty_config_is_a_typed_error()
    {
        File.WriteAllText(_folder["config.json"], "<html>Not found</html>");
        Assert.Contains("not valid JSON", Refused().Message, StringComparison.Ordinal);
        File.WriteAllText(_folder["config.json"], "");
        Assert.Equal(CheckpointFault.FileTruncated, Assert.Throws<CheckpointException>(() => ModelFolder.Open(_folder.Path)).Fault);
        File.WriteAllBytes(_folder["config.json"], new byte[(16 << 20) + 1]);
        Assert.Equal(CheckpointFault.LimitExceeded, Assert.Throws<CheckpointException>(() => ModelFolder.Open(_folder.Path)).Fault);
    }

    [Fact]
    public void A_config_that_links_out_of_the_folder_follows_the_link_policy()
    {
        Directory.CreateDirectory(_folder["model"]);
        File.Copy(Path.Combine(RepositoryPaths.Pebble, "config.json"), _folder["blob"]);
        File.CreateSymbolicLink(_folder["model/config.json"], "../blob");
        Assert.Equal(CheckpointFault.LinkLeavesFolder, Assert.Throws<CheckpointException>(() => ModelFolder.Open(_folder["model"])).Fault);
        Assert.Equal("deepseek_v4", ModelFolder.Open(_folder["model"], CheckpointOptions.Default with { LinkRoot = _folder.Path }).ModelType);
    }
}

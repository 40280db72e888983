using Inference.Server.Hosting;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>generation_config.json: what it says counts, what it gets wrong is refused.</summary>
public sealed class GenerationDefaultsTests
{
    [Fact]
    public void Pebble_is_greedy_and_ends_at_its_end_token()
    {
        var defaults = GenerationDefaults.Read(RepositoryPaths.Pebble);
        Assert.Equal((0f, 1f, 0), (defaults.Temperature, defaults.TopP, defaults.TopK));
        Assert.Equal([1], defaults.EndTokenIds);
    }

    [Fact]
    public void No_file_means_the_built_in_defaults_and_the_configs_end_token()
    {
        var defaults = Read(null, """{"eos_token_id": [7, 8]}""");
        Assert.Equal([7, 8], defaults.EndTokenIds);
        Assert.Equal(GenerationDefaults.BuiltIn with { EndTokenIds = defaults.EndTokenIds }, defaults);
    }

    [Fact]
    public void Values_of_the_file_count()
    {
        var defaults = Read("""{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "max_new_tokens": 9, "eos_token_id": 3}""");
        Assert.Equal((0.6f, 0.95f, 20, 1.05f, 9), (defaults.Temperature, defaults.TopP, defaults.TopK, defaults.RepetitionPenalty, defaults.MaxTokens));
        Assert.Equal([3], defaults.EndTokenIds);
    }

    [Fact]
    public void Without_sampling_the_temperature_is_zero() => Assert.Equal(0, Read("""{"do_sample": false, "temperature": 0.7}""").Temperature);

    [Theory]
    [InlineData("""{"temperature": -1}""", "temperature")]
    [InlineData("""{"temperature": "hot"}""", "temperature")]
    [InlineData("""{"top_p": 0}""", "top_p")]
    [InlineData("""{"top_k": 1.5}""", "top_k")]
    [InlineData("""{"top_k": 1e30}""", "top_k")]
    [InlineData("""{"eos_token_id": -1}""", "eos_token_id")]
    [InlineData("""{"eos_token_id": ["x"]}""", "eos_token_id")]
    [InlineData("""[1]""", "not a JSON object")]
    [InlineData("""{""", "not JSON")]
    public void A_damaged_file_is_refused_by_name(string json, string named)
    {
        var e = Assert.Throws<InvalidDataException>(() => Read(json));
        Assert.StartsWith("generation_config.json: ", e.Message, StringComparison.Ordinal);
        Assert.Contains(named, e.Message, StringComparison.Ordinal);
    }

    private static GenerationDefaults Read(string? generation, string config = "{}")
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["config.json"], config);
        if (generation is not null) File.WriteAllText(folder["generation_config.json"], generation);
        return GenerationDefaults.Read(folder.Path);
    }
}

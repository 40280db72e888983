// `inference synthesize`: a folder that the other verbs take, the same bytes for the same seed, and nothing left behind by a run that did not end.
using System.Security.Cryptography;
using System.Text.Json.Nodes;
using Inference.Runtime.Models;
using Inference.Server.Commands;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class SynthesizeCommandTests
{
    private static readonly string Pebble = Path.Combine(RepositoryPaths.Pebble, "config.json");

    [Theory, InlineData("fp8-fp4"), InlineData("bf16"), InlineData("f32")]
    public void A_written_folder_is_accepted_and_computes_finite_numbers(string dtype)
    {
        using var folder = new TemporaryFolder();
        string model = folder["new/model"];
        var written = Cli.Run("synthesize", "--config", Pebble, "--dtype", dtype, "--output", model).Succeeds();
        Assert.StartsWith(model + ": ", written.Out, StringComparison.Ordinal);
        Assert.Equal("", written.Error);
        Assert.Equal(["config.json", "model.safetensors"], Directory.GetFiles(model).Select(Path.GetFileName).Order(StringComparer.Ordinal));
        var json = Cli.Run("inspect", model, "--json").Json;
        Assert.Equal(0, json.GetProperty("problems").GetArrayLength());
        Assert.Equal("mtp", json.GetProperty("config").GetProperty("draft").GetString());
        string ids = string.Join(',', Enumerable.Range(0, 40).Select(i => (i * i * 37 + i) % 1024));
        var lines = Cli.Run("score", "--model", model, "--backend", "cpu", "--token-ids", ids, "--json", "--draft").JsonLines;
        Assert.Equal(40, lines.Count);
        var logprobs = lines.SelectMany(l => l.GetProperty("next").EnumerateArray().Select(n => n.GetProperty("logprob").GetDouble())).ToList();
        Assert.All(logprobs.Concat(lines.Skip(1).Select(l => l.GetProperty("logprob").GetDouble())), p => Assert.InRange(p, -60, 0));
        Assert.True(logprobs.Distinct().Count() > 150, "positions differ");
    }

    [Fact]
    public void The_same_seed_gives_the_same_bytes_and_another_one_others()
    {
        using var folder = new TemporaryFolder();
        string Hash(string name, string seed)
        {
            Cli.Run("synthesize", "--config", Pebble, "--layers", "3", "--seed", seed, "--output", folder[name]).Succeeds();
            Assert.Equal(3, Cli.Run("inspect", folder[name], "--json").Json.GetProperty("config").GetProperty("layer_count").GetInt32());
            using var file = File.OpenRead(Path.Combine(folder[name], "model.safetensors"));
            return Convert.ToHexString(SHA256.HashData(file));
        }
        Assert.Equal(Hash("a", "7"), Hash("b", "7"));
        Assert.NotEqual(Hash("c", "8"), Hash("d", "9"));
        Assert.Equal(File.ReadAllBytes(folder["a/config.json"]), File.ReadAllBytes(folder["c/config.json"]));
    }

    [Fact]
    public void An_empty_folder_may_be_written_to()
    {
        using var folder = new TemporaryFolder();
        Directory.CreateDirectory(folder["m"]);
        Cli.Run("synthesize", "--config", Pebble, "--layers", "1", "--output", folder["m"] + "/").Succeeds();
        Assert.Equal([folder["m"]], Directory.GetFileSystemEntries(folder.Path));
    }

    [Fact]
    public void What_cannot_be_written_is_refused_before_anything_is()
    {
        using var folder = new TemporaryFolder();
        string full = folder["full"], file = folder["file"], output = folder["output"];
        Directory.CreateDirectory(full);
        File.WriteAllText(Path.Combine(full, "x"), "x");
        File.WriteAllText(file, "{");
        var huge = JsonNode.Parse(File.ReadAllText(Pebble))!;
        foreach (string key in (string[])["hidden_size", "moe_intermediate_size"]) huge[key] = 1 << 17;
        huge["n_routed_experts"] = 4096;
        File.WriteAllText(folder["huge.json"], huge.ToJsonString());
        Refused(["--config", Pebble, "--output", full], "--output", full, "not empty");
        Refused(["--config", Pebble, "--output", file], "--output", file, "is a file");
        Refused(["--config", folder["none.json"], "--output", output], "--config", "none.json");
        Refused(["--config", file, "--output", output], file, "JSON");
        Refused(["--config", Pebble, "--layers", "7", "--output", output], Pebble, "7 layers", "1 to 6");
        Refused(["--config", Pebble, "--layers", "0", "--output", output], "--layers", "'0'");
        Refused(["--config", Pebble, "--dtype", "int3", "--output", output], "--dtype", "'int3'", "fp8-fp4, bf16, f32");
        Refused(["--config", Pebble, "--seed", "-1", "--output", output], "--seed", "'-1'");
        Refused(["--config", folder["huge.json"], "--output", output], "--output", "TiB", "free", folder.Path); // 0.6 PiB
        Refused(["--output", output], "--config", "synthesize --help");
        Assert.Equal(["file", "full", "huge.json"], Directory.GetFileSystemEntries(folder.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal));

        static void Refused(string[] arguments, params string[] parts) => Cli.Run(["synthesize", .. arguments]).Fails(2, parts);
    }

    [Fact]
    public void An_interrupted_run_leaves_nothing_and_a_killed_one_no_folder_of_that_name()
    {
        using var folder = new TemporaryFolder();
        Assert.Throws<OperationCanceledException>(() =>
            SynthesizeCommand.Run(Pebble, 2, SyntheticStorage.Fp8Fp4, 1, folder["m"], new CancellationToken(canceled: true)));
        Assert.Empty(Directory.GetFileSystemEntries(folder.Path));
        Directory.CreateDirectory(folder["m.partial"]); // as a killed run leaves it
        Cli.Run("synthesize", "--config", Pebble, "--output", folder["m"]).Fails(2, "--output", "m.partial", "remove it");
        Assert.False(Directory.Exists(folder["m"]));
    }

    [Fact]
    public void Progress_says_how_much_how_fast_and_how_long() =>
        Assert.Equal("1.50 GiB of 6.00 GiB, 512 MiB/s, 9.00 s left", WriteProgressLine.Text(3L << 29, 6L << 30, TimeSpan.FromSeconds(3)));
}

// `inference inspect`: the figures of the embedded model and of tiny checkpoints, and that every kind of broken folder is named, all at once.
using System.Text.Json;
using System.Text.Json.Nodes;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class InspectCommandTests
{
    [Fact]
    public void The_embedded_model_is_described_in_figures()
    {
        var json = Cli.Run("inspect", "--json").Json;
        Assert.Equal("deepseek_v4", json.GetProperty("family").GetString());
        Assert.Equal(6, json.GetProperty("config").GetProperty("layer_count").GetInt32());
        Assert.Equal("mtp", json.GetProperty("config").GetProperty("draft").GetString());
        // models/pebble/README.md: 4.64 M with the draft block, 9.8 MB.
        var parameters = json.GetProperty("parameters");
        long total = parameters.GetProperty("total").GetInt64(), draft = parameters.GetProperty("draft").GetInt64();
        Assert.Equal(4.64e6, total + draft, 0.01e6);
        Assert.InRange(parameters.GetProperty("active").GetInt64(), 1, total - 1);
        long bytes = json.GetProperty("weight_bytes").GetInt64();
        Assert.InRange(new FileInfo(Path.Combine(RepositoryPaths.Pebble, "model.safetensors")).Length - bytes, 1, 100_000);
        Assert.Equal(bytes, json.GetProperty("storage").EnumerateArray().Sum(s => s.GetProperty("bytes").GetInt64()));
        Assert.Equal(json.GetProperty("tensor_count").GetInt32(), json.GetProperty("storage").EnumerateArray().Sum(s => s.GetProperty("tensors").GetInt32()));
        Assert.Equal(0, json.GetProperty("problems").GetArrayLength());
    }

    [Fact]
    public void Memory_is_that_of_the_pages_a_sequence_holds()
    {
        var json = Cli.Run("inspect", RepositoryPaths.Pebble, "--json", "--context", "1,300,100000").Json;
        var states = DeepSeekV4.KvStatesOf(DeepSeekV4Config.Read(ModelFolder.Open(RepositoryPaths.Pebble)), KvRowFormat.F32);
        Assert.Equal(states.Select(s => s.Name), json.GetProperty("kv_states").EnumerateArray().Select(s => s.GetProperty("name").GetString()));
        using var cache = new KvCacheManager(states, new KvCapacity(110_000, 1, 110_000), null);
        foreach (var memory in json.GetProperty("memory").EnumerateArray())
        {
            int context = memory.GetProperty("context").GetInt32();
            var table = cache.CreateTable();
            // As the engine does: room for the last token, after those before it were processed and trimmed.
            Assert.True(cache.TryExtend(table, context - 1));
            cache.Trim(table, context - 1);
            Assert.True(cache.TryExtend(table, context));
            long held = states.Select((s, k) => s.PageBytes * table.Pages(k).Count).Sum();
            cache.Free(table);
            Assert.Equal(held, memory.GetProperty("kv_bytes").GetInt64());
            Assert.Equal(held + json.GetProperty("weight_bytes").GetInt64(), memory.GetProperty("total_bytes").GetInt64());
        }
    }

    [Theory]
    [InlineData("flash", 3514.25, 3.43, 3.76, 6.72)]
    [InlineData("pro", 5031.4375, 4.91, 5.38, 9.62)]
    public void The_released_models_need_what_their_description_says(string name, double perToken, double fp8, double index8, double bf16)
    {
        using var folder = new TemporaryFolder();
        var released = name == "flash" ? PublishedConfigs.Flash() : PublishedConfigs.Pro();
        File.WriteAllText(folder["config.json"], released.ToJsonString());
        var result = Cli.Run("inspect", folder.Path, "--json", "--context", "1048576");
        Assert.Equal(2, result.ExitCode); // there are no weights
        var json = JsonDocument.Parse(result.Out).RootElement;
        Assert.Equal("fp8", json.GetProperty("kv_format").GetString());
        var memory = json.GetProperty("memory")[0];
        Assert.Equal((long)(perToken * 1_048_576), memory.GetProperty("rows_bytes").GetInt64());
        foreach (var (format, gib) in (ReadOnlySpan<(string, double)>)[("fp8", fp8), ("fp8-index8", index8), ("bf16", bf16), ("f32", 2 * bf16)])
            Assert.Equal(gib, memory.GetProperty("formats").GetProperty(format).GetProperty("rows_bytes").GetInt64() / (double)(1 << 30), 0.01);

        // The constant state: what the description counts, but for one page of each kind that is begun or not yet given back.
        var config = PublishedConfigs.Parsed(released);
        var constant = DeepSeekV4.KvStatesOf(config, KvRowFormat.Fp8WithFp4Index).Where(s => s.Retention != KvRetention.All);
        long counted = DeepSeekV4KvSize.Of(config, KvRowFormat.Fp8WithFp4Index, draftBlocks: 1).FixedBytes, bytes = memory.GetProperty("constant_bytes").GetInt64();
        Assert.InRange(bytes, counted - constant.Sum(s => s.PageBytes), counted + constant.Sum(s => s.PageBytes));
        Assert.Equal(memory.GetProperty("kv_bytes").GetInt64(), memory.GetProperty("rows_bytes").GetInt64() + bytes);
        Assert.Equal(memory.GetProperty("kv_bytes").GetInt64(), memory.GetProperty("kinds").EnumerateObject().Sum(k => k.Value.GetInt64()));

        string tables = Cli.Run("inspect", folder.Path, "--context", "1048576", "--kv-format", "fp8-index8").Out;
        foreach (string part in (string[])["rows stored as fp8-index8", $"{index8:0.00} GiB", $"{fp8:0.00} GiB", "584 B", "68 B", "132 B", "csa-rows"])
            Assert.Contains(part, tables, StringComparison.Ordinal);
    }

    [Fact]
    public void A_format_that_there_is_not_or_that_the_widths_forbid_is_refused()
    {
        Cli.Run("inspect", "--kv-format", "fp6").Fails(2, "--kv-format", "'fp6'", "fp8-index8");
        using var folder = new TemporaryFolder();
        Cli.Run("inspect", TinyDeepSeekV4.TA.Write(folder.Path), "--kv-format", "fp8").Fails(2, "--kv-format fp8", "24 channels", "bf16");
        string text = Cli.Run("inspect", folder.Path).Succeeds().Out;
        Assert.Contains("rows stored as f32", text, StringComparison.Ordinal);
        Assert.DoesNotContain("fp8-index8", text.Split("by format")[1], StringComparison.Ordinal);
    }

    [Fact]
    public void Quantised_storage_is_listed_by_dtype()
    {
        using var folder = new TemporaryFolder();
        var json = Cli.Run("inspect", (TinyDeepSeekV4.TF with { Storage = TinyStorage.Fp8Fp4 }).Write(folder.Path), "--json").Json;
        var dtypes = json.GetProperty("storage").EnumerateArray().Select(s => s.GetProperty("dtype").GetString()).ToList();
        Assert.Contains("F4E2M1", dtypes);
        Assert.Contains("F8E4M3", dtypes);
        Assert.Contains("F8E8M0", dtypes);
    }

    [Fact]
    public void Tables_show_layers_state_and_memory()
    {
        string text = Cli.Run("inspect", RepositoryPaths.Pebble).Succeeds().Out;
        foreach (string part in (string[])["1 window only", "3 with the best 32 rows of 4:1", "csa-rows", "1,048,576", "MTP block", "BF16", "4.05 M"])
            Assert.Contains(part, text, StringComparison.Ordinal);
    }

    [Fact]
    public void Every_problem_of_a_broken_folder_is_named()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        Change(folder["config.json"], config => config["hidden_size"] = -4);
        File.WriteAllBytes(folder["model.safetensors"], File.ReadAllBytes(folder["model.safetensors"])[..^100]);
        File.WriteAllText(folder["generation_config.json"], "{\"temperature\": -1}");
        File.WriteAllText(folder["tokenizer.json"], "{");
        var result = Cli.Run("inspect", folder.Path).Fails(2, "4 reasons", "hidden_size", "-4", "model.safetensors", "generation_config.json", "temperature", "tokenizer.json");
        Assert.Equal(4, result.Error.Split("\n  - ").Length - 1);
    }

    [Fact]
    public void Problems_stand_in_the_json_too()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        Change(folder["config.json"], config => config["num_hidden_layers"] = 7);
        Change(folder["config.json"], config => config["compress_ratios"] = new JsonArray(0, 0, 4, 16, 4, 16, 4, 0));
        var result = Cli.Run("inspect", folder.Path, "--json");
        Assert.Equal(2, result.ExitCode);
        var json = JsonDocument.Parse(result.Out).RootElement;
        Assert.Equal(7, json.GetProperty("config").GetProperty("layer_count").GetInt32());
        Assert.Equal(JsonValueKind.Null, json.GetProperty("parameters").ValueKind);
        Assert.Contains("layers.6.", json.GetProperty("problems")[0].GetString(), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("model_type", "\"gpt2\"", "'model_type'", "deepseek_v4")]
    [InlineData("compress_ratios", "[0,0,-4,16,4,16,0]", "compress_ratios")]
    [InlineData("n_routed_experts", "12", "experts.8")]
    [InlineData("vocab_size", "97", "embed.weight", "[96, 32]")]
    public void A_config_that_does_not_fit_is_named_with_its_key(string key, string value, params string[] parts)
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        Change(folder["config.json"], config => config[key] = JsonNode.Parse(value));
        var result = Cli.Run("inspect", folder.Path);
        Assert.Equal(2, result.ExitCode);
        foreach (string part in parts) Assert.Contains(part, result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_folder_that_is_none_is_told_so_with_a_hint()
    {
        using var folder = new TemporaryFolder();
        Directory.CreateDirectory(folder["models/one"]);
        File.WriteAllText(folder["models/one/config.json"], "{}");
        Cli.Run("inspect", folder["nowhere"]).Fails(2, "nowhere", "no such folder");
        Cli.Run("inspect", folder["models"]).Fails(2, "no config.json", "Did you mean", "one");
        Cli.Run("inspect", folder["models/one/config.json"]).Fails(2, "is a file", "Give the folder");
        Cli.Run("inspect", "--context", "9999999").Fails(2, "--context", "9999999", "1048576");
        Cli.Run("inspect", "--context", "0").Fails(2, "--context", "'0'");
    }

    private static void Change(string file, Action<JsonObject> change)
    {
        var json = JsonNode.Parse(File.ReadAllText(file))!.AsObject();
        change(json);
        File.WriteAllText(file, json.ToJsonString());
    }
}

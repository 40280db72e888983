// `inference bench`: one cell per combination, figures that hold together, a report that says what was measured where. Speeds are not judged.
using System.Text.Json;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class BenchCommandTests
{
    [Fact]
    public void Every_combination_is_a_cell_whose_figures_hold_together()
    {
        using var folder = new TemporaryFolder();
        var result = Cli.Run(
            "bench", "--prompt-tokens", "8,20", "--output-tokens", "5", "--concurrency", "1,3", "--requests", "4", "--json", folder["bench.json"]).Succeeds();
        Assert.Equal("", result.Error);
        Assert.Contains("first token ms", result.Out, StringComparison.Ordinal);
        var json = JsonDocument.Parse(File.ReadAllText(folder["bench.json"])).RootElement;
        var cells = json.GetProperty("cells").EnumerateArray().ToList();
        Assert.Equal([(8, 1), (8, 3), (20, 1), (20, 3)], cells.Select(c => (c.GetProperty("prompt_tokens").GetInt32(), c.GetProperty("concurrency").GetInt32())));
        foreach (var cell in cells)
        {
            double seconds = cell.GetProperty("elapsed_ms").GetDouble() / 1000;
            int prompt = cell.GetProperty("prompt_tokens").GetInt32();
            Assert.Equal(4, cell.GetProperty("requests").GetInt32());
            Assert.Equal(4 * 5 / seconds, cell.GetProperty("output_tokens_per_second").GetDouble(), 1e-6);
            Assert.Equal(4 * (5 + prompt) / seconds, cell.GetProperty("total_tokens_per_second").GetDouble(), 1e-6);
            foreach (string name in (string[])["ttft_ms", "tpot_ms"])
            {
                var spread = cell.GetProperty(name);
                double p50 = spread.GetProperty("p50").GetDouble(), p99 = spread.GetProperty("p99").GetDouble();
                Assert.InRange(spread.GetProperty("mean").GetDouble(), double.Epsilon, p99);
                Assert.InRange(p50, double.Epsilon, p99);
                Assert.True(p99 < cell.GetProperty("elapsed_ms").GetDouble());
            }
        }
        Assert.Equal("pebble", json.GetProperty("model").GetProperty("name").GetString());
        Assert.NotEqual("", json.GetProperty("machine").GetProperty("processor").GetString());
        Assert.Equal(Environment.ProcessorCount, json.GetProperty("machine").GetProperty("logical_cores").GetInt32());
        Assert.InRange(DateTimeOffset.UtcNow - json.GetProperty("date").GetDateTimeOffset(), TimeSpan.Zero, TimeSpan.FromMinutes(5));
    }

    [Fact]
    public void Json_to_standard_output_takes_the_tables_place_and_one_token_has_no_time_per_token()
    {
        using var folder = new TemporaryFolder();
        var json = Cli.Run(
            "bench", "--model", TinyDeepSeekV4.TA.Write(folder.Path), "--prompt-tokens", "3", "--output-tokens", "1", "--concurrency", "1", "--json", "-").Json;
        Assert.Equal(JsonValueKind.Null, Assert.Single(json.GetProperty("cells").EnumerateArray()).GetProperty("tpot_ms").ValueKind);
    }

    [Fact]
    public void Contexts_are_measured_beside_what_the_machine_allows()
    {
        var json = Cli.Run("bench", "--model", "pebble", "--step-tokens-max", "32", "--context", "512,8192", "--json", "-").Json;
        var contexts = json.GetProperty("contexts").EnumerateArray().ToList();
        Assert.Equal([(512, "computed"), (512, "filled"), (8192, "filled")],
            contexts.Select(c => (c.GetProperty("context_tokens").GetInt32(), c.GetProperty("rows").GetString())));
        foreach (var (context, step, tokens, clock) in contexts.SelectMany(
            c => new[] { (c, "decode", 1, "wall"), (c, "prefill", 32, "wall"), (c, "decode", 1, "processor"), (c, "prefill", 32, "processor") }))
        {
            var timing = context.GetProperty(step);
            double Of(string name) => timing.GetProperty(clock).GetProperty(name).GetDouble();
            var parts = timing.GetProperty("parts").EnumerateArray().ToList();
            double bytes = parts.Sum(p => p.GetProperty("step_bytes").GetDouble()), operations = parts.Sum(p => p.GetProperty("step_operations").GetDouble());
            Assert.Equal(tokens, timing.GetProperty("step_tokens").GetInt32());
            Assert.InRange(Of("read_bytes_per_second"), 1e8, 1e13);
            Assert.InRange(Of("operations_per_second"), 1e8, 1e14);
            Assert.True(Of("ms_per_token") > 0 && Of("ratio") > 0);
            // Medians of the same rounds: those of the quotients lie between the extremes, so only the order of magnitude is sure.
            Assert.InRange(Of("move_ms_per_token") / (bytes / Of("read_bytes_per_second") * 1000 / tokens), 0.1, 10);
            Assert.InRange(Of("compute_ms_per_token") / (operations / Of("operations_per_second") * 1000 / tokens), 0.1, 10);
            Assert.InRange(Of("floor_ms_per_token") / (Of("move_ms_per_token") + Of("compute_ms_per_token")), 0.1, 10);
            Assert.InRange(Of("ratio") / (Of("ms_per_token") / Of("floor_ms_per_token")), 0.1, 10);
        }
        // Three layers of the embedded model score a row of 32 for every four tokens with four heads.
        var index = contexts[2].GetProperty("decode").GetProperty("parts").EnumerateArray().Single(p => p.GetProperty("name").GetString() == "index rows");
        Assert.Equal(3 * 2 * 4 * 32 * 2040.0, index.GetProperty("step_operations").GetDouble(), 3 * 2 * 4 * 32 * 10.0);
    }

    [Fact]
    public void Contexts_that_cannot_be_measured_are_refused()
    {
        Cli.Run("bench", "--context", "100").Fails(2, "--context", "100", "317", "1048576");
        Cli.Run("bench", "--context", "2000000").Fails(2, "--context", "2000000", "1048576");
        Cli.Run("bench", "--context", "4096", "--concurrency", "2").Fails(2, "--context", "--concurrency");
        Cli.Run("bench", "--context", "4096", "--backend", "reference").Fails(2, "--context", "reference", "--backend cpu");
    }

    [Fact]
    public void Wrong_loads_are_refused_before_anything_is_measured()
    {
        using var folder = new TemporaryFolder();
        Cli.Run("bench", "--concurrency", "1,0").Fails(2, "--concurrency", "'0'");
        Cli.Run("bench", "--prompt-tokens", "").Fails(2, "--prompt-tokens");
        Cli.Run("bench", "--requests", "x").Fails(2, "--requests", "'x'");
        Cli.Run("bench", "--prompt-tokens", "1048570", "--output-tokens", "7").Fails(2, "1048577", "1048576");
        Cli.Run("bench", "--json", folder["no/such/file.json"]).Fails(2, "--json", "cannot be written");
    }
}

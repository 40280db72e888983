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

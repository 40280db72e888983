// `inference score` against log-probabilities that other implementations computed: the goldens of the tiny configurations (through differences of
// logits, which the softmax keeps), the family fixtures, and for quantised storage the in-process oracle on the values that the storage means.
using System.Text.Json;
using Inference.Runtime.Engine;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class ScoreCommandTests
{
    private sealed record Cases(int[] Tokens, int[] Positions, float[][] Logprobs, int[] MtpPositions, float[][] MtpLogprobs, float Tolerance);

    private sealed record Golden(int Position, int ArgMax, double Max, double Sum, double[] First);

    private static readonly JsonSerializerOptions SnakeCase = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };

    // Architecture description, 9.3.
    private static readonly Golden[] TA =
    [
        new(0, 52, 2.215902, 3.99436, [0.204593, 1.815222, -0.898588, 1.355038]),
        new(3, 79, 1.898188, -2.00435, [0.802657, 1.012160, -0.500316, 0.255424]),
        new(4, 79, 1.735064, -0.48039, [0.860132, 0.634204, 0.680401, -0.582488]),
        new(7, 29, 1.777116, -3.97580, [1.293902, -0.159849, 0.445063, -1.018652]),
        new(8, 79, 2.195061, 2.60020, [0.573289, -0.612652, 0.612017, -0.114701]),
        new(15, 41, 2.268967, 0.32091, [-0.173423, -1.020801, 0.101988, -0.720980]),
        new(16, 90, 2.503746, 15.39701, [-0.123801, -0.604523, 0.189984, 1.276809]),
        new(22, 18, 1.735847, 0.32563, [-0.356521, -1.270219, 0.163046, -1.390739]),
        new(31, 51, 2.465607, -16.02877, [-1.389146, -0.241480, -0.207303, 0.204126]),
        new(39, 94, 1.972154, 0.17103, [0.123239, -1.556667, -0.980603, -0.314149]),
    ];

    // The same for the draft block: position, argmax, max, first three.
    private static readonly Golden[] TADraft =
    [
        new(0, 70, 2.807627, double.NaN, [-0.021976, 0.060321, 0.249212]),
        new(7, 31, 1.467708, double.NaN, [-0.144332, -0.174343, 1.088001]),
        new(38, 3, 2.120073, double.NaN, [0.107443, 0.239476, -0.436425]),
    ];

    [Theory, InlineData("reference", "7"), InlineData("cpu", "7"), InlineData("cpu", "256")]
    public void TA_agrees_with_the_goldens_and_the_oracle_at_every_position(string backend, string chunk)
    {
        using var folder = new TemporaryFolder();
        int[] tokens = TinyDeepSeekV4.TA.Tokens(40);
        var lines = Score(TinyDeepSeekV4.TA.Write(folder.Path), backend, tokens, "--draft", "--chunk", chunk);
        foreach (var golden in TA) AssertGolden(golden, Distribution(lines[golden.Position], "next"));
        foreach (var golden in TADraft) AssertGolden(golden, Distribution(lines[golden.Position], "draft"));
        AssertOracle(TinyDeepSeekV4.TA, tokens, lines, tolerance: backend == "reference" ? 1e-6 : 1e-4);
        AssertShape(tokens, lines, draft: true);
    }

    [Theory]
    [InlineData(TinyStorage.Fp8Fp4, "cpu")]
    [InlineData(TinyStorage.Fp8Fp4, "reference")]
    [InlineData(TinyStorage.Fp8F32Scales, "cpu")]
    [InlineData(TinyStorage.BF16, "cpu")]
    public void Quantised_storage_means_the_values_it_stores(TinyStorage storage, string backend)
    {
        using var folder = new TemporaryFolder();
        var config = TinyDeepSeekV4.TF with { Storage = storage };
        int[] tokens = config.Tokens(40);
        var lines = Score(config.Write(folder.Path), backend, tokens, "--draft");
        AssertOracle(config, tokens, lines, tolerance: 2e-4);
        AssertShape(tokens, lines, draft: true);
    }

    [Theory]
    [InlineData("deepseek_v4", "cpu")]
    [InlineData("deepseek_v4", "reference")]
    [InlineData("deepseek_v4-fp4", "cpu")]
    public void Family_fixtures_agree_within_their_tolerance(string family, string backend)
    {
        string folder = RepositoryPaths.Combine("tests", "Inference.Runtime.Tests", "Fixtures", "families", family);
        var cases = JsonSerializer.Deserialize<Cases>(File.ReadAllText(Path.Combine(folder, "cases.json")), SnakeCase)!;
        var lines = Score(folder, backend, cases.Tokens, "--draft");
        for (int i = 0; i < cases.Positions.Length; i++)
            AssertClose(cases.Logprobs[i], Distribution(lines[cases.Positions[i]], "next"), cases.Tolerance, $"position {cases.Positions[i]}");
        for (int i = 0; i < cases.MtpPositions.Length; i++)
            AssertClose(cases.MtpLogprobs[i], Distribution(lines[cases.MtpPositions[i]], "draft"), cases.Tolerance, $"draft {cases.MtpPositions[i]}");
        AssertShape(cases.Tokens, lines, draft: true);
    }

    [Fact]
    public void Without_draft_there_is_none_and_top_limits_the_list()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        var lines = Cli.Run("score", "--model", folder.Path, "--token-ids", "1, 5 11", "--json", "--top", "2").JsonLines;
        AssertShape([1, 5, 11], lines, draft: false);
        Assert.All(lines, l => Assert.Equal(2, l.GetProperty("next").GetArrayLength()));
    }

    [Fact]
    public void Token_ids_can_come_from_a_file_and_the_model_from_the_program()
    {
        using var folder = new TemporaryFolder();
        string file = Path.Combine(folder.Path, "ids.txt");
        File.WriteAllText(file, "0\n1015,76\n113\n");
        var lines = Cli.Run("score", "--token-ids", "@" + file, "--json").JsonLines;
        AssertShape([0, 1015, 76, 113], lines, draft: false);
    }

    [Fact]
    public void Without_json_it_is_a_table_and_the_summary_goes_to_standard_error()
    {
        using var folder = new TemporaryFolder();
        TinyDeepSeekV4.TA.Write(folder.Path);
        var result = Cli.Run("score", "--model", folder.Path, "--token-ids", "1,5,11", "--top", "1").Succeeds();
        string[] rows = result.Out.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(4, rows.Length);
        Assert.StartsWith("position", rows[0], StringComparison.Ordinal);
        Assert.Contains("52 -", rows[1], StringComparison.Ordinal);
        Assert.Contains("perplexity", result.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void Bad_input_is_refused_with_the_limit_and_the_way_out()
    {
        using var folder = new TemporaryFolder();
        string model = (TinyDeepSeekV4.TA with { DraftStages = 0 }).Write(folder.Path);
        Refused([], "--token-ids or --text");
        Refused(["--token-ids", "1", "--text", "x"], "--token-ids or --text");
        Refused(["--token-ids", "1,x"], "--token-ids", "'x'", "whole number");
        Refused(["--token-ids", ""], "--token-ids", "no number");
        Refused(["--token-ids", "1,96"], "96", "position 1", "0 to 95");
        Refused(["--token-ids", "-1"], "-1", "position 0");
        Refused(["--token-ids", "1", "--top", "few"], "--top", "'few'", "all");
        Refused(["--token-ids", "1", "--chunk", "0"], "--chunk", "'0'", "from 1");
        Refused(["--token-ids", "1", "--draft"], "no draft block");
        Cli.Run("score", "--model", model, "--token-ids", "1", "--backend", "abacus").Fails(2, "--backend", "'abacus'", "reference");
        Cli.Run("score", "--model", Path.Combine(folder.Path, "none"), "--token-ids", "1").Fails(2, "there is no", "none");
        Cli.Run("score", "--token-ids", "@" + Path.Combine(folder.Path, "none.txt")).Fails(2, "--token-ids", "none.txt");
        Cli.Run("score", "--no-such-option").Fails(2, "--no-such-option", "inference score --help");

        void Refused(string[] arguments, params string[] parts) =>
            Cli.Run(["score", "--model", model, .. arguments]).Fails(2, parts);
    }

    private static IReadOnlyList<JsonElement> Score(string folder, string backend, int[] tokens, params string[] more) =>
        Cli.Run(["score", "--model", folder, "--token-ids", string.Join(',', tokens), "--top", "all", "--json", "--backend", backend, .. more]).JsonLines;

    // What holds for every run: the fields, their order of tokens, and that a token's own log-probability is the one predicted before it.
    private static void AssertShape(int[] tokens, IReadOnlyList<JsonElement> lines, bool draft)
    {
        Assert.Equal(tokens.Length, lines.Count);
        for (int p = 0; p < tokens.Length; p++)
        {
            var line = lines[p];
            Assert.Equal(p, line.GetProperty("position").GetInt32());
            Assert.Equal(tokens[p], line.GetProperty("token_id").GetInt32());
            Assert.Equal(draft && p + 1 < tokens.Length, line.TryGetProperty("draft", out _));
            if (p == 0)
            {
                Assert.Equal(JsonValueKind.Null, line.GetProperty("logprob").ValueKind);
                continue;
            }
            var predicted = lines[p - 1].GetProperty("next").EnumerateArray().Where(n => n.GetProperty("token_id").GetInt32() == tokens[p]).ToList();
            if (predicted.Count == 1) Assert.Equal(predicted[0].GetProperty("logprob").GetSingle(), line.GetProperty("logprob").GetSingle());
        }
    }

    private static void AssertOracle(TinyDeepSeekV4 config, int[] tokens, IReadOnlyList<JsonElement> lines, double tolerance)
    {
        using var loaded = TestModels.Load(config, "reference", dequantised: true);
        var expected = Scorer.Score(loaded.Model, loaded.Backend, tokens, new ScoreOptions { TopCount = int.MaxValue, Draft = true }).ToList();
        for (int p = 0; p < tokens.Length; p++)
        {
            AssertClose(ById(expected[p].Next), Distribution(lines[p], "next"), tolerance, $"position {p}");
            if (expected[p].Draft is { } draft) AssertClose(ById(draft), Distribution(lines[p], "draft"), tolerance, $"draft {p}");
        }
    }

    private static float[] ById(IReadOnlyList<TokenLogprob> tokens) => [.. tokens.OrderBy(t => t.TokenId).Select(t => t.Logprob)];

    private static float[] Distribution(JsonElement line, string name)
    {
        var entries = line.GetProperty(name).EnumerateArray().ToList();
        var result = new float[entries.Count];
        float previous = float.PositiveInfinity;
        foreach (var entry in entries)
        {
            float logprob = entry.GetProperty("logprob").GetSingle();
            Assert.True(logprob <= previous, "best first");
            result[entry.GetProperty("token_id").GetInt32()] = previous = logprob;
        }
        Assert.Equal(1, result.Sum(l => Math.Exp(l)), 1e-5);
        return result;
    }

    // Log-probabilities keep the differences of logits: to the largest one, for each listed logit and for the sum.
    private static void AssertGolden(Golden golden, float[] logprobs)
    {
        Assert.Equal(golden.ArgMax, Array.IndexOf(logprobs, logprobs.Max()));
        double best = logprobs[golden.ArgMax];
        for (int i = 0; i < golden.First.Length; i++)
            Assert.Equal(golden.First[i] - golden.Max, logprobs[i] - best, 1e-4);
        if (!double.IsNaN(golden.Sum))
            Assert.Equal(golden.Sum - logprobs.Length * golden.Max, logprobs.Sum(l => l - best), 1e-3);
    }

    private static void AssertClose(float[] expected, float[] actual, double tolerance, string where)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (int v = 0; v < expected.Length; v++)
            Assert.True(Math.Abs(expected[v] - actual[v]) < tolerance, $"{where}, token {v}: {actual[v]}, expected {expected[v]}");
    }
}

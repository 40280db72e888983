// Log-probabilities of whole models against other implementations: the family fixtures (transformers, and a float64 streaming
// implementation for the draft rows) and Pebble's cases (float64), each within the tolerance its file states.
using System.Text.Json;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class DeepSeekV4FixtureTests
{
    private sealed record Cases(int[] Tokens, int[] Positions, float[][] Logprobs, int[]? MtpPositions, float[][]? MtpLogprobs, float Tolerance);

    private static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };

    public static TheoryData<string, string> Fixtures
    {
        get
        {
            var data = new TheoryData<string, string>();
            foreach (string backend in TestModels.BackendNames)
                foreach (string family in (string[])["deepseek_v4", "deepseek_v4-fp4"])
                    data.Add(family, backend);
            return data;
        }
    }

    public static TheoryData<string> Backends => [.. TestModels.BackendNames];

    [Theory, MemberData(nameof(Fixtures))]
    public void Family_fixture_agrees(string family, string backend) => Check(Fixture.Path($"families/{family}"), backend);

    [Theory, MemberData(nameof(Backends))]
    public void Pebble_agrees_with_its_cases(string backend) => Check(RepositoryPaths.Pebble, backend);

    private static void Check(string folder, string backend)
    {
        var cases = JsonSerializer.Deserialize<Cases>(File.ReadAllText(Path.Combine(folder, "cases.json")), Json)!;
        using var loaded = TestModels.Load(folder, backend);
        using var session = new ModelSession(loaded.Model, loaded.Backend);
        float[][] whole = session.RunWithDraft(cases.Tokens, out float[][] draft);
        Compare(cases.Positions, cases.Logprobs, whole, cases.Tolerance);
        Assert.NotNull(cases.MtpPositions);
        Compare(cases.MtpPositions, cases.MtpLogprobs!, draft, cases.Tolerance);

        float[][] pieces = session.RunWithDraft(cases.Tokens, out float[][] draftInPieces, 1, 3, 1, 7, 64, 5);
        DeepSeekV4GoldenTests.AssertSameBits(whole, pieces, folder);
        DeepSeekV4GoldenTests.AssertSameBits(draft[..^1], draftInPieces[..^1], folder + " draft");
    }

    private static void Compare(int[] positions, float[][] expected, float[][] logits, float tolerance)
    {
        for (int i = 0; i < positions.Length; i++)
        {
            float[] actual = LogSoftmax(logits[positions[i]]);
            for (int v = 0; v < actual.Length; v++)
                Assert.True(Math.Abs(expected[i][v] - actual[v]) < tolerance,
                    $"position {positions[i]}, token {v}: {actual[v]}, expected {expected[i][v]}");
        }
    }

    private static float[] LogSoftmax(float[] logits)
    {
        double max = logits.Max(), sum = logits.Sum(l => Math.Exp(l - max));
        return [.. logits.Select(l => (float)(l - max - Math.Log(sum)))];
    }
}

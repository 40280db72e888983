// Scores against log-probabilities that other implementations computed (family fixtures, Pebble's cases), and that the chunk size, the
// enumeration and the options change nothing they should not.
using System.Text.Json;
using Inference.Runtime.Engine;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class ScorerTests
{
    private sealed record Cases(int[] Tokens, int[] Positions, float[][] Logprobs, int[] MtpPositions, float[][] MtpLogprobs, float Tolerance);

    private static readonly JsonSerializerOptions Json = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower };

    [Theory, InlineData(1), InlineData(7), InlineData(1000)]
    public void Fixture_rows_and_draft_rows_agree_for_any_chunk(int chunk)
    {
        string folder = Fixture.Path("families/deepseek_v4");
        var cases = JsonSerializer.Deserialize<Cases>(File.ReadAllText(Path.Combine(folder, "cases.json")), Json)!;
        using var loaded = TestModels.Load(folder, TestModels.BackendNames[0]);
        var scores = Scorer.Score(loaded.Model, loaded.Backend, cases.Tokens, All(chunk, draft: true)).ToList();

        Assert.Equal(cases.Tokens, scores.Select(s => s.TokenId));
        Assert.Equal(Enumerable.Range(0, cases.Tokens.Length), scores.Select(s => s.Position));
        for (int i = 0; i < cases.Positions.Length; i++) AssertClose(cases.Logprobs[i], scores[cases.Positions[i]].Next, cases.Tolerance);
        for (int i = 0; i < cases.MtpPositions.Length; i++) AssertClose(cases.MtpLogprobs[i], scores[cases.MtpPositions[i]].Draft!, cases.Tolerance);
        Assert.Null(scores[^1].Draft);
        Assert.Null(scores[0].Logprob);
        for (int p = 1; p < scores.Count; p++)
            Assert.Equal(scores[p - 1].Next.First(n => n.TokenId == scores[p].TokenId).Logprob, scores[p].Logprob);
    }

    [Fact]
    public void Chunk_size_does_not_change_a_bit()
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TA, TestModels.BackendNames[0]);
        int[] tokens = TinyDeepSeekV4.TA.Tokens(40);
        var whole = Scorer.Score(loaded.Model, loaded.Backend, tokens, All(40, draft: true)).ToList();
        foreach (int chunk in (int[])[1, 3, 4, 16, 39])
        {
            var pieces = Scorer.Score(loaded.Model, loaded.Backend, tokens, All(chunk, draft: true)).ToList();
            for (int p = 0; p < tokens.Length; p++)
            {
                Assert.Equal(whole[p].Next, pieces[p].Next);
                Assert.Equal(whole[p].Draft, pieces[p].Draft);
                Assert.Equal(whole[p].Logprob, pieces[p].Logprob);
            }
        }
    }

    [Fact]
    public void Top_lists_the_best_first_and_is_the_head_of_the_whole_list()
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TA, TestModels.BackendNames[0]);
        int[] tokens = TinyDeepSeekV4.TA.Tokens(5);
        var all = Scorer.Score(loaded.Model, loaded.Backend, tokens, All(5, draft: false)).ToList();
        var three = Scorer.Score(loaded.Model, loaded.Backend, tokens, new ScoreOptions { TopCount = 3 }).ToList();
        var none = Scorer.Score(loaded.Model, loaded.Backend, tokens, new ScoreOptions { TopCount = 0 }).ToList();
        Assert.All(all, s =>
        {
            Assert.Equal(96, s.Next.Count);
            Assert.Equal(s.Next.OrderByDescending(n => n.Logprob).ThenBy(n => n.TokenId), s.Next);
            Assert.Equal(1, s.Next.Sum(n => Math.Exp(n.Logprob)), 1e-5);
            Assert.Null(s.Draft);
        });
        for (int p = 0; p < tokens.Length; p++) Assert.Equal(all[p].Next.Take(3), three[p].Next);
        Assert.All(none, s => Assert.Empty(s.Next));
        Assert.Equal(all.Select(s => s.Logprob), none.Select(s => s.Logprob));
    }

    [Fact]
    public void Bad_input_is_refused_at_once_and_names_its_limit()
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TA with { DraftStages = 0 }, TestModels.BackendNames[0]);
        Refused("token_ids", "at least one", []);
        Refused("token_ids", "0 to 95", [1, 96]);
        Refused("token_ids", "position 0", [-1]);
        Refused("draft", "no draft block", [1], new ScoreOptions { Draft = true });
        Refused("chunk", "1 or more", [1], new ScoreOptions { ChunkTokens = 0 });
        Refused("top", "0 or more", [1], new ScoreOptions { TopCount = -1 });

        void Refused(string field, string part, int[] tokens, ScoreOptions? options = null)
        {
            var e = Assert.Throws<RequestRejectedException>(() => Scorer.Score(loaded.Model, loaded.Backend, tokens, options ?? new()));
            Assert.Equal((RejectionReason.InvalidRequest, field), (e.Reason, e.Field));
            Assert.Contains(part, e.Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void A_text_longer_than_the_context_is_refused_with_both_numbers()
    {
        using var loaded = TestModels.Load(TinyDeepSeekV4.TH, TestModels.BackendNames[0]);
        int limit = loaded.Model.Info.ContextMax;
        var e = Assert.Throws<RequestRejectedException>(() => Scorer.Score(loaded.Model, loaded.Backend, new int[limit + 1], new()));
        Assert.Contains($"{limit + 1}", e.Message, StringComparison.Ordinal);
        Assert.Contains($"{limit};", e.Message, StringComparison.Ordinal);
    }

    private static ScoreOptions All(int chunk, bool draft) => new() { TopCount = int.MaxValue, ChunkTokens = chunk, Draft = draft };

    private static void AssertClose(float[] expected, IReadOnlyList<TokenLogprob> actual, float tolerance)
    {
        Assert.Equal(expected.Length, actual.Count);
        foreach (var (id, logprob) in actual)
            Assert.True(Math.Abs(expected[id] - logprob) < tolerance, $"token {id}: {logprob}, expected {expected[id]}");
    }
}

using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class RequestRulesTests
{
    private static readonly RequestRules Rules = new(VocabSize: 100, ContextMax: 50, CacheTokensMax: 60);

    private static readonly GenerationRequest Good = new()
    {
        RequestId = "r",
        PromptTokenIds = [0, 99, 5],
        Sampling = SamplingParams.Greedy,
        OutputTokensMax = 47,
    };

    private static SamplingParams With(Func<SamplingParams, SamplingParams> change) => change(SamplingParams.Greedy);

    [Fact]
    public void What_fits_exactly_is_taken() => Rules.Check(Good);

    public static TheoryData<string, string, Func<GenerationRequest, GenerationRequest>> Bad => new()
    {
        { "prompt", "no tokens", r => r with { PromptTokenIds = [] } },
        { "prompt", "id 100 is not in the vocabulary of 100", r => r with { PromptTokenIds = [3, 100] } },
        { "prompt", "id -1", r => r with { PromptTokenIds = [-1] } },
        { "stopping.max_tokens", "-1", r => r with { OutputTokensMax = -1 } },
        { "stopping.max_tokens", "context of 50 positions; at most 47", r => r with { OutputTokensMax = 48 } },
        { "stopping.max_tokens", "at most 47 can", r => r with { OutputTokensMax = int.MaxValue } },
        { "prompt", "at most 49 fit", r => r with { PromptTokenIds = new int[50], OutputTokensMax = 1 } },
        { "sampling.temperature", "-1", r => r with { Sampling = With(s => s with { Temperature = -1 }) } },
        { "sampling.temperature", "NaN", r => r with { Sampling = With(s => s with { Temperature = float.NaN }) } },
        { "sampling.temperature", "", r => r with { Sampling = With(s => s with { Temperature = float.PositiveInfinity }) } },
        { "sampling.top_k", "-1", r => r with { Sampling = With(s => s with { TopK = -1 }) } },
        { "sampling.top_p", "0", r => r with { Sampling = With(s => s with { TopP = 0 }) } },
        { "sampling.top_p", "1.5", r => r with { Sampling = With(s => s with { TopP = 1.5f }) } },
        { "sampling.min_p", "", r => r with { Sampling = With(s => s with { MinP = float.NaN }) } },
        { "sampling.repetition_penalty", "0", r => r with { Sampling = With(s => s with { RepetitionPenalty = 0 }) } },
        { "sampling.presence_penalty", "3", r => r with { Sampling = With(s => s with { PresencePenalty = 3 }) } },
        { "sampling.frequency_penalty", "-2.5", r => r with { Sampling = With(s => s with { FrequencyPenalty = -2.5f }) } },
        { "sampling.logit_bias", "100", r => r with { Sampling = With(s => s with { LogitBias = new Dictionary<int, float> { [100] = 1 } }) } },
        { "sampling.logit_bias", "", r => r with { Sampling = With(s => s with { LogitBias = new Dictionary<int, float> { [1] = float.NegativeInfinity } }) } },
        { "sampling.logit_bias", "1025 entries", r => r with { Sampling = With(s => s with { LogitBias = Enumerable.Range(0, 1025).ToDictionary(i => i, _ => 1f) }) } },
        { "stopping.stop", "17 strings", r => r with { StopStrings = [.. Enumerable.Repeat("x", 17)] } },
        { "stopping.stop", "not 0", r => r with { StopStrings = [""] } },
        { "stopping.stop", "not 257", r => r with { StopStrings = [new string('x', 257)] } },
        { "stopping.stop_token_ids", "100", r => r with { StopTokenIds = [100] } },
        { "output.top_logprobs", "21", r => r with { TopLogprobs = 21 } },
        { "output.top_logprobs", "-1", r => r with { TopLogprobs = -1 } },
    };

    [Theory]
    [MemberData(nameof(Bad))]
    public void What_cannot_run_is_refused_with_the_field_and_the_limit(
        string field, string words, Func<GenerationRequest, GenerationRequest> spoil)
    {
        var e = Assert.Throws<RequestRejectedException>(() => Rules.Check(spoil(Good)));
        Assert.Equal((RejectionReason.InvalidRequest, field), (e.Reason, e.Field));
        Assert.Contains(words, e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_cache_may_be_smaller_than_the_context()
    {
        var rules = new RequestRules(100, 50, 20);
        rules.Check(Good with { OutputTokensMax = 18 });  // 3 + 18 - 1: the last token is never processed
        var e = Assert.Throws<RequestRejectedException>(() => rules.Check(Good with { OutputTokensMax = 19 }));
        Assert.Contains("KV cache of 20 positions; at most 18", e.Message, StringComparison.Ordinal);
        rules.Check(Good with { PromptTokenIds = new int[20], OutputTokensMax = 1 });
        e = Assert.Throws<RequestRejectedException>(() => rules.Check(Good with { PromptTokenIds = new int[21], OutputTokensMax = 1 }));
        Assert.Equal("prompt", e.Field);
        Assert.Contains("at most 20 fit", e.Message, StringComparison.Ordinal);
    }
}

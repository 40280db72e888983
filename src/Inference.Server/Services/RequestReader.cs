using System.Security.Cryptography;
using System.Text;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>A request that was checked, with everything it left unset resolved.</summary>
/// <param name="Generation">For the engine.</param>
/// <param name="OmitTokenIds">See OutputOptions.</param>
/// <param name="OmitBytes">See OutputOptions.</param>
internal sealed record ReadRequest(GenerationRequest Generation, bool OmitTokenIds, bool OmitBytes);

/// <summary>
/// From a client's request to the engine's: checks every field, resolves what is unset (generation_config.json, then built-in defaults),
/// encodes the prompt, checks the sum against the context. Order matters for cost: nothing is encoded before every cheap check has passed.
/// It decides nothing about room or time; that is the engine's.
/// </summary>
internal static class RequestReader
{
    private const int RequestIdLengthMax = 128;
    private const int StopStringsMax = 16;
    private const int StopStringBytesMax = 256;
    private const int StopTokenIdsMax = 64;
    private const int LogitBiasMax = 1024;
    private const int TopLogprobsMax = 20;

    /// <param name="proposedId">A request id from the call's metadata, for requests without one of their own; ignored when it is no good.</param>
    /// <param name="tenant">Whose call it is.</param>
    /// <param name="deadline">Of the call, UTC; <see cref="DateTime.MaxValue"/> = none.</param>
    /// <param name="arrived">When the call did, UTC.</param>
    /// <param name="session">What the prompt goes on from.</param>
    /// <exception cref="RequestException">Something is wrong with the request.</exception>
    public static ReadRequest Read(
        V1.GenerateRequest request, ServedModel model, string? proposedId, string tenant, DateTime deadline, DateTimeOffset arrived,
        KvSessionTurn? session = null)
    {
        var checks = new FieldChecks();
        int priority = checks.Integer(
            "priority", request.HasPriority, request.Priority, GenerationRequest.PriorityMin, GenerationRequest.PriorityMax, 0);
        var firstToken = FirstTokenTimeout(request, checks);
        string requestId = RequestId(request, proposedId, checks);
        var sampling = Sampling(request.Sampling ?? new(), model, checks);
        var stopping = request.Stopping ?? new();
        int? maxTokens = MaxTokens(stopping, model, checks);
        var stopStrings = StopStrings(stopping, checks);
        var stopIds = StopTokenIds(stopping, model, checks);
        var output = request.Output ?? new();
        int? topLogprobs = output.HasTopLogprobs ? checks.Integer("output.top_logprobs", true, output.TopLogprobs, 0, TopLogprobsMax, 0) : null;
        var prompt = PromptReader.Check(request, model, session, checks);
        checks.ThrowIfAny();

        var ids = prompt.Encode(model);
        if (session is not null) ids = [.. session.Tokens, .. ids];
        return new ReadRequest(
            new GenerationRequest
            {
                RequestId = requestId,
                PromptTokenIds = ids,
                Sampling = sampling,
                OutputTokensMax = Fit(ids.Count, maxTokens, model),
                StopTokenIds = stopIds,
                StopStrings = stopStrings,
                IncludeStop = stopping.IncludeStop,
                KeepSpecialTokens = output.HasSpecialTokens ? output.SpecialTokens : request.PromptCase == V1.GenerateRequest.PromptOneofCase.Chat,
                TopLogprobs = topLogprobs,
                Tenant = tenant,
                Boundaries = model.Boundaries(ids),
                Priority = priority,
                Deadline = deadline == DateTime.MaxValue ? null : new DateTimeOffset(deadline, TimeSpan.Zero),
                FirstTokenDeadline = firstToken is { } timeout ? arrived + timeout : null,
            },
            output.OmitTokenIds, output.OmitBytes);
    }

    private static string RequestId(V1.GenerateRequest request, string? proposed, FieldChecks checks)
    {
        if (!request.HasRequestId) return proposed is not null && IsId(proposed) ? proposed : NewId();
        if (!IsId(request.RequestId))
            checks.Add("request_id", $"has {request.RequestId.Length} characters; give 1 to {RequestIdLengthMax} printable ASCII characters, or leave it out.");
        return request.RequestId;
    }

    public static string NewId() => Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(16));

    private static TimeSpan? FirstTokenTimeout(V1.GenerateRequest request, FieldChecks checks)
    {
        if (request.FirstTokenTimeout is not { } timeout) return null;
        const long SecondsMax = 365 * 86400;
        if (timeout.Seconds is >= 0 and <= SecondsMax && timeout.Nanos is >= 0 and < 1_000_000_000 && (timeout.Seconds > 0 || timeout.Nanos > 0))
            return timeout.ToTimeSpan();
        checks.Add("first_token_timeout", $"is {timeout.Seconds} s and {timeout.Nanos} ns; give more than no time and at most {SecondsMax} s, or leave it out.");
        return null;
    }

    private static bool IsId(string id) => id.Length is > 0 and <= RequestIdLengthMax && id.All(c => c is >= ' ' and <= '~');

    private static SamplingParams Sampling(V1.SamplingOptions s, ServedModel model, FieldChecks checks)
    {
        var d = model.Defaults;
        return new SamplingParams(
            checks.Number("sampling.temperature", s.HasTemperature, s.Temperature, 0, 100, d.Temperature),
            checks.Integer("sampling.top_k", s.HasTopK, s.TopK, 0, int.MaxValue, d.TopK),
            checks.Positive("sampling.top_p", s.HasTopP, s.TopP, 1, d.TopP),
            checks.Number("sampling.min_p", s.HasMinP, s.MinP, 0, 1, d.MinP),
            checks.Number("sampling.repetition_penalty", s.HasRepetitionPenalty, s.RepetitionPenalty, 0.01f, 100, d.RepetitionPenalty),
            checks.Number("sampling.presence_penalty", s.HasPresencePenalty, s.PresencePenalty, -2, 2, d.PresencePenalty),
            checks.Number("sampling.frequency_penalty", s.HasFrequencyPenalty, s.FrequencyPenalty, -2, 2, d.FrequencyPenalty),
            s.HasSeed ? s.Seed : RandomSeed(),
            LogitBias(s, model, checks));
    }

    /// <summary>Below 2^53, so that clients whose numbers are doubles can send it back.</summary>
    private static ulong RandomSeed() => BitConverter.ToUInt64(RandomNumberGenerator.GetBytes(sizeof(ulong))) >> 11;

    private static Dictionary<int, float>? LogitBias(V1.SamplingOptions s, ServedModel model, FieldChecks checks)
    {
        if (s.LogitBias.Count == 0) return null;
        if (s.LogitBias.Count > LogitBiasMax)
        {
            checks.Add("sampling.logit_bias", $"has {s.LogitBias.Count} entries; give at most {LogitBiasMax}.");
            return null;
        }
        var bias = new Dictionary<int, float>();
        foreach (var (id, value) in s.LogitBias.OrderBy(e => e.Key))
        {
            string field = $"sampling.logit_bias[{id}]";
            if (id >= (uint)model.Info.VocabSize) checks.Add(field, $"is no token id of this model; they lie in [0, {model.Info.VocabSize}).");
            else bias[(int)id] = checks.Number(field, true, value, -100, 100, 0);
        }
        return bias;
    }

    private static int? MaxTokens(V1.StoppingOptions s, ServedModel model, FieldChecks checks) =>
        s.HasMaxTokens ? checks.Integer("stopping.max_tokens", true, s.MaxTokens, 1, model.ContextMax, 1) : null;

    private static List<string> StopStrings(V1.StoppingOptions s, FieldChecks checks)
    {
        if (s.Stop.Count > StopStringsMax) checks.Add("stopping.stop", $"has {s.Stop.Count} entries; give at most {StopStringsMax}.");
        for (int i = 0; i < Math.Min(s.Stop.Count, StopStringsMax); i++)
        {
            int bytes = Encoding.UTF8.GetByteCount(s.Stop[i]);
            if (bytes is 0 or > StopStringBytesMax)
                checks.Add($"stopping.stop[{i}]", $"has {bytes} bytes; a stop string has 1 to {StopStringBytesMax} bytes of UTF-8.");
        }
        return [.. s.Stop];
    }

    private static List<int> StopTokenIds(V1.StoppingOptions s, ServedModel model, FieldChecks checks)
    {
        if (s.StopTokenIds.Count > StopTokenIdsMax)
        {
            checks.Add("stopping.stop_token_ids", $"has {s.StopTokenIds.Count} entries; give at most {StopTokenIdsMax}.");
            return [];
        }
        IEnumerable<int> ids = checks.TokenIds("stopping.stop_token_ids", s.StopTokenIds, model.Info.VocabSize);
        return [.. s.IgnoreEos ? ids : model.Defaults.EndTokenIds.Concat(ids).Distinct()];
    }

    /// <summary>The most tokens this request may generate.</summary>
    private static int Fit(int promptTokens, int? maxTokens, ServedModel model)
    {
        int left = model.ContextMax - promptTokens;
        int wanted = maxTokens ?? Math.Max(1, Math.Min(left, model.DefaultMaxTokens));
        if (wanted <= left) return wanted;
        string wayOut = left >= 1 ? $"Ask for at most {left} tokens, or shorten the prompt." : $"Shorten the prompt to {model.ContextMax - 1} tokens or less.";
        string message = $"The prompt has {promptTokens} tokens and {wanted} are asked for, but the context holds {model.ContextMax}. {wayOut}";
        throw new RequestException(ErrorReason.ContextExceeded, message)
        {
            Violations = [StatusMapping.Violation(left >= 1 ? "stopping.max_tokens" : "prompt", message)],
            Metadata = new Dictionary<string, string>
            {
                ["prompt_tokens"] = Text(promptTokens),
                ["max_tokens"] = Text(wanted),
                ["context_tokens_max"] = Text(model.ContextMax),
            },
        };
    }

    private static string Text(int value) => value.ToString(System.Globalization.CultureInfo.InvariantCulture);
}

using System.CommandLine;
using System.Security.Cryptography;
using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
using Inference.Server.Hosting;

namespace Inference.Server.Commands;

/// <summary>How an answer is drawn and when it ends, as options of a verb. What is left unset is the model's own value.</summary>
internal sealed class GenerationArguments
{
    private readonly Option<int?> _maxTokens = Numbers.Whole("--max-tokens", "Most tokens of an answer.", 1, int.MaxValue);
    private readonly Option<float?> _temperature = Numbers.Real("--temperature", "0 takes the most likely token; higher is more varied.", 0, 100);
    private readonly Option<int?> _topK = Numbers.Whole("--top-k", "Keep this many most likely tokens; 0 keeps all.", 0, int.MaxValue);
    private readonly Option<float?> _topP =
        Numbers.Real("--top-p", "Keep the most likely tokens that together have this probability.", 0, 1, minIsOut: true);
    private readonly Option<float?> _minP = Numbers.Real("--min-p", "Keep tokens at least this times as likely as the most likely one.", 0, 1);
    private readonly Option<float?> _repetition =
        Numbers.Real("--repetition-penalty", "Above 1 discourages tokens of the prompt and the answer.", 0.01f, 100);
    private readonly Option<float?> _presence = Numbers.Real("--presence-penalty", "Above 0 discourages tokens of the answer.", -2, 2);
    private readonly Option<float?> _frequency = Numbers.Real("--frequency-penalty", "As that, once per occurrence.", -2, 2);
    private readonly Option<ulong?> _seed = Numbers.Seed("--seed", "The same seed draws the same answer. Default: random.");
    private readonly Option<string[]> _stop = new("--stop") { Description = "Text that ends an answer; may be given several times.", HelpName = "text" };

    public GenerationArguments(Command command)
    {
        foreach (var option in (Option[])[_maxTokens, _temperature, _topK, _topP, _minP, _repetition, _presence, _frequency, _seed, _stop])
            command.Options.Add(option);
    }

    public GenerationChoices Read(ParseResult parsed) => new(
        parsed.GetValue(_maxTokens), parsed.GetValue(_temperature), parsed.GetValue(_topK), parsed.GetValue(_topP), parsed.GetValue(_minP),
        parsed.GetValue(_repetition), parsed.GetValue(_presence), parsed.GetValue(_frequency), parsed.GetValue(_seed), parsed.GetValue(_stop) ?? []);
}

/// <summary>What a user chose; null is the model's own value. The engine checks the ranges.</summary>
internal sealed record GenerationChoices(
    int? MaxTokens, float? Temperature, int? TopK, float? TopP, float? MinP, float? RepetitionPenalty, float? PresencePenalty, float? FrequencyPenalty,
    ulong? Seed, IReadOnlyList<string> Stop)
{
    /// <summary>The request for an answer to a prompt.</summary>
    public GenerationRequest Request(ServedModel model, IReadOnlyList<int> prompt)
    {
        var d = model.Defaults;
        return new GenerationRequest
        {
            RequestId = "local",
            PromptTokenIds = prompt,
            Sampling = new SamplingParams(
                Temperature ?? d.Temperature, TopK ?? d.TopK, TopP ?? d.TopP, MinP ?? d.MinP, RepetitionPenalty ?? d.RepetitionPenalty,
                PresencePenalty ?? d.PresencePenalty, FrequencyPenalty ?? d.FrequencyPenalty, Seed ?? RandomSeed()),
            OutputTokensMax = MaxTokens ?? Math.Clamp(model.ContextMax - prompt.Count, 1, model.DefaultMaxTokens),
            StopTokenIds = d.EndTokenIds,
            StopStrings = Stop,
            KeepSpecialTokens = true,
        };
    }

    private static ulong RandomSeed() => BitConverter.ToUInt64(RandomNumberGenerator.GetBytes(sizeof(ulong))) >> 11;
}

// DeepSeek-V4's chat encoding, preview and general release (specification 5.4 to 5.8): a conversation becomes a
// prompt, a completion becomes a message. The family has no chat template; the released encoder is the contract, and
// the prompt is byte-exact with it.
//
// It never tokenizes and never decides what a server allows (the developer role, say). It holds no state but the
// release. DeepSeekV4Turns makes turns of the messages, DeepSeekV4Renderer renders them one after the other,
// CompletionStreamParser reads what the model answers.

namespace Inference.Runtime.Chat;

/// <summary>Releases of DeepSeek-V4 whose effort texts differ (specification 5.5).</summary>
public enum EncodingRelease
{
    /// <summary>The preview: efforts high (no text) and max.</summary>
    Preview,

    /// <summary>General availability, 0731 and 0813: efforts low (no text), high and max; medium and xhigh mean high.</summary>
    Ga,
}

/// <summary>Renders conversations for DeepSeek-V4 and parses its completions.</summary>
public sealed class DeepSeekV4ChatEncoding(EncodingRelease release)
{
    public EncodingRelease Release => release;

    /// <summary>The tokens that messages begin with: where one conversation may part from another.</summary>
    public static IReadOnlyList<string> MessageOpeners { get; } = [DeepSeekV4Wire.User, DeepSeekV4Wire.Assistant, DeepSeekV4Wire.LatestReminder];

    /// <summary>Renders a conversation.</summary>
    /// <exception cref="ChatEncodingException">
    /// An effort the release does not have, a developer message without content, or text that is no valid UTF-16.
    /// </exception>
    public RenderedPrompt Render(Conversation conversation, ChatRenderOptions options) =>
        new DeepSeekV4Renderer(conversation, options, EffortPrefix(options.ReasoningEffort)).Render();

    /// <summary>Parses a whole completion: what follows the prompt, end token included.</summary>
    /// <param name="mode">How the prompt ended: <see cref="RenderedPrompt.CompletionMode"/>.</param>
    /// <exception cref="CompletionFormatException">Strict parsing only: the completion breaks the format.</exception>
    public static ParsedMessage Parse(string completion, ThinkingMode mode, CompletionParsing parsing = CompletionParsing.Strict)
    {
        var parser = new CompletionStreamParser(mode, parsing);
        var events = new List<CompletionEvent>();
        parser.Push(completion, events);
        parser.Complete(events);
        return ParsedMessage.FromEvents(events);
    }

    private string EffortPrefix(ReasoningEffort? effort) => (release, effort) switch
    {
        (_, null) => "",
        (EncodingRelease.Preview, ReasoningEffort.High) => "",
        (EncodingRelease.Preview, ReasoningEffort.Max) => DeepSeekV4Wire.EffortPrefixA,
        (EncodingRelease.Ga, ReasoningEffort.Low) => "",
        (EncodingRelease.Ga, ReasoningEffort.Medium or ReasoningEffort.High or ReasoningEffort.XHigh) => DeepSeekV4Wire.EffortPrefixA,
        (EncodingRelease.Ga, ReasoningEffort.Max) => DeepSeekV4Wire.EffortPrefixB,
        _ => throw new ChatEncodingException(
            $"the {release} release of DeepSeek-V4 has no effort '{effort}'",
            release == EncodingRelease.Preview ? "use high or max, or leave it out" : "use low, medium, high, xhigh or max, or leave it out",
            null,
            "reasoning_effort"),
    };
}

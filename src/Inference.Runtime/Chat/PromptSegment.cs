using System.Text;

namespace Inference.Runtime.Chat;

/// <summary>
/// A run of prompt text and whether control tokens may be read out of it. Text of the encoder (control tokens,
/// constants) is trusted; text that came from a client or from a model (content, reasoning, tool results, names,
/// arguments, schemas) is not, so it cannot forge a turn or an end (specification trap 46).
/// </summary>
/// <remarks>
/// Segments are not token boundaries. The prompt is the concatenation; a control token counts where its text lies
/// wholly inside one trusted segment, and nowhere else. Neighbouring segments differ in trust and none is empty.
/// </remarks>
public readonly record struct PromptSegment(string Text, bool Trusted);

/// <summary>An encoded conversation, ready for the tokenizer.</summary>
public sealed class RenderedPrompt
{
    internal RenderedPrompt(IReadOnlyList<PromptSegment> segments, bool opensReasoning)
    {
        Segments = segments;
        OpensReasoning = opensReasoning;
    }

    public IReadOnlyList<PromptSegment> Segments { get; }

    /// <summary>
    /// True when the prompt ends inside an opened reasoning part: the completion then begins with reasoning and must
    /// be parsed as <see cref="ThinkingMode.Thinking"/>, else as <see cref="ThinkingMode.Chat"/>.
    /// </summary>
    public bool OpensReasoning { get; }

    /// <summary>How the completion of this prompt has to be parsed.</summary>
    public ThinkingMode CompletionMode => OpensReasoning ? ThinkingMode.Thinking : ThinkingMode.Chat;

    /// <summary>The whole prompt as text, byte-exact with the reference encoder.</summary>
    public string Text => string.Concat(Segments.Select(segment => segment.Text));
}

/// <summary>Collects a prompt's segments, joining neighbours of equal trust. Owned by one Render call.</summary>
internal sealed class PromptBuilder
{
    private readonly List<PromptSegment> _segments = [];
    private readonly StringBuilder _run = new();
    private bool _runTrusted;

    public void Trusted(string text) => Append(text, trusted: true);

    /// <summary>Text from outside; must be well-formed UTF-16, because the prompt becomes UTF-8.</summary>
    public void Untrusted(string text, int messageIndex, string field)
    {
        ThrowIfUnpairedSurrogate(text, messageIndex, field);
        Append(text, trusted: false);
    }

    public IReadOnlyList<PromptSegment> ToSegments()
    {
        Flush();
        return _segments;
    }

    private void Append(string text, bool trusted)
    {
        if (text.Length == 0)
            return;
        if (trusted != _runTrusted)
            Flush();
        _runTrusted = trusted;
        _run.Append(text);
    }

    private void Flush()
    {
        if (_run.Length > 0)
            _segments.Add(new PromptSegment(_run.ToString(), _runTrusted));
        _run.Clear();
    }

    private static void ThrowIfUnpairedSurrogate(ReadOnlySpan<char> text, int messageIndex, string field)
    {
        for (int at = text.IndexOfAnyInRange('\uD800', '\uDFFF'); at >= 0;)
        {
            if (!char.IsHighSurrogate(text[at]) || at + 1 == text.Length || !char.IsLowSurrogate(text[at + 1]))
            {
                throw new ChatEncodingException(
                    $"holds the unpaired surrogate U+{(int)text[at]:X4}, which no UTF-8 text can express",
                    "send whole characters (a text cut between two UTF-16 units ends like this)",
                    messageIndex,
                    field);
            }
            int next = text[(at + 2)..].IndexOfAnyInRange('\uD800', '\uDFFF');
            at = next < 0 ? -1 : at + 2 + next;
        }
    }
}

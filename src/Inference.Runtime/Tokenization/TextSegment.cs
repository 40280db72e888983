namespace Inference.Runtime.Tokenization;

/// <summary>
/// A part of a prompt and how much it is trusted. Several are encoded as one text: words run on across the borders, and only
/// added tokens depend on the policy. An added token is matched only inside neighbouring segments of one policy, so no text of
/// a user can become a control token, not even by completing what the template began.
/// </summary>
/// <param name="Text">The text; lone surrogates count as U+FFFD.</param>
/// <param name="Policy">Which added tokens it may become.</param>
public readonly record struct TextSegment(string Text, AddedTokenPolicy Policy)
{
    /// <summary>Text the server rendered: all added tokens count.</summary>
    public static TextSegment Trusted(string text) => new(text, AddedTokenPolicy.All);

    /// <summary>Text that came from outside: no added token counts.</summary>
    public static TextSegment Untrusted(string text) => new(text, AddedTokenPolicy.None);
}

namespace Inference.Runtime.Tokenization;

/// <summary>Which added tokens a text may become. Added tokens are those that are matched literally in the text before it is split.</summary>
public enum AddedTokenPolicy
{
    /// <summary>None: the text is only text. The right choice for everything a user wrote, so that it cannot forge control tokens.</summary>
    None,

    /// <summary>Those not flagged special (in some families <c>&lt;think&gt;</c> is such a token): <c>encode_special_tokens</c> of the reference library.</summary>
    NonSpecial,

    /// <summary>All: for text that the server itself rendered.</summary>
    All,
}

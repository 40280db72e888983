namespace Inference.Runtime.Tokenization.AddedTokens;

/// <summary>A token that is matched literally in the text, before it is split.</summary>
/// <param name="Id">Its id.</param>
/// <param name="Content">The text it stands for.</param>
/// <param name="Special">A control token: left out by decoding that skips special tokens, and not matched under <see cref="AddedTokenPolicy.NonSpecial"/>.</param>
/// <param name="Normalized">Matched in the normalised text, not in the text as it came.</param>
/// <param name="SingleWord">Matched only where no word character stands before or behind it.</param>
/// <param name="LeftStrip">Swallows white space before it.</param>
/// <param name="RightStrip">Swallows white space behind it.</param>
internal sealed record AddedToken(
    int Id, string Content, bool Special, bool Normalized = false, bool SingleWord = false, bool LeftStrip = false, bool RightStrip = false)
{
    /// <summary>Longest content in bytes. It bounds the work per character of matching; the longest of a real model has about 60.</summary>
    public const int ContentBytesMax = 256;
}

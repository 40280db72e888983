namespace Inference.Runtime.Tokenization;

/// <summary>A token and the text it comes from: code points [Start, End) of the encoded text.</summary>
/// <param name="Id">The token.</param>
/// <param name="Start">First code point. Tokens that hold parts of one character all cover that character.</param>
/// <param name="End">One past the last code point; equal to <paramref name="Start"/> where the family trims the space from its tokens.</param>
public readonly record struct TokenOffset(int Id, int Start, int End);

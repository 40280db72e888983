namespace Inference.Runtime.Tokenization.AddedTokens;

/// <summary>
/// A stretch [Start, End) of a text under one policy. The stretches of a text lie in order; neighbours of one policy are one
/// stretch; text in no stretch is under <see cref="AddedTokenPolicy.None"/>.
/// </summary>
internal readonly record struct PolicySpan(int Start, int End, AddedTokenPolicy Policy);

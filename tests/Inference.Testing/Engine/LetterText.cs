using System.Text;
using Inference.Runtime.Engine;

namespace Inference.Testing;

/// <summary>Text for models without a tokenizer: each token is one letter. Stop strings work as the real ones do, by the plainest means.</summary>
public sealed class LetterText(GenerationRequest request) : ISequenceText
{
    private readonly StringBuilder _held = new();

    /// <summary>The letter of a token.</summary>
    public static char Letter(int token) => (char)('a' + token % 26);

    public TextPiece Push(int tokenId)
    {
        _held.Append(Letter(tokenId));
        string held = _held.ToString();
        foreach (string stop in request.StopStrings)
        {
            int at = held.IndexOf(stop, StringComparison.Ordinal);
            if (at < 0) continue;
            _held.Clear();
            return new(held[..(request.IncludeStop ? at + stop.Length : at)], Bytes(tokenId), stop);
        }
        int safe = held.Length - LongestHeld(held);
        _held.Remove(0, safe);
        return new(held[..safe], Bytes(tokenId));
    }

    public string Flush()
    {
        string rest = _held.ToString();
        _held.Clear();
        return rest;
    }

    private int LongestHeld(string text)
    {
        for (int length = text.Length; length > 0; length--)
            if (request.StopStrings.Any(s => s.StartsWith(text[^length..], StringComparison.Ordinal))) return length;
        return 0;
    }

    private static byte[] Bytes(int tokenId) => [(byte)Letter(tokenId)];
}

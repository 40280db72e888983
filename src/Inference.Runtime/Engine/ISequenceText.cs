namespace Inference.Runtime.Engine;

/// <summary>Turns one sequence's output tokens into text: never half a character, never a possible beginning of a stop string.</summary>
public interface ISequenceText
{
    /// <summary>Takes the next output token.</summary>
    TextPiece Push(int tokenId);

    /// <summary>The answer ended otherwise than by a stop string: the text held back until now.</summary>
    string Flush();
}

/// <param name="Text">New safe text; may be empty.</param>
/// <param name="Bytes">The token's raw bytes.</param>
/// <param name="StopString">The stop string that this token completed; the answer ends here.</param>
public readonly record struct TextPiece(string Text, ReadOnlyMemory<byte> Bytes, string? StopString = null);

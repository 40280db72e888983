// What each id says when it is read back, and how byte strings of tokens become text.
//
// Byte-level families: the tokens' bytes in a row are UTF-8; each maximal ill-formed part is one U+FFFD. Byte-fallback
// families: a run of byte tokens that is not valid UTF-8 as a whole is one U+FFFD per byte, and one space at the start of the
// text is dropped (it is the marker that encoding put there). Ids outside of the vocabulary say nothing.
// Immutable; safe from any thread.
using System.Buffers;
using System.Text;
using Inference.Runtime.Tokenization.Bpe;

namespace Inference.Runtime.Tokenization;

/// <param name="Bytes">Per id the bytes it stands for; empty for ids without a token.</param>
/// <param name="Exists">Per id whether there is a token.</param>
/// <param name="Special">Per id whether it is an added token flagged special.</param>
/// <param name="ByteTokens">Per id whether it is a byte token; null in the families without byte fallback.</param>
/// <param name="DropsFirstSpace">Whether one space at the very start of a decoded text is dropped.</param>
internal sealed record DecodingTable(ByteStore Bytes, bool[] Exists, bool[] Special, bool[]? ByteTokens, bool DropsFirstSpace)
{
    /// <summary>One more than the largest id.</summary>
    public int Size => Exists.Length;

    /// <summary>Whether the id has a token that is to be shown.</summary>
    public bool Shows(int id, bool skipSpecial) => (uint)id < (uint)Size && Exists[id] && !(skipSpecial && Special[id]);

    /// <summary>Decodes a whole sequence.</summary>
    public string Decode(ReadOnlySpan<int> ids, bool skipSpecial)
    {
        var bytes = new ArrayBufferWriter<byte>(Math.Max(16, ids.Length * 4));
        var run = new ArrayBufferWriter<byte>(); // the byte tokens since the last other token
        foreach (var id in ids)
        {
            if (!Shows(id, skipSpecial))
                continue;
            var isByte = ByteTokens is not null && ByteTokens[id];
            if (!isByte)
                EndRun(run, bytes);
            (isByte ? run : bytes).Write(Bytes[id]);
        }
        EndRun(run, bytes);
        var text = Encoding.UTF8.GetString(bytes.WrittenSpan);
        return DropsFirstSpace && text.StartsWith(' ') ? text[1..] : text;
    }

    private static void EndRun(ArrayBufferWriter<byte> run, ArrayBufferWriter<byte> bytes)
    {
        if (run.WrittenCount == 0)
            return;
        if (System.Text.Unicode.Utf8.IsValid(run.WrittenSpan))
        {
            bytes.Write(run.WrittenSpan);
        }
        else
        {
            for (var i = 0; i < run.WrittenCount; i++)
                bytes.Write("\uFFFD"u8);
        }
        run.ResetWrittenCount();
    }
}

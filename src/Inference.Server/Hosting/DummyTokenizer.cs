using System.Text.Json;
using Inference.Runtime.Tokenization;

namespace Inference.Server.Hosting;

/// <summary>
/// A tokenizer for a model of random weights whose folder brings none: a token per byte of text, and of the ids above them each a name, such as [300],
/// so that every id can be said and text goes in and out. It knows no control tokens.
/// </summary>
internal static class DummyTokenizer
{
    private const int Bytes = 256;

    public static ModelTokenizer Of(int vocabSize)
    {
        using var json = new MemoryStream();
        using (var w = new Utf8JsonWriter(json)) Write(w, vocabSize);
        return TokenizerFactory.FromJson(json.ToArray(), "the tokenizer of --dummy");
    }

    private static void Write(Utf8JsonWriter w, int vocabSize)
    {
        w.WriteStartObject();
        w.WriteStartObject("model");
        w.WriteString("type", "BPE");
        w.WriteBoolean("byte_fallback", true);
        w.WriteStartObject("vocab");
        for (int id = 0; id < Math.Max(Bytes, vocabSize); id++) w.WriteNumber(id < Bytes ? $"<0x{id:X2}>" : $"[{id}]", id);
        w.WriteEndObject();
        w.WriteStartArray("merges");
        w.WriteEndArray();
        w.WriteEndObject();
        w.WriteStartObject("decoder");
        w.WriteString("type", "Sequence");
        w.WriteStartArray("decoders");
        w.WriteStartObject(); // no token of ours has the mark, but such a decoder begins with it
        w.WriteString("type", "Replace");
        w.WriteStartObject("pattern");
        w.WriteString("String", "\u2581");
        w.WriteEndObject();
        w.WriteString("content", " ");
        w.WriteEndObject();
        foreach (string step in (string[])["ByteFallback", "Fuse"])
        {
            w.WriteStartObject();
            w.WriteString("type", step);
            w.WriteEndObject();
        }
        w.WriteEndArray();
        w.WriteEndObject();
        w.WriteEndObject();
    }
}

// The steps between a prompt and its pieces that change text: normalisers, and the space that some pre-tokenizers put first.
// Each is immutable and safe from any thread. Each is linear in its input; none can grow it by more than a small factor.
using Inference.Runtime.Tokenization.Splitting;

namespace Inference.Runtime.Tokenization.Normalization;

internal abstract class TextTransform
{
    /// <summary>
    /// Writes the changed text into <paramref name="target"/> and returns true, or returns false when the text stays as it is.
    /// The text is not empty. <paramref name="atPromptStart"/>: it starts where the prompt starts.
    /// </summary>
    public abstract bool TryApply(TracedText source, bool atPromptStart, TextBuffer target);

    private protected static int FirstOrigin(TracedText source) => source.IsTraced ? source.Origins[0] : 0;
}

/// <summary>Puts a fixed text before every text ("Prepend").</summary>
internal sealed class PrependTransform(byte[] prefix) : TextTransform
{
    public override bool TryApply(TracedText source, bool atPromptStart, TextBuffer target)
    {
        target.Start(prefix.Length + source.Text.Length, source.IsTraced);
        target.Append(prefix, FirstOrigin(source));
        target.Append(source);
        return true;
    }
}

/// <summary>Puts a space before a text that does not begin with one (<c>add_prefix_space</c> of ByteLevel).</summary>
internal sealed class PrefixSpaceTransform : TextTransform
{
    public override bool TryApply(TracedText source, bool atPromptStart, TextBuffer target)
    {
        if (source.Text[0] == (byte)' ')
            return false;
        target.Start(1 + source.Text.Length, source.IsTraced);
        target.Append(" "u8, FirstOrigin(source));
        target.Append(source);
        return true;
    }
}

/// <summary>Replaces every occurrence of a literal text ("Replace"), from left to right without overlap.</summary>
internal sealed class ReplaceTransform(byte[] from, byte[] to) : TextTransform
{
    public override bool TryApply(TracedText source, bool atPromptStart, TextBuffer target)
    {
        var at = source.Text.IndexOf(from);
        if (at < 0)
            return false;
        target.Start(source.Text.Length + (source.Text.Length / 4), source.IsTraced);
        var done = 0;
        while (at >= 0)
        {
            target.Append(source.Slice(done, done + at));
            done += at + from.Length;
            target.Append(to, source.IsTraced ? source.Origins[done - 1] : 0);
            at = source.Text[done..].IndexOf(from);
        }
        target.Append(source.Slice(done, source.Text.Length));
        return true;
    }
}

/// <summary>When Metaspace puts its marker before a text that does not begin with one.</summary>
internal enum PrependScheme
{
    Never,
    First,
    Always,
}

/// <summary>The Metaspace step: spaces become markers (U+2581), and a marker is put first according to the scheme.</summary>
internal sealed class MetaspaceTransform(PrependScheme scheme) : TextTransform
{
    private static ReadOnlySpan<byte> Marker => MarkerSplitter.Marker;

    public override bool TryApply(TracedText source, bool atPromptStart, TextBuffer target)
    {
        target.Start(Marker.Length + source.Text.Length + (source.Text.Length / 4), source.IsTraced);
        var startsWithMarker = source.Text[0] == (byte)' ' || source.Text.StartsWith(Marker);
        if (!startsWithMarker && (scheme == PrependScheme.Always || (scheme == PrependScheme.First && atPromptStart)))
            target.Append(Marker, FirstOrigin(source));
        var done = 0;
        while (source.Text[done..].IndexOf((byte)' ') is >= 0 and var at)
        {
            target.Append(source.Slice(done, done + at));
            done += at + 1;
            target.Append(Marker, source.IsTraced ? source.Origins[done - 1] : 0);
        }
        target.Append(source.Slice(done, source.Text.Length));
        return true;
    }
}

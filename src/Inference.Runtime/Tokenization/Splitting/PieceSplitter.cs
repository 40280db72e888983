// The pre-tokenizers of the model families, each written by hand for the one pattern it stands for.
//
// A splitter tiles the text: matches of the pattern and the gaps between them are pieces ("Isolated"). It never backtracks
// over more than the run it looks at, keeps no state between calls, and never sees anything but valid UTF-8.
// Invariant: EndOfPiece moves forward, and calling it from piece to piece looks at each character a bounded number of times.
namespace Inference.Runtime.Tokenization.Splitting;

/// <summary>Cuts a text into the pieces that byte-pair merging works on.</summary>
internal abstract class PieceSplitter
{
    /// <summary>Where the piece ends that starts at <paramref name="start"/>; <paramref name="start"/> must be the end of the piece before, or 0.</summary>
    public abstract int EndOfPiece(ReadOnlySpan<byte> text, int start);
}

/// <summary>The whole text is one piece.</summary>
internal sealed class WholeTextSplitter : PieceSplitter
{
    public override int EndOfPiece(ReadOnlySpan<byte> text, int start) => text.Length;
}

/// <summary>
/// A piece starts at every marker (U+2581). With <paramref name="everyMarker"/> also inside of a run of markers, as the Metaspace
/// step does; without, a run stays whole: then the cut changes no id where no merge crosses it, and keeps pieces short.
/// </summary>
internal sealed class MarkerSplitter(bool everyMarker) : PieceSplitter
{
    public static ReadOnlySpan<byte> Marker => "\u2581"u8;

    public override int EndOfPiece(ReadOnlySpan<byte> text, int start)
    {
        var at = start;
        if (!everyMarker)
        {
            while (text[at..].StartsWith(Marker))
                at += Marker.Length;
        }
        else if (text[at..].StartsWith(Marker))
        {
            at += Marker.Length;
        }
        var next = text[at..].IndexOf(Marker);
        return next < 0 ? text.Length : at + next;
    }
}

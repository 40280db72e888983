using System.Buffers;

namespace Inference.Runtime.Chat;

/// <summary>Texts that a parser stops at, searched for all at once. None may be the beginning of another.</summary>
internal sealed class StopSet
{
    private readonly string[] _stops;
    private readonly SearchValues<string> _search;

    public StopSet(params string[] stops)
    {
        _stops = stops;
        _search = SearchValues.Create(stops, StringComparison.Ordinal);
        LengthMax = stops.Max(stop => stop.Length);
    }

    public int LengthMax { get; }

    /// <summary>Index of the first stop in the text, or -1.</summary>
    public int IndexIn(ReadOnlySpan<char> text, out string stop)
    {
        int index = text.IndexOfAny(_search);
        stop = index < 0 ? "" : StopAt(text[index..]);
        return index;
    }

    /// <summary>Where an unfinished stop at the text's end begins; the text's length when there is none.</summary>
    public int UnfinishedStart(ReadOnlySpan<char> text)
    {
        for (int start = Math.Max(0, text.Length - LengthMax + 1); start < text.Length; start++)
        {
            foreach (string stop in _stops)
            {
                if (stop.Length > text.Length - start && stop.AsSpan().StartsWith(text[start..]))
                    return start;
            }
        }
        return text.Length;
    }

    private string StopAt(ReadOnlySpan<char> text)
    {
        foreach (string stop in _stops)
        {
            if (text.StartsWith(stop))
                return stop;
        }
        throw new InvalidOperationException("the search found a stop that is not in the set");
    }
}

/// <summary>Where each part of a DeepSeek-V4 completion ends. The strict sets also hold what must not come there.</summary>
internal static class DeepSeekV4Stops
{
    private const string BlockStart = DeepSeekV4Wire.BlankLine + DeepSeekV4Wire.CallsStart;

    public static readonly StopSet StrictReasoning = new(
        DeepSeekV4Wire.ThinkEnd, BlockStart,
        DeepSeekV4Wire.BeginOfSequence, DeepSeekV4Wire.EndOfSequence, DeepSeekV4Wire.ThinkStart, DeepSeekV4Wire.Dsml);

    public static readonly StopSet LenientReasoning = new(DeepSeekV4Wire.ThinkEnd, DeepSeekV4Wire.EndOfSequence);

    public static readonly StopSet StrictContent = new(
        DeepSeekV4Wire.EndOfSequence, BlockStart,
        DeepSeekV4Wire.BeginOfSequence, DeepSeekV4Wire.ThinkStart, DeepSeekV4Wire.ThinkEnd, DeepSeekV4Wire.Dsml);

    /// <summary>Lenient: the two line breaks before a block may be fewer.</summary>
    public static readonly StopSet LenientContent = new(
        DeepSeekV4Wire.EndOfSequence, BlockStart, "\n" + DeepSeekV4Wire.CallsStart, DeepSeekV4Wire.CallsStart);

    public static readonly StopSet StrictInvokeHead = new(DeepSeekV4Wire.ParameterStart, DeepSeekV4Wire.InvokeEnd);

    public static readonly StopSet LenientInvokeHead = new(
        DeepSeekV4Wire.ParameterStart, DeepSeekV4Wire.InvokeEnd, DeepSeekV4Wire.EndOfSequence);

    public static readonly StopSet StrictParameterName = new(
        DeepSeekV4Wire.StringAttribute, DeepSeekV4Wire.JsonAttribute, UnopenedParameterEnd);

    public static readonly StopSet LenientParameterName = new(
        DeepSeekV4Wire.StringAttribute, DeepSeekV4Wire.JsonAttribute, UnopenedParameterEnd, DeepSeekV4Wire.EndOfSequence);

    public static readonly StopSet StrictValue = new(DeepSeekV4Wire.ParameterEnd, BrokenParameterEnd, UnopenedParameterEnd);

    public static readonly StopSet LenientValue = new(DeepSeekV4Wire.ParameterEnd, DeepSeekV4Wire.EndOfSequence);

    /// <summary>The reference's pattern happens to forgive one line break here.</summary>
    public const string BrokenParameterEnd = "<\n" + UnopenedParameterEnd;

    // The reference looks for this much and then demands the '<' before it.
    private const string UnopenedParameterEnd = "/" + DeepSeekV4Wire.Dsml + "parameter";
}

// The overrides of Microsoft.ML.Tokenizers.Tokenizer, for .NET code that knows that type.
//
// Offsets and indices are UTF-16 units of the text as given, never of a normalised one; NormalizedText is therefore null.
// No index ever lies inside of a character: a token count that ends between tokens of one character ends before it.
using System.Buffers;
using System.Runtime.InteropServices;
using Microsoft.ML.Tokenizers;

namespace Inference.Runtime.Tokenization;

public sealed partial class ModelTokenizer
{
    /// <inheritdoc />
    protected override EncodeResults<int> EncodeToIds(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings)
    {
        var chars = text ?? textSpan;
        using var encoded = EncodePlaces(chars, AddedTokenPolicy.None, StepsOf(settings));
        var (count, consumed) = Prefix(encoded, chars, settings.MaxTokenCount);
        return new EncodeResults<int> { Tokens = encoded.Ids[..count].ToArray(), CharsConsumed = consumed };
    }

    /// <inheritdoc />
    protected override EncodeResults<EncodedToken> EncodeToTokens(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings)
    {
        var chars = text ?? textSpan;
        using var encoded = EncodePlaces(chars, AddedTokenPolicy.None, StepsOf(settings));
        var (count, consumed) = Prefix(encoded, chars, settings.MaxTokenCount);
        var units = encoded.InUnits(chars);
        var tokens = new EncodedToken[count];
        for (var i = 0; i < count; i++)
            tokens[i] = new EncodedToken(encoded.Ids[i], TokenText(encoded.Ids[i]) ?? "", new Range(units[i].Start, units[i].End));
        return new EncodeResults<EncodedToken> { Tokens = tokens, CharsConsumed = consumed };
    }

    /// <inheritdoc />
    protected override int CountTokens(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings)
    {
        var chars = text ?? textSpan;
        using var encoded = EncodePlaces(chars, AddedTokenPolicy.None, StepsOf(settings));
        return Prefix(encoded, chars, settings.MaxTokenCount).Count;
    }

    /// <inheritdoc />
    protected override int GetIndexByTokenCount(
        string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings, bool fromEnd, out string? normalizedText, out int tokenCount)
    {
        var chars = text ?? textSpan;
        using var encoded = EncodePlaces(chars, AddedTokenPolicy.None, StepsOf(settings));
        normalizedText = null;
        (tokenCount, var index) = fromEnd
            ? Suffix(encoded, chars, settings.MaxTokenCount)
            : Prefix(encoded, chars, settings.MaxTokenCount);
        return index;
    }

    /// <summary>The text of a sequence, special tokens included.</summary>
    public override string Decode(IEnumerable<int> ids)
    {
        ArgumentNullException.ThrowIfNull(ids);
        return ids is int[] array ? Decode(array.AsSpan()) : Decode(CollectionsMarshal.AsSpan(ids as List<int> ?? [.. ids]));
    }

    /// <summary>Decodes as many whole ids as fit, never ending inside of a character.</summary>
    public override OperationStatus Decode(IEnumerable<int> ids, Span<char> destination, out int idsConsumed, out int charsWritten)
    {
        ArgumentNullException.ThrowIfNull(ids);
        (idsConsumed, charsWritten) = (0, 0);
        var detokenizer = CreateDetokenizer();
        int read = 0, written = 0;
        foreach (var id in ids)
        {
            var chunk = detokenizer.Append(id);
            if (!chunk.TryCopyTo(destination[written..]))
                return OperationStatus.DestinationTooSmall;
            written += chunk.Length;
            read++;
            if (detokenizer.IsDrained)
                (idsConsumed, charsWritten) = (read, written);
        }
        var rest = detokenizer.Flush();
        if (!rest.TryCopyTo(destination[written..]))
            return OperationStatus.DestinationTooSmall;
        (idsConsumed, charsWritten) = (read, written + rest.Length);
        return OperationStatus.Done;
    }

    private static EncodingSteps StepsOf(EncodeSettings settings) =>
        (settings.ConsiderNormalization ? EncodingSteps.Normalize : EncodingSteps.None)
        | (settings.ConsiderPreTokenization ? EncodingSteps.Split : EncodingSteps.None);

    // The most tokens from the start that end at the end of a character, and where they end.
    private static (int Count, int Index) Prefix(PlacedTokens encoded, ReadOnlySpan<char> text, int most)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(most);
        var count = encoded.Ids.Length;
        if (count <= most)
            return (count, text.Length);
        count = most;
        while (count > 0 && !IsBorder(encoded, count))
            count--;
        return (count, count == 0 ? 0 : encoded.InUnits(text)[count - 1].End);
    }

    private static (int Count, int Index) Suffix(PlacedTokens encoded, ReadOnlySpan<char> text, int most)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(most);
        var total = encoded.Ids.Length;
        if (total <= most)
            return (total, 0);
        var first = total - most;
        while (first < total && !IsBorder(encoded, first))
            first++;
        return (total - first, first == total ? text.Length : encoded.InUnits(text)[first].Start);
    }

    private static bool IsBorder(PlacedTokens encoded, int index) => encoded.Places[index].First > encoded.Places[index - 1].Last;
}

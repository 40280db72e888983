using Inference.Runtime.Tokenization;

namespace Inference.Runtime.Engine;

/// <summary>The text of one answer by the model's tokenizer. Its request's stop strings are ready when it is made; owned by the engine's
/// thread from then on.</summary>
internal sealed class TokenizerText : ISequenceText
{
    private readonly ModelTokenizer _tokenizer;
    private readonly IncrementalDetokenizer _detokenizer;

    /// <exception cref="RequestRejectedException">A stop string cannot be searched for.</exception>
    public TokenizerText(ModelTokenizer tokenizer, GenerationRequest request)
    {
        _tokenizer = tokenizer;
        // The answer continues the prompt, so a space that begins it is text.
        _detokenizer = tokenizer.CreateDetokenizer(
            new(SkipSpecial: !request.KeepSpecialTokens, StopsOf(request), request.IncludeStop, ContinuesText: true));
    }

    public TextPiece Push(int tokenId)
    {
        string text = _detokenizer.Append(tokenId).ToString();
        var bytes = _detokenizer.LastTokenBytes.IsEmpty ? default : _tokenizer.TokenBytes(tokenId);
        return new(text, bytes, _detokenizer.StopString);
    }

    public string Flush() => _detokenizer.Flush().ToString();

    /// <summary>Ids of the model's vocabulary that have no token, e.g. because the vocabulary was rounded up.</summary>
    public static int[] IdsWithoutToken(ModelTokenizer tokenizer, int vocabSize) =>
        [.. Enumerable.Range(0, vocabSize).Where(id => !tokenizer.HasToken(id))];

    private static StopMatcher? StopsOf(GenerationRequest request)
    {
        if (request.StopStrings.Count == 0) return null;
        try
        {
            return new(request.StopStrings);
        }
        catch (ArgumentException e)
        {
            throw new RequestRejectedException(RejectionReason.InvalidRequest, e.Message, "stopping.stop");
        }
    }
}

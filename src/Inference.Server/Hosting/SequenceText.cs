using Inference.Runtime.Engine;
using Inference.Runtime.Tokenization;

namespace Inference.Server.Hosting;

/// <summary>
/// The text of one answer, for the engine: the model's detokenizer with what the request says of stop strings and control tokens. Owned by the
/// engine's thread.
/// </summary>
internal sealed class SequenceText : ISequenceText
{
    private readonly ModelTokenizer _tokenizer;
    private readonly IncrementalDetokenizer _detokenizer;

    public SequenceText(ModelTokenizer tokenizer, GenerationRequest request)
    {
        _tokenizer = tokenizer;
        var stops = request.StopStrings.Count == 0 ? null : new StopMatcher([.. request.StopStrings]);
        _detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(!request.KeepSpecialTokens, stops, request.IncludeStop));
    }

    public TextPiece Push(int tokenId)
    {
        string text = _detokenizer.Append(tokenId).ToString();
        return new TextPiece(text, _tokenizer.TokenBytes(tokenId), _detokenizer.StopString);
    }

    public string Flush() => _detokenizer.Flush().ToString();
}

using Inference.Runtime.Tokenization;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>A prompt whose fields were checked and which was not encoded yet: encoding is the costly part, and comes after every check.</summary>
internal abstract record CheckedPrompt
{
    /// <exception cref="Runtime.Chat.ChatEncodingException">The conversation cannot be rendered.</exception>
    public abstract IReadOnlyList<int> Encode(ServedModel model);

    public sealed record Ids(int[] Values) : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model) => Values;
    }

    public sealed record Text(string Value, bool Plain) : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model)
        {
            var ids = model.Encode(Value, Plain ? AddedTokenPolicy.None : AddedTokenPolicy.All);
            if (ids.Count > 0) return ids;
            const string reason = "makes no tokens; give some text.";
            throw new RequestException(ErrorReason.InvalidField, $"text: {reason}") { Violations = [StatusMapping.Violation("text", reason)] };
        }
    }

    public sealed record Chat(ChatRequest Value) : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model) => model.Encode(Value.Render(model));
    }

    /// <summary>Stands for a prompt with violations.</summary>
    public sealed record Invalid : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model) => throw new InvalidOperationException("A request with violations is never run.");
    }
}

/// <summary>Checks which prompt a request brings and what is in it.</summary>
internal static class PromptReader
{
    public static CheckedPrompt Check(V1.GenerateRequest request, ServedModel model, FieldChecks checks)
    {
        if (request.HasPlainText && request.PromptCase is V1.GenerateRequest.PromptOneofCase.TokenIds or V1.GenerateRequest.PromptOneofCase.Chat)
            checks.Add("plain_text", "goes with text only; leave it out.");
        switch (request.PromptCase)
        {
            case V1.GenerateRequest.PromptOneofCase.Text when request.Text.Length == 0:
                checks.Add("text", "is empty; give at least one character.");
                return new CheckedPrompt.Invalid();
            case V1.GenerateRequest.PromptOneofCase.Text:
                return new CheckedPrompt.Text(request.Text, request.PlainText);
            case V1.GenerateRequest.PromptOneofCase.TokenIds when request.TokenIds.Ids.Count == 0:
                checks.Add("token_ids.ids", "is empty; give at least one token id.");
                return new CheckedPrompt.Invalid();
            case V1.GenerateRequest.PromptOneofCase.TokenIds:
                return new CheckedPrompt.Ids(checks.TokenIds("token_ids.ids", request.TokenIds.Ids, model.Info.VocabSize));
            case V1.GenerateRequest.PromptOneofCase.Chat:
                return ChatReader.Check(request.Chat, "chat", model, checks) is { } chat ? new CheckedPrompt.Chat(chat) : new CheckedPrompt.Invalid();
            default:
                checks.Add("prompt", "is missing; give one of text, token_ids and chat.");
                return new CheckedPrompt.Invalid();
        }
    }
}

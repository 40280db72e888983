using Inference.Runtime.Engine;
using Inference.Runtime.Tokenization;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>A prompt whose fields were checked and which was not encoded yet: encoding is the costly part, and comes after every check.</summary>
internal abstract record CheckedPrompt
{
    /// <exception cref="Runtime.Chat.ChatEncodingException">The conversation cannot be rendered.</exception>
    public abstract IReadOnlyList<int> Encode(ServedModel model);

    /// <summary>Nothing to add to a session.</summary>
    public sealed record None : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model) => [];
    }

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

    public sealed record Chat(ChatRequest Value, bool ClosesAnswer) : CheckedPrompt
    {
        public override IReadOnlyList<int> Encode(ServedModel model)
        {
            var ids = model.Encode(Value.Render(model));
            if (ClosesAnswer && model.Defaults.EndTokenIds is [var end, ..]) ids.Insert(0, end);
            return ids;
        }
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
    /// <param name="session">What it goes on from, if it does.</param>
    public static CheckedPrompt Check(V1.GenerateRequest request, ServedModel model, KvSessionTurn? session, FieldChecks checks)
    {
        if (request.HasPlainText && request.PromptCase is V1.GenerateRequest.PromptOneofCase.TokenIds or V1.GenerateRequest.PromptOneofCase.Chat)
            checks.Add("plain_text", "goes with text only; leave it out.");
        switch (request.PromptCase)
        {
            case V1.GenerateRequest.PromptOneofCase.Text:
                return Text("text", request.Text, request.PlainText, checks);
            case V1.GenerateRequest.PromptOneofCase.TokenIds:
                return Ids("token_ids", request.TokenIds, model, checks);
            case V1.GenerateRequest.PromptOneofCase.Chat:
                return Chat("chat", request.Chat, model, session, asksForAnswer: true, checks);
            case V1.GenerateRequest.PromptOneofCase.None when session is { Tokens.Length: > 0 }:
                return new CheckedPrompt.None();
            default:
                checks.Add("prompt", "is missing; give one of text, token_ids and chat.");
                return new CheckedPrompt.Invalid();
        }
    }

    /// <param name="session">What it is added to.</param>
    public static CheckedPrompt Check(V1.SessionContent content, ServedModel model, KvSessionTurn? session, FieldChecks checks)
    {
        switch (content.ContentCase)
        {
            case V1.SessionContent.ContentOneofCase.Text:
                return Text("content.text", content.Text, plain: false, checks);
            case V1.SessionContent.ContentOneofCase.TokenIds:
                return Ids("content.token_ids", content.TokenIds, model, checks);
            case V1.SessionContent.ContentOneofCase.Chat:
                return Chat("content.chat", content.Chat, model, session, asksForAnswer: false, checks);
            default:
                checks.Add("content", "is missing; give one of text, token_ids and chat.");
                return new CheckedPrompt.Invalid();
        }
    }

    private static CheckedPrompt Text(string field, string text, bool plain, FieldChecks checks)
    {
        if (text.Length > 0) return new CheckedPrompt.Text(text, plain);
        checks.Add(field, "is empty; give at least one character.");
        return new CheckedPrompt.Invalid();
    }

    private static CheckedPrompt Ids(string field, V1.TokenIds ids, ServedModel model, FieldChecks checks)
    {
        if (ids.Ids.Count > 0) return new CheckedPrompt.Ids(checks.TokenIds($"{field}.ids", ids.Ids, model.Info.VocabSize));
        checks.Add($"{field}.ids", "is empty; give at least one token id.");
        return new CheckedPrompt.Invalid();
    }

    // A conversation that goes on has had its beginning; an answer that was cut off is closed before the next message.
    private static CheckedPrompt Chat(
        string field, V1.ChatPrompt prompt, ServedModel model, KvSessionTurn? session, bool asksForAnswer, FieldChecks checks)
    {
        if (ChatReader.Check(prompt, field, model, checks) is not { } chat) return new CheckedPrompt.Invalid();
        bool goesOn = session is { Tokens.Length: > 0 };
        var options = chat.Options with { BeginOfSequence = !goesOn, AsksForAnswer = asksForAnswer };
        if (goesOn) options = options with { ReasoningEffort = null };
        return new CheckedPrompt.Chat(chat with { Options = options }, ClosesAnswer: session is { AnswerOpen: true });
    }
}

using System.Text.Json;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;

namespace Inference.Server.Commands;

/// <summary>
/// A conversation with a local model: the messages so far and how to go on. It owns the history; what the user sees is the caller's
/// <see cref="AnswerView"/>. Invariant: the history is one that can be rendered, whether an answer ended, was stopped or failed.
/// </summary>
internal sealed class ChatSession(LocalModel model, GenerationChoices choices, IReadOnlyList<ToolDefinition> tools)
{
    private readonly List<ChatMessage> _messages = [];

    /// <summary>System text; null for none.</summary>
    public string? System { get; set; }

    public bool Thinking { get; set; }

    /// <summary>A text that stands before the first question; null for none.</summary>
    public TextReading? About { get; set; }

    /// <summary>Messages so far, the system message not among them.</summary>
    public IReadOnlyList<ChatMessage> Messages => _messages;

    /// <summary>Calls of the last answer that wait for their results, in order.</summary>
    public IReadOnlyList<ToolCall> OpenCalls { get; private set; } = [];

    /// <summary>Forgets all messages; system text and options stay.</summary>
    public void Reset()
    {
        _messages.Clear();
        OpenCalls = [];
    }

    /// <summary>Says something and shows the answer.</summary>
    public Task<Answer> AskAsync(string text, AnswerView view, CancellationToken cancel) =>
        AnswerAsync([ChatMessage.Of(ChatRole.User, About is not null && _messages.Count == 0 ? About.With(text) : text)], view, cancel);

    /// <summary>Gives the results of all open calls, in their order, and shows the answer.</summary>
    public Task<Answer> GiveResultsAsync(IReadOnlyList<string> results, AnswerView view, CancellationToken cancel) =>
        AnswerAsync(
            [.. results.Select((r, i) => ChatMessage.Of(ChatRole.Tool, r) with { ToolCallId = OpenCalls[i].Id })], view, cancel);

    private async Task<Answer> AnswerAsync(IReadOnlyList<ChatMessage> said, AnswerView view, CancellationToken cancel)
    {
        int before = _messages.Count;
        _messages.AddRange(said);
        try
        {
            var answer = await GenerateAsync(view, cancel);
            Keep(answer.Message, before);
            return answer;
        }
        catch
        {
            _messages.RemoveRange(before, _messages.Count - before);
            throw;
        }
    }

    private async Task<Answer> GenerateAsync(AnswerView view, CancellationToken cancel)
    {
        var encoding = model.Served.Chat ?? throw new InputException("This model has no chat encoding; use run --raw.");
        var options = new ChatRenderOptions { ThinkingMode = Thinking ? ThinkingMode.Thinking : ThinkingMode.Chat };
        var prompt = encoding.Render(Conversation(), options);
        int[] ids = [.. model.Served.Encode(prompt)];
        var request = choices.Request(model.Served, ids);
        var parser = new CompletionStreamParser(prompt.CompletionMode);
        var all = new List<CompletionEvent>();
        var finished = await model.GenerateAsync(request, text => Show(() => parser.Push(text, all), all, view), cancel);
        Show(() => parser.Complete(all), all, view);
        view.End();
        bool unread = finished.Reason == FinishReason.Cancelled && finished.Usage.OutputTokens == 0;
        int? kept = unread ? await model.KeptAsync(ids) : null;
        int? saved = About is null ? null
            : await About.SaveAsync(ids, model.Served.Encode(encoding.Render(Conversation([ChatMessage.Of(ChatRole.User, About.With(""))]), options)).ToArray());
        return new Answer(ParsedMessage.FromEvents(all), finished, request.Sampling.Seed, kept, saved);
    }

    private static void Show(Action parse, List<CompletionEvent> all, AnswerView view)
    {
        int shown = all.Count;
        parse();
        for (; shown < all.Count; shown++) view.Show(all[shown]);
        view.Flush();
    }

    // A stopped answer stays as far as it came; one without a word leaves no trace, nor does what it would have answered.
    private void Keep(ParsedMessage message, int before)
    {
        if (message.Content.Length == 0 && message.ReasoningContent.Length == 0 && message.ToolCalls.Count == 0)
        {
            _messages.RemoveRange(before, _messages.Count - before);
            return;
        }
        OpenCalls = [.. message.ToolCalls.Select((call, i) => call with { Id = $"call_{_messages.Count}_{i}" })];
        _messages.Add(message.ToChatMessage() with { ToolCalls = OpenCalls });
    }

    /// <summary>All of it, as the encoding takes it.</summary>
    public Conversation Conversation() => Conversation(_messages);

    private Conversation Conversation(List<ChatMessage> messages) =>
        new Conversation(System is null ? messages : [ChatMessage.Of(ChatRole.System, System), .. messages]).WithTools(tools);

    /// <summary>Writes the conversation in the form that <c>render --messages</c> reads.</summary>
    public void Save(Utf8JsonWriter w)
    {
        w.WriteStartObject();
        w.WriteString("thinking_mode", Thinking ? "thinking" : "chat");
        w.WriteStartArray("messages");
        foreach (var message in Conversation().Messages) Save(w, message);
        w.WriteEndArray();
        w.WriteEndObject();
    }

    private static void Save(Utf8JsonWriter w, ChatMessage message)
    {
        w.WriteStartObject();
        w.WriteString("role", message.Role.ToString().ToLowerInvariant());
        w.WriteString("content", string.Concat(message.Content.Select(p => p.Text)));
        if (!string.IsNullOrEmpty(message.ReasoningContent)) w.WriteString("reasoning_content", message.ReasoningContent);
        if (message.ToolCallId is not null) w.WriteString("tool_call_id", message.ToolCallId);
        if (message.Tools.Count > 0) SaveTools(w, message.Tools);
        if (message.ToolCalls.Count > 0) SaveCalls(w, message.ToolCalls);
        w.WriteEndObject();
    }

    private static void SaveTools(Utf8JsonWriter w, IReadOnlyList<ToolDefinition> tools)
    {
        w.WriteStartArray("tools");
        foreach (var tool in tools)
        {
            w.WriteStartObject();
            w.WriteString("type", "function");
            w.WritePropertyName("function");
            w.WriteRawValue(tool.FunctionJson);
            w.WriteEndObject();
        }
        w.WriteEndArray();
    }

    private static void SaveCalls(Utf8JsonWriter w, IReadOnlyList<ToolCall> calls)
    {
        w.WriteStartArray("tool_calls");
        foreach (var call in calls)
        {
            w.WriteStartObject();
            w.WriteString("id", call.Id);
            w.WriteString("type", "function");
            w.WriteStartObject("function");
            w.WriteString("name", call.Name);
            w.WriteString("arguments", call.Arguments);
            w.WriteEndObject();
            w.WriteEndObject();
        }
        w.WriteEndArray();
    }
}

/// <param name="Message">What the answer says, taken apart.</param>
/// <param name="Finished">How it ended and what it took.</param>
/// <param name="Seed">Of its draws.</param>
/// <param name="Kept">Tokens of the prompt that are in the cache, if it was stopped before it was read; else null.</param>
/// <param name="Saved">Tokens of the text that are on disk; null: no text, or no disk.</param>
internal sealed record Answer(ParsedMessage Message, GenerationFinished Finished, ulong Seed, int? Kept = null, int? Saved = null);

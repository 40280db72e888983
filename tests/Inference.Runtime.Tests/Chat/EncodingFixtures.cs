using System.Text.Json;
using Inference.Runtime.Chat;
using Inference.Testing;

namespace Inference.Runtime.Tests.Chat;

/// <summary>Reads the fixtures of Fixtures/encoding and the embedded model's examples, with System.Text.Json.</summary>
internal static class EncodingFixtures
{
    private static readonly Lazy<List<CompletionCase>> CompletionCases = new(() => LoadCompletions("deepseek_v4_completions.json"));
    private static readonly Lazy<List<CompletionCase>> BrokenCases = new(() => LoadCompletions("deepseek_v4_broken_completions.json"));

    /// <summary>A completion, and the message the released parser makes of it; null when it refuses.</summary>
    public sealed record CompletionCase(string Text, ThinkingMode Mode, string? MessageJson);

    /// <summary>A request as JSON text, and the prompt of the released encoder.</summary>
    public sealed record PromptCase(string Json, string Prompt);

    public static IReadOnlyList<CompletionCase> Completions => CompletionCases.Value;

    public static IReadOnlyList<CompletionCase> BrokenCompletions => BrokenCases.Value;

    public static List<PromptCase> Prompts(string file) => Load(Fixture.Path("encoding/" + file))
        .Select(item => new PromptCase(item.GetRawText(), item.GetProperty("prompt").GetString()!))
        .ToList();

    public static List<JsonElement> PebbleExamples => Load(Path.Combine(RepositoryPaths.Pebble, "examples.json"));

    public static List<JsonElement> Load(string path)
    {
        using var document = JsonDocument.Parse(File.ReadAllBytes(path));
        return document.RootElement.EnumerateArray().Select(item => item.Clone()).ToList();
    }

    private static List<CompletionCase> LoadCompletions(string file) => Load(Fixture.Path("encoding/" + file))
        .Select(item => new CompletionCase(
            item.GetProperty("completion").GetString()!,
            ConversationJson.ReadThinkingMode(item.GetProperty("thinking_mode").GetString()!),
            item.TryGetProperty("message", out var message) ? message.GetRawText() : null))
        .ToList();
}

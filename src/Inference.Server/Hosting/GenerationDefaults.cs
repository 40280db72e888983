using System.Text.Json;

namespace Inference.Server.Hosting;

/// <summary>
/// What the model's authors recommend for values a client leaves unset: generation_config.json, read once at load. A value out of its range is
/// a damaged file, not a value to repair.
/// </summary>
/// <param name="MaxTokens">max_new_tokens; null when the file does not say.</param>
/// <param name="EndTokenIds">From generation_config.json, else config.json.</param>
internal sealed record GenerationDefaults(
    float Temperature, int TopK, float TopP, float MinP, float RepetitionPenalty, float PresencePenalty, float FrequencyPenalty, int? MaxTokens,
    IReadOnlyList<int> EndTokenIds)
{
    private const string FileName = "generation_config.json";
    private const int FileBytesMax = 1 << 20;

    /// <summary>With no file: the built-in defaults.</summary>
    public static GenerationDefaults BuiltIn { get; } = new(1, 0, 1, 0, 1, 0, 0, null, []);

    /// <exception cref="InvalidDataException">The file is there and cannot be used; the message names it and the key.</exception>
    public static GenerationDefaults Read(string folder)
    {
        using var config = Parse(folder, "config.json");
        using var generation = Parse(folder, FileName);
        var ends = EndIds(generation, FileName) ?? EndIds(config, "config.json") ?? [];
        if (generation is null) return BuiltIn with { EndTokenIds = ends };
        var root = generation.RootElement;
        bool greedy = root.TryGetProperty("do_sample", out var sample) && sample.ValueKind == JsonValueKind.False;
        return new GenerationDefaults(
            greedy ? 0 : Number(root, "temperature", BuiltIn.Temperature, v => v is >= 0 and <= 100),
            (int)Number(root, "top_k", BuiltIn.TopK, v => v >= 0 && v <= int.MaxValue / 2 && v == MathF.Truncate(v)),
            Number(root, "top_p", BuiltIn.TopP, v => v is > 0 and <= 1),
            Number(root, "min_p", BuiltIn.MinP, v => v is >= 0 and <= 1),
            Number(root, "repetition_penalty", BuiltIn.RepetitionPenalty, v => v is >= 0.01f and <= 100),
            Number(root, "presence_penalty", BuiltIn.PresencePenalty, v => v is >= -2 and <= 2),
            Number(root, "frequency_penalty", BuiltIn.FrequencyPenalty, v => v is >= -2 and <= 2),
            root.TryGetProperty("max_new_tokens", out _) ? (int)Number(root, "max_new_tokens", 1, v => v is >= 1 and <= 1 << 30) : null,
            ends);
    }

    private static JsonDocument? Parse(string folder, string name)
    {
        string path = Path.Combine(folder, name);
        if (!File.Exists(path)) return null;
        if (new FileInfo(path).Length > FileBytesMax) throw new InvalidDataException($"{name}: larger than {FileBytesMax} bytes.");
        try
        {
            var document = JsonDocument.Parse(File.ReadAllBytes(path));
            return document.RootElement.ValueKind == JsonValueKind.Object ? document : throw new InvalidDataException($"{name}: not a JSON object.");
        }
        catch (JsonException e)
        {
            throw new InvalidDataException($"{name}: not JSON: {e.Message}", e);
        }
    }

    private static float Number(JsonElement root, string key, float fallback, Func<float, bool> allowed)
    {
        if (!root.TryGetProperty(key, out var value) || value.ValueKind == JsonValueKind.Null) return fallback;
        if (value.ValueKind == JsonValueKind.Number && value.TryGetSingle(out float number) && allowed(number)) return number;
        throw new InvalidDataException($"{FileName}: {key} is {Shown(value)}, which is no value it can have; correct it or take it out.");
    }

    private static List<int>? EndIds(JsonDocument? document, string name)
    {
        if (document is null || !document.RootElement.TryGetProperty("eos_token_id", out var value) || value.ValueKind == JsonValueKind.Null) return null;
        JsonElement[] items = value.ValueKind == JsonValueKind.Array ? [.. value.EnumerateArray().Take(1024)] : [value];
        var ids = new List<int>();
        foreach (var item in items)
            ids.Add(item.ValueKind == JsonValueKind.Number && item.TryGetInt32(out int id) && id >= 0
                ? id
                : throw new InvalidDataException($"{name}: eos_token_id holds {Shown(item)}, which is no token id."));
        return ids;
    }

    private static string Shown(JsonElement value)
    {
        string text = value.GetRawText();
        return text.Length <= 40 ? text : text[..40] + "...";
    }
}

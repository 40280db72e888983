using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Serialization;
using Inference.Runtime.Tokenization;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>The tokenizer fixtures (see Fixtures/tokenizers/README.md) and the tokenizers of their folders, loaded once.</summary>
internal static class TokenizerFixtures
{
    private static readonly ConcurrentDictionary<string, ModelTokenizer> Loaded = new();

    public static string[] JsonFamilies { get; } =
    [
        "deepseek-v3", "glm-4", "gpt-oss", "gpt2", "gpt2-prefix", "kimi-k2", "llama-3", "llama-4", "minimax-m2", "mistral-tekken",
        "mixtral", "mixtral-metaspace", "qwen2", "qwen3.5",
    ];

    public static string[] AllFamilies { get; } = [.. JsonFamilies, "tiktoken-llama4-like"];

    public static TheoryData<string> Families => [.. AllFamilies];

    /// <summary>Name and folder of every tokenizer there is, the embedded model's included.</summary>
    public static string FolderOf(string family) => family == "pebble" ? RepositoryPaths.Pebble : Fixture.Path($"tokenizers/{family}");

    public static ModelTokenizer Load(string family) => Loaded.GetOrAdd(family, name => TokenizerFactory.Load(FolderOf(name)));

    public static T Read<T>(string path) => JsonSerializer.Deserialize<T>(File.ReadAllBytes(Fixture.Path($"tokenizers/{path}")))!;

    public static bool IsByteFallback(string family) => family.StartsWith("mixtral", StringComparison.Ordinal);
}

/// <summary>A list of ids, written out or by its digest when it is long.</summary>
[JsonConverter(typeof(IdListConverter))]
internal sealed record IdList(int[]? Ids, int Count, string? Sha256)
{
    public bool Matches(IReadOnlyList<int> ids)
    {
        if (Ids is not null)
            return ids.SequenceEqual(Ids);
        var bytes = new byte[ids.Count * 4];
        for (var i = 0; i < ids.Count; i++)
            BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(i * 4), ids[i]);
        return ids.Count == Count && Convert.ToHexStringLower(SHA256.HashData(bytes)) == Sha256;
    }

    public override string ToString() => Ids is null ? $"{Count} ids" : string.Join(",", Ids);
}

internal sealed class IdListConverter : JsonConverter<IdList>
{
    public override IdList Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        var element = JsonElement.ParseValue(ref reader);
        return element.ValueKind == JsonValueKind.Array
            ? new IdList([.. element.EnumerateArray().Select(id => id.GetInt32())], element.GetArrayLength(), null)
            : new IdList(null, element.GetProperty("count").GetInt32(), element.GetProperty("sha256").GetString());
    }

    public override void Write(Utf8JsonWriter writer, IdList value, JsonSerializerOptions options) => throw new NotSupportedException();
}

/// <summary>An entry of cases.json.</summary>
internal sealed record EncodingCase(
    [property: JsonPropertyName("text")] string? Written,
    [property: JsonPropertyName("repeat")] JsonElement[]? Repeat,
    [property: JsonPropertyName("prefix")] string? Prefix,
    [property: JsonPropertyName("suffix")] string? Suffix,
    [property: JsonPropertyName("ids")] IdList Ids,
    [property: JsonPropertyName("ids_no_special_parse")] IdList? IdsNoSpecialParse,
    [property: JsonPropertyName("ids_no_added_parse")] IdList? IdsNoAddedParse,
    [property: JsonPropertyName("ids_with_post")] IdList? IdsWithPost,
    [property: JsonPropertyName("decoded")] string? Decoded,
    [property: JsonPropertyName("decoded_skip_special")] string? DecodedSkipSpecial,
    [property: JsonPropertyName("offsets")] int[][]? Offsets)
{
    public string Text => Written
        ?? Prefix + string.Concat(Enumerable.Repeat(Repeat![0].GetString(), Repeat[1].GetInt32())) + Suffix;

    public string Name => Written is not null ? JsonSerializer.Serialize(Written) : $"{Repeat![1]} times {JsonSerializer.Serialize(Repeat[0].GetString())}";
}

/// <summary>An entry of decode.json.</summary>
internal sealed record DecodingCase(
    [property: JsonPropertyName("note")] string Note,
    [property: JsonPropertyName("ids")] int[] Ids,
    [property: JsonPropertyName("decoded")] string Decoded,
    [property: JsonPropertyName("decoded_skip_special")] string? DecodedSkipSpecial,
    [property: JsonPropertyName("bytes")] string? Bytes);

/// <summary>Collects what differs, so that one test reports all of it.</summary>
internal sealed class Differences
{
    private const int Shown = 10;
    private readonly List<string> _found = [];

    public int Checked { get; private set; }

    public void Check(bool same, Func<string> describe)
    {
        Checked++;
        if (!same)
            _found.Add(describe());
    }

    public void AssertNone(int atLeast)
    {
        Assert.True(_found.Count == 0, $"{_found.Count} of {Checked} differ:\n{string.Join('\n', _found.Take(Shown))}");
        Assert.True(Checked >= atLeast, $"only {Checked} cases were checked, expected {atLeast}");
    }
}

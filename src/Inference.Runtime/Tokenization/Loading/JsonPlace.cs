// Strict reading of JSON: every access says what it expects, and every disappointment is a TokenizerException with the place.
using System.Globalization;
using System.Text.Json;

namespace Inference.Runtime.Tokenization.Loading;

/// <summary>A value of a JSON file with its place in it.</summary>
internal readonly struct JsonPlace(string file, string path, JsonElement element, int index = -1)
{
    private const int ShownCharacters = 60;
    private const string AskForOriginal = "Use the file as the model's authors published it.";

    public string File { get; } = file;

    public string Path => index < 0 ? path : $"{path}[{index}]"; // put together only for messages

    public JsonElement Element { get; } = element;

    /// <summary>Parses a file; duplicate names and more than 64 levels are refused.</summary>
    public static JsonDocument Parse(string file, ReadOnlyMemory<byte> json)
    {
        try
        {
            return JsonDocument.Parse(json, new JsonDocumentOptions { AllowDuplicateProperties = false });
        }
        catch (JsonException e)
        {
            throw new TokenizerException(file, $"is not valid JSON: {e.Message}", AskForOriginal, e);
        }
        catch (InvalidOperationException e)
        {
            throw new TokenizerException(file, $"holds a name that is not valid Unicode: {e.Message}", AskForOriginal, e);
        }
    }

    public TokenizerException Fail(string reason, string wayOut = AskForOriginal) => new(File, $"{Path}: {reason}", wayOut);

    /// <summary>A text shortened for messages.</summary>
    public static string Show(string text) =>
        text.Length <= ShownCharacters ? $"\"{text}\"" : $"\"{text[..ShownCharacters]}...\" ({text.Length} characters)";

    /// <summary>A member, or null when it is missing or null.</summary>
    public JsonPlace? Optional(string name)
    {
        if (Element.ValueKind != JsonValueKind.Object)
            throw Fail($"is {Kind}, expected an object");
        return Element.TryGetProperty(name, out var member) && member.ValueKind != JsonValueKind.Null
            ? new JsonPlace(File, $"{Path}.{name}", member)
            : null;
    }

    public JsonPlace Required(string name) => Optional(name) ?? throw Fail($"has no \"{name}\"");

    public string Text()
    {
        if (Element.ValueKind != JsonValueKind.String)
            throw Fail($"is {Kind}, expected a string");
        try
        {
            return Element.GetString()!;
        }
        catch (InvalidOperationException e)
        {
            throw new TokenizerException(File, $"{Path}: the string is not valid Unicode", AskForOriginal, e);
        }
    }

    public string Text(string name) => Required(name).Text();

    public bool Flag()
    {
        if (Element.ValueKind is not (JsonValueKind.True or JsonValueKind.False))
            throw Fail($"is {Kind}, expected true or false");
        return Element.GetBoolean();
    }

    public bool Flag(string name) => Required(name).Flag();

    public bool Flag(string name, bool missing) => Optional(name)?.Flag() ?? missing;

    /// <summary>A whole number in [0, <paramref name="below"/>).</summary>
    public int Index(int below)
    {
        if (Element.ValueKind != JsonValueKind.Number || !Element.TryGetInt32(out var value) || value < 0 || value >= below)
            throw Fail(string.Create(CultureInfo.InvariantCulture, $"is {Raw}, expected a whole number from 0 to {below - 1}"));
        return value;
    }

    public IEnumerable<JsonPlace> Items()
    {
        if (Element.ValueKind != JsonValueKind.Array)
            throw Fail($"is {Kind}, expected an array");
        var path = Path;
        var next = 0;
        foreach (var item in Element.EnumerateArray())
            yield return new JsonPlace(File, path, item, next++);
    }

    public IEnumerable<(string Name, JsonPlace Value)> Members()
    {
        if (Element.ValueKind != JsonValueKind.Object)
            throw Fail($"is {Kind}, expected an object");
        foreach (var member in Element.EnumerateObject())
        {
            var name = NameOf(member);
            yield return (name, new JsonPlace(File, Path, member.Value));
        }
    }

    private string NameOf(JsonProperty member)
    {
        try
        {
            return member.Name;
        }
        catch (InvalidOperationException e)
        {
            throw new TokenizerException(File, $"{Path}: a name is not valid Unicode", AskForOriginal, e);
        }
    }

    private string Kind => Element.ValueKind switch
    {
        JsonValueKind.True or JsonValueKind.False => "a truth value",
        JsonValueKind.Null => "null",
        _ => $"a JSON {Element.ValueKind.ToString().ToLowerInvariant()}",
    };

    private string Raw => Element.ValueKind == JsonValueKind.Number ? Show(Element.GetRawText()) : Kind;
}

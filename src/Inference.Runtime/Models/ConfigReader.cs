// Reads the keys of one JSON object of a config.json, each with its type and range.
//
// Every family's config is read through it, so that each wrong value ends in the same kind of message: file, key, value,
// allowed range. Unknown keys are ignored: published configs carry many that only other programs read. A key that is
// null counts as missing. Holds no state beside the parsed document that it borrows.
using System.Collections.Immutable;
using System.Globalization;
using System.Text.Json;
using System.Text.Unicode;

namespace Inference.Runtime.Models;

internal sealed class ConfigReader
{
    private static readonly JsonDocumentOptions Json = new() { MaxDepth = 32, AllowDuplicateProperties = false };

    private readonly string _file;
    private readonly string _path;
    private readonly JsonElement _object;

    private ConfigReader(string file, string path, JsonElement element) => (_file, _path, _object) = (file, path, element);

    /// <summary>Parses a config and hands its top object to <paramref name="read"/>.</summary>
    /// <exception cref="ModelConfigException">Not JSON, or not what <paramref name="read"/> wants.</exception>
    public static T Read<T>(string file, ReadOnlyMemory<byte> json, Func<ConfigReader, T> read)
    {
        const string wayOut = "Take the config.json that was published with the weights.";
        if (!Utf8.IsValid(json.Span))
            throw new ModelConfigException(file, "it is not UTF-8 text", wayOut, null);
        JsonDocument document;
        try
        {
            document = JsonDocument.Parse(json, Json);
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException) // the latter: an escaped half of a surrogate pair
        {
            throw new ModelConfigException(file, $"it is not valid JSON: {Weights.Printable.Text(e.Message.TrimEnd('.'))}", wayOut, e);
        }
        using (document)
        {
            if (document.RootElement.ValueKind != JsonValueKind.Object)
                throw new ModelConfigException(file, "it is not a JSON object", wayOut, null);
            return read(new ConfigReader(file, "", document.RootElement));
        }
    }

    /// <summary>Whether the key is there and not null.</summary>
    public bool Has(string key) => _object.TryGetProperty(key, out var value) && value.ValueKind != JsonValueKind.Null;

    /// <summary>A required whole number in a range. A float that is one (64.0) is accepted.</summary>
    public int Int(string key, int min, int max) => ToInt(key, Required(key, IntRange(min, max)), min, max);

    /// <summary>As <see cref="Int"/>; the fallback if the key is missing.</summary>
    public int IntOr(string key, int fallback, int min, int max) => Has(key) ? Int(key, min, max) : fallback;

    /// <summary>A required number in a range, bounds included.</summary>
    public double Number(string key, double min, double max)
    {
        var allowed = string.Create(CultureInfo.InvariantCulture, $"a number from {min} to {max}");
        var value = Required(key, allowed);
        return value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number) && number >= min && number <= max
            ? number
            : throw Wrong(key, value, allowed);
    }

    /// <summary>Whole numbers, each in a range.</summary>
    public ImmutableArray<int> Ints(string key, int countMin, int countMax, int min, int max)
    {
        var allowed = string.Create(CultureInfo.InvariantCulture, $"a list of {countMin} to {countMax} whole numbers from {min} to {max}");
        var value = Required(key, allowed);
        if (value.ValueKind != JsonValueKind.Array || value.GetArrayLength() < countMin || value.GetArrayLength() > countMax)
            throw Wrong(key, value, allowed);
        return [.. value.EnumerateArray().Select((item, i) => ToInt(string.Create(CultureInfo.InvariantCulture, $"{key}[{i}]"), item, min, max))];
    }

    /// <summary>A single whole number, or a list of them; empty if the key is missing.</summary>
    public ImmutableArray<int> IntOrInts(string key, int countMax, int min, int max)
    {
        if (!Has(key))
            return [];
        return _object.GetProperty(key).ValueKind == JsonValueKind.Array ? Ints(key, 0, countMax, min, max) : [Int(key, min, max)];
    }

    /// <summary>A required text.</summary>
    public string Text(string key) => ToText(key, Required(key, "a text"), "a text");

    /// <summary>Refuses any value but the given ones; a missing key stands for the first.</summary>
    public string OneOf(string key, params string[] values)
    {
        if (!Has(key))
            return values[0];
        var allowed = string.Join(" or ", values.Select(v => $"\"{v}\""));
        var value = _object.GetProperty(key);
        var text = ToText(key, value, allowed);
        return values.Contains(text) ? text : throw Unsupported(key, value, allowed);
    }

    /// <summary>Refuses the other truth value; a missing key is fine.</summary>
    public void MustBe(string key, bool wanted)
    {
        if (!Has(key))
            return;
        var value = _object.GetProperty(key);
        if (value.ValueKind != (wanted ? JsonValueKind.True : JsonValueKind.False))
            throw Unsupported(key, value, wanted ? "true" : "false");
    }

    /// <summary>Refuses another number; a missing key is fine.</summary>
    public void MustBe(string key, int wanted)
    {
        if (!Has(key))
            return;
        var value = _object.GetProperty(key);
        if (value.ValueKind != JsonValueKind.Number || !value.TryGetDouble(out var number) || number != wanted)
            throw Unsupported(key, value, wanted.ToString(CultureInfo.InvariantCulture));
    }

    /// <summary>The object under a key; null if the key is missing.</summary>
    public ConfigReader? Object(string key)
    {
        if (!Has(key))
            return null;
        var value = _object.GetProperty(key);
        return value.ValueKind == JsonValueKind.Object
            ? new ConfigReader(_file, Qualified(key) + ".", value)
            : throw Wrong(key, value, "a JSON object");
    }

    /// <summary>The error of a key that contradicts another.</summary>
    public ModelConfigException Contradiction(string key, string allowed) =>
        new(_file, Qualified(key), Has(key) ? Shown(_object.GetProperty(key)) : null, allowed);

    /// <summary>The error of a key that is not there, with another way out than usual.</summary>
    public ModelConfigException Missing(string key, string allowed, string wayOut) => new(_file, Qualified(key), null, allowed, wayOut);

    private JsonElement Required(string key, string allowed) =>
        Has(key) ? _object.GetProperty(key) : throw new ModelConfigException(_file, Qualified(key), null, allowed);

    private int ToInt(string key, JsonElement value, int min, int max)
    {
        if (value.ValueKind == JsonValueKind.Number && value.TryGetDouble(out var number)
            && number >= min && number <= max && number == Math.Floor(number))
            return (int)number;
        throw Wrong(key, value, IntRange(min, max));
    }

    private string ToText(string key, JsonElement value, string allowed)
    {
        if (value.ValueKind != JsonValueKind.String)
            throw Wrong(key, value, allowed);
        try
        {
            return value.GetString()!;
        }
        catch (InvalidOperationException) // an escaped half of a surrogate pair
        {
            throw Wrong(key, value, allowed);
        }
    }

    private ModelConfigException Wrong(string key, JsonElement value, string allowed) => new(_file, Qualified(key), Shown(value), allowed);

    private ModelConfigException Unsupported(string key, JsonElement value, string allowed) =>
        new(_file, Qualified(key), Shown(value), allowed, "This build serves no model that differs in this.");

    private string Qualified(string key) => _path + key;

    private static string Shown(JsonElement value) => value.GetRawText() is { Length: <= 100 } text ? text : value.GetRawText()[..100] + "...";

    private static string IntRange(int min, int max) => string.Create(CultureInfo.InvariantCulture, $"a whole number from {min} to {max}");
}

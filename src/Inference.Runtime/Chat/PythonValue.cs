namespace Inference.Runtime.Chat;

/// <summary>Kinds of a parsed JSON value. Literals are true, false and null; NaN and the infinities are numbers.</summary>
internal enum PythonKind
{
    Literal,
    Number,
    String,
    Array,
    Object,
}

/// <summary>A JSON value as Python holds it after reading; immutable once the reader hands it out.</summary>
internal sealed class PythonValue
{
    public static readonly PythonValue Null = new(PythonKind.Literal, "null");
    public static readonly PythonValue True = new(PythonKind.Literal, "true");
    public static readonly PythonValue False = new(PythonKind.Literal, "false");

    private PythonValue(PythonKind kind, string text)
    {
        Kind = kind;
        Text = text;
    }

    public PythonKind Kind { get; }

    /// <summary>The text of a string; the spelling of a number or literal; empty for the others.</summary>
    public string Text { get; }

    public IReadOnlyList<PythonValue> Items { get; private init; } = [];

    /// <summary>In order of first appearance, each key once.</summary>
    public IReadOnlyList<KeyValuePair<string, PythonValue>> Members { get; private init; } = [];

    public bool IsNull => ReferenceEquals(this, Null);

    /// <summary>Python's truth: null, false, zero, and empty strings, arrays and objects are false.</summary>
    public bool IsTruthy => Kind switch
    {
        PythonKind.Literal => ReferenceEquals(this, True),
        PythonKind.Number => Text is not ("0" or "0.0" or "-0.0"),
        PythonKind.String => Text.Length > 0,
        PythonKind.Array => Items.Count > 0,
        _ => Members.Count > 0,
    };

    public static PythonValue OfString(string text) => new(PythonKind.String, text);

    public static PythonValue OfNumber(string spelling) => new(PythonKind.Number, spelling);

    public static PythonValue OfArray(IReadOnlyList<PythonValue> items) => new(PythonKind.Array, "") { Items = items };

    public static PythonValue OfObject(IReadOnlyList<KeyValuePair<string, PythonValue>> members) =>
        new(PythonKind.Object, "") { Members = members };

    /// <summary>The member's value, or null when the object has no such key.</summary>
    public PythonValue? Member(string key)
    {
        foreach (var (name, value) in Members)
        {
            if (name == key)
                return value;
        }
        return null;
    }

    /// <summary>For error messages: what a person would call this value.</summary>
    public string Describe() => Kind switch
    {
        PythonKind.Literal => Text,
        PythonKind.Number => "a number",
        PythonKind.String => "a string",
        PythonKind.Array => "an array",
        _ => "an object",
    };
}

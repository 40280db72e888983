// JSON as Python's json module reads and writes it, because the prompt format is defined by that module:
// json.loads decides which arguments are an object, json.dumps(ensure_ascii=False) spells every schema and value.
//
// Why not System.Text.Json: its reader refuses NaN, Infinity and lone surrogate escapes (Python takes them, and
// what parses is rendered differently from what does not), and its writer has other separators, escapes and float
// spellings. Everything read here is kept as a tree (PythonValue): key order is insertion order, a repeated key
// keeps its first place and its last value, integers of any size keep their digits.
//
// Invariant: Normalize is idempotent, and its output has no line break, so a schema is always one line.

using System.Text;

namespace Inference.Runtime.Chat;

/// <summary>Text that is no JSON, by the rules of Python's reader.</summary>
public sealed class PythonJsonException : FormatException
{
    internal PythonJsonException(string problem, int position)
        : base($"{problem} at character {position}") => Position = position;

    /// <summary>Zero-based offset of the fault, in UTF-16 units.</summary>
    public int Position { get; }
}

/// <summary>Reads and writes JSON the way Python's <c>json.loads</c> and <c>json.dumps(ensure_ascii=False)</c> do.</summary>
public static class PythonJson
{
    /// <summary>
    /// Deepest nesting that is read. Python stops near 1,000, depending on its call stack; half of that leaves our
    /// stack ample room and no honest schema is near it.
    /// </summary>
    public const int DepthMax = 512;

    /// <summary>What <c>json.dumps(json.loads(json), ensure_ascii=False)</c> gives.</summary>
    /// <exception cref="PythonJsonException">Not JSON, or nested deeper than <see cref="DepthMax"/>.</exception>
    public static string Normalize(string json) => Write(Parse(json));

    /// <summary>A text as a JSON string, quotes included.</summary>
    public static string Quote(string text)
    {
        var builder = new StringBuilder(text.Length + 2);
        AppendQuoted(builder, text);
        return builder.ToString();
    }

    internal static PythonValue Parse(string json) => PythonJsonReader.Read(json);

    internal static bool TryParse(string json, out PythonValue value)
    {
        try
        {
            value = Parse(json);
            return true;
        }
        catch (PythonJsonException)
        {
            value = PythonValue.Null;
            return false;
        }
    }

    internal static string Write(PythonValue value)
    {
        if (value.Kind is PythonKind.Number or PythonKind.Literal)
            return value.Text;
        var builder = new StringBuilder();
        Append(builder, value);
        return builder.ToString();
    }

    internal static void Append(StringBuilder builder, PythonValue value)
    {
        switch (value.Kind)
        {
            case PythonKind.String:
                AppendQuoted(builder, value.Text);
                break;
            case PythonKind.Array:
                AppendArray(builder, value.Items);
                break;
            case PythonKind.Object:
                AppendObject(builder, value.Members);
                break;
            default:
                builder.Append(value.Text);
                break;
        }
    }

    internal static void AppendQuoted(StringBuilder builder, ReadOnlySpan<char> text)
    {
        builder.Append('"');
        AppendEscaped(builder, text);
        builder.Append('"');
    }

    /// <summary>The inside of a JSON string. Works piece by piece: escaping a text in two halves gives the same.</summary>
    internal static void AppendEscaped(StringBuilder builder, ReadOnlySpan<char> text)
    {
        while (true)
        {
            int next = text.IndexOfAny(PythonJsonReader.StringStops);
            if (next < 0)
            {
                builder.Append(text);
                return;
            }
            builder.Append(text[..next]);
            AppendEscape(builder, text[next]);
            text = text[(next + 1)..];
        }
    }

    private static void AppendEscape(StringBuilder builder, char c)
    {
        switch (c)
        {
            case '"': builder.Append("\\\""); break;
            case '\\': builder.Append("\\\\"); break;
            case '\n': builder.Append("\\n"); break;
            case '\r': builder.Append("\\r"); break;
            case '\t': builder.Append("\\t"); break;
            case '\b': builder.Append("\\b"); break;
            case '\f': builder.Append("\\f"); break;
            default: builder.Append("\\u00").Append(HexDigit(c >> 4)).Append(HexDigit(c & 15)); break;
        }
    }

    private static char HexDigit(int value) => (char)(value < 10 ? '0' + value : 'a' + value - 10);

    private static void AppendArray(StringBuilder builder, IReadOnlyList<PythonValue> items)
    {
        builder.Append('[');
        for (int i = 0; i < items.Count; i++)
        {
            if (i > 0)
                builder.Append(", ");
            Append(builder, items[i]);
        }
        builder.Append(']');
    }

    private static void AppendObject(StringBuilder builder, IReadOnlyList<KeyValuePair<string, PythonValue>> members)
    {
        builder.Append('{');
        for (int i = 0; i < members.Count; i++)
        {
            if (i > 0)
                builder.Append(", ");
            AppendQuoted(builder, members[i].Key);
            builder.Append(": ");
            Append(builder, members[i].Value);
        }
        builder.Append('}');
    }
}

using System.Globalization;
using System.Text;

namespace Inference.Runtime.Weights;

/// <summary>Makes names and values that come from files safe to put into a message: no control characters, no endless text.</summary>
internal static class Printable
{
    private const int CharsMax = 200;

    /// <summary>The text in single quotes.</summary>
    public static string Quote(string text) => $"'{Text(text)}'";

    /// <summary>The text with everything that could break or forge a line replaced by \uXXXX, cut at 200 characters.</summary>
    public static string Text(string text)
    {
        var safe = text.Length <= CharsMax;
        foreach (var c in text)
            safe &= IsSafe(c);
        if (safe)
            return text;

        var result = new StringBuilder();
        foreach (var c in text.AsSpan(0, Math.Min(text.Length, CharsMax)))
        {
            if (IsSafe(c))
                result.Append(c);
            else
                result.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:X4}");
        }
        return text.Length > CharsMax ? result.Append("...").ToString() : result.ToString();
    }

    private static bool IsSafe(char c) => char.GetUnicodeCategory(c) is not (UnicodeCategory.Control or UnicodeCategory.Format
        or UnicodeCategory.Surrogate or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator
        or UnicodeCategory.OtherNotAssigned);
}

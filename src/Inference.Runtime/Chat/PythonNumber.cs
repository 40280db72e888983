using System.Globalization;

namespace Inference.Runtime.Chat;

/// <summary>Spells numbers as Python does after reading them from JSON.</summary>
internal static class PythonNumber
{
    /// <summary>Canonical spelling of a number token that matches JSON's grammar.</summary>
    /// <remarks>An integer keeps its digits whatever their count; only -0 becomes 0. Anything else is a float.</remarks>
    public static string Canonical(ReadOnlySpan<char> token)
    {
        if (token.IndexOfAny('.', 'e', 'E') < 0)
            return token is "-0" ? "0" : token.ToString();
        return FloatRepr(double.Parse(token, NumberStyles.Float, CultureInfo.InvariantCulture));
    }

    /// <summary>
    /// Python's repr of a float, with JSON's names for the non-finite ones: the shortest digits that read back as the
    /// same value, positional for exponents -4..15, else with a signed exponent of at least two digits.
    /// </summary>
    public static string FloatRepr(double value)
    {
        if (double.IsNaN(value))
            return "NaN";
        if (double.IsInfinity(value))
            return value > 0 ? "Infinity" : "-Infinity";

        // "R" gives the same shortest digits, in another layout: take digits and exponent out of it.
        string shortest = value.ToString("R", CultureInfo.InvariantCulture);
        string sign = shortest[0] == '-' ? "-" : "";
        var (digits, pointAt) = Digits(shortest.AsSpan(sign.Length));
        return sign + Layout(digits, pointAt);
    }

    // "1.25E-07" -> ("125", -6): the value is 0.DIGITS * 10^pointAt.
    private static (string Digits, int PointAt) Digits(ReadOnlySpan<char> text)
    {
        int exponent = 0;
        int e = text.IndexOf('E');
        if (e >= 0)
        {
            exponent = int.Parse(text[(e + 1)..], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture);
            text = text[..e];
        }
        int point = text.IndexOf('.');
        string all = point < 0 ? text.ToString() : string.Concat(text[..point], text[(point + 1)..]);
        int pointAt = (point < 0 ? text.Length : point) + exponent;
        string trimmedLeft = all.TrimStart('0');
        if (trimmedLeft.Length == 0)
            return ("0", 1);
        pointAt -= all.Length - trimmedLeft.Length;
        return (trimmedLeft.TrimEnd('0'), pointAt);
    }

    private static string Layout(string digits, int pointAt)
    {
        if (pointAt is <= -4 or > 16)
        {
            int exponent = pointAt - 1;
            string mantissa = digits.Length == 1 ? digits : $"{digits[0]}.{digits[1..]}";
            return string.Create(CultureInfo.InvariantCulture, $"{mantissa}e{(exponent < 0 ? '-' : '+')}{Math.Abs(exponent):00}");
        }
        if (pointAt <= 0)
            return "0." + new string('0', -pointAt) + digits;
        if (pointAt >= digits.Length)
            return digits + new string('0', pointAt - digits.Length) + ".0";
        return $"{digits[..pointAt]}.{digits[pointAt..]}";
    }
}

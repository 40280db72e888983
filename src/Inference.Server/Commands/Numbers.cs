using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;

namespace Inference.Server.Commands;

/// <summary>Options that are numbers of a range, with errors that name the option, what was given and the range. Unset is null.</summary>
internal static class Numbers
{
    public static Option<int?> Whole(string name, string help, int min, int max) => New<int?>(name, help, "n", text =>
        int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int value) && value >= min && value <= max ? value : null,
        max == int.MaxValue ? $"a whole number, {min} or more" : $"a whole number from {min} to {max}");

    public static Option<float?> Real(string name, string help, float min, float max, bool minIsOut = false) => New<float?>(name, help, "x", text =>
        float.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out float value) && value >= min && value <= max && (value > min || !minIsOut)
            ? value : null,
        minIsOut ? $"a number above {min}, at most {max}" : $"a number from {min} to {max}");

    public static Option<ulong?> Seed(string name, string help) => New<ulong?>(name, help, "n", text =>
        ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ulong value) ? value : null,
        $"a whole number from 0 to {ulong.MaxValue}");

    private static Option<T> New<T>(string name, string help, string helpName, Func<string, T> read, string range) => new(name)
    {
        Description = help,
        HelpName = helpName,
        CustomParser = result => Read(result, name, read, range),
    };

    private static T? Read<T>(ArgumentResult result, string name, Func<string, T> read, string range)
    {
        string text = result.Tokens.Count == 1 ? result.Tokens[0].Value : "";
        var value = read(text);
        if (value is null) result.AddError($"{name}: '{(text.Length <= 40 ? text : text[..40] + "...")}' is not {range}.");
        return value;
    }
}

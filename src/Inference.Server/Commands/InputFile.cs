using System.Globalization;
using System.Text;

namespace Inference.Server.Commands;

/// <summary>Reads what a verb's arguments point to: files, standard input, lists of numbers. Every fault is an <see cref="InputException"/>.</summary>
internal static class InputFile
{
    private static readonly UTF8Encoding Strict = new(encoderShouldEmitUTF8Identifier: false, throwOnInvalidBytes: true);

    /// <summary>The bytes of a file; of standard input for <c>-</c>.</summary>
    /// <param name="option">For messages, e.g. <c>--text</c>.</param>
    public static byte[] Bytes(string path, string option)
    {
        try
        {
            if (path != "-") return File.ReadAllBytes(path);
            using var input = Console.OpenStandardInput();
            using var memory = new MemoryStream();
            input.CopyTo(memory);
            return memory.ToArray();
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new InputException($"{option}: there is no file '{path}'; give a file, or - for standard input.", e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new InputException($"{option}: '{path}' cannot be read: {e.Message}", e);
        }
    }

    /// <summary>The text of a UTF-8 file, as it is; a byte order mark is left out.</summary>
    public static string Text(string path, string option)
    {
        ReadOnlySpan<byte> bytes = Bytes(path, option);
        if (bytes.StartsWith("\uFEFF"u8)) bytes = bytes[3..];
        try
        {
            return Strict.GetString(bytes);
        }
        catch (DecoderFallbackException e)
        {
            throw new InputException($"{option}: '{path}' is not UTF-8 text (byte {e.Index} starts no character); convert it.", e);
        }
    }

    /// <summary>The text of <c>--file</c>, without line ends behind it.</summary>
    public static string TextToAskAbout(string path)
    {
        string text = Text(path, "--file").TrimEnd('\r', '\n');
        return text.Length > 0 ? text : throw new InputException($"--file: '{path}' is empty; give a file with text.");
    }

    /// <summary>Whole numbers separated by commas or white space; <c>@FILE</c> reads them from a file.</summary>
    public static int[] Numbers(string text, string option, int min, int max)
    {
        if (text.StartsWith('@')) text = Text(text[1..], option);
        var parts = text.Split([',', ' ', '\t', '\r', '\n'], StringSplitOptions.RemoveEmptyEntries);
        if (parts.Length == 0) throw new InputException($"{option}: there is no number in it; give for example 1,5,11.");
        return [.. parts.Select(p => Number(p, option, min, max))];
    }

    private static int Number(string text, string option, int min, int max) =>
        int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int value) && value >= min && value <= max
            ? value
            : throw new InputException($"{option}: '{Short(text)}' is not a whole number from {min} to {max}.");

    private static string Short(string text) => text.Length <= 40 ? text : text[..40] + "...";
}

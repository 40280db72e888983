using System.Globalization;

namespace Inference.Server.Commands;

/// <summary>Numbers as people read them; always with a point, never with the machine's culture.</summary>
internal static class Units
{
    private static readonly string[] ByteUnits = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    private static readonly string[] CountUnits = ["", " k", " M", " G", " T"];

    /// <summary>E.g. 9.34 MiB.</summary>
    public static string Bytes(long bytes) => Scaled(bytes, 1024, ByteUnits, " ");

    /// <summary>E.g. 4.64 M.</summary>
    public static string Count(long count) => Scaled(count, 1000, CountUnits, "");

    /// <summary>E.g. 1,048,576.</summary>
    public static string Whole(long number) => number.ToString("N0", CultureInfo.InvariantCulture);

    /// <summary>E.g. 12.3 ms, 4.05 s.</summary>
    public static string Time(TimeSpan time) => time.TotalSeconds >= 1
        ? string.Create(CultureInfo.InvariantCulture, $"{Digits(time.TotalSeconds)} s")
        : string.Create(CultureInfo.InvariantCulture, $"{Digits(time.TotalMilliseconds)} ms");

    /// <summary>Three digits that count, no exponent.</summary>
    public static string Digits(double value) => Math.Abs(value) switch
    {
        < 10 => value.ToString("0.00", CultureInfo.InvariantCulture),
        < 100 => value.ToString("0.0", CultureInfo.InvariantCulture),
        _ => value.ToString("#,0", CultureInfo.InvariantCulture),
    };

    private static string Scaled(long value, int step, string[] units, string gap)
    {
        double scaled = value;
        int unit = 0;
        while (scaled >= step && unit < units.Length - 1) (scaled, unit) = (scaled / step, unit + 1);
        return unit == 0 ? $"{Whole(value)}{gap}{units[0]}" : $"{Digits(scaled)}{gap}{units[unit]}";
    }
}

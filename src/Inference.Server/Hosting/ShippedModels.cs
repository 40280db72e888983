namespace Inference.Server.Hosting;

/// <summary>The model folders that lie beside the program, by name: the embedded model, and configs without weights for measurements.</summary>
internal static class ShippedModels
{
    private static string Root => Path.Combine(AppContext.BaseDirectory, "models");

    /// <summary>The model that is served when nobody says which.</summary>
    public static string EmbeddedFolder => Path.Combine(Root, "pebble");

    public static IEnumerable<string> Names =>
        Directory.Exists(Root) ? Directory.EnumerateDirectories(Root).Select(folder => Path.GetFileName(folder)).Order(StringComparer.Ordinal) : [];

    /// <summary>The folder of that name; null if there is none.</summary>
    public static string? Find(string name) => Names.Contains(name, StringComparer.Ordinal) ? Path.Combine(Root, name) : null;
}

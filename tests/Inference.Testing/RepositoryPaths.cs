namespace Inference.Testing;

/// <summary>Where things lie in the working tree, found from the test assembly by walking up to Inference.sln.</summary>
public static class RepositoryPaths
{
    /// <summary>The folder that holds Inference.sln.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>The embedded model's folder, models/pebble.</summary>
    public static string Pebble => Combine("models", "pebble");

    /// <summary>A path below the root.</summary>
    public static string Combine(params string[] parts) => Path.Combine([Root, .. parts]);

    private static string FindRoot()
    {
        for (var folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            if (File.Exists(Path.Combine(folder, "Inference.sln")))
                return folder;
        }
        throw new DirectoryNotFoundException($"no Inference.sln above {AppContext.BaseDirectory}: run the tests inside the working tree");
    }
}

/// <summary>Files under tests/&lt;project&gt;/Fixtures of the test project that is running.</summary>
public static class Fixture
{
    private static readonly string Project = System.IO.Path.GetRelativePath(RepositoryPaths.Combine("tests"), AppContext.BaseDirectory)
        .Split(System.IO.Path.DirectorySeparatorChar)[0];

    /// <summary>The path of a fixture, e.g. <c>Fixture.Path("families/deepseek_v4/config.json")</c>.</summary>
    public static string Path(string relative) =>
        System.IO.Path.Combine([RepositoryPaths.Root, "tests", Project, "Fixtures", .. relative.Split('/')]);
}

// A model folder as its authors publish it: is it one, which family is it, where are its files.
//
// Reads config.json only as far as model_type; the family's own config reads the rest from the same bytes. Opens no
// weights by itself. Immutable once opened. Invariant: ModelType is one that this build serves.
using System.Collections.Immutable;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>A folder that holds a config.json of a family that this build serves.</summary>
public sealed class ModelFolder
{
    /// <summary>The file that describes the model.</summary>
    public const string ConfigFileName = "config.json";

    private const int ConfigBytesMax = 16 << 20;
    private const int SuggestionsMax = 3;
    private const int EntriesSearchedMax = 1000;

    private readonly CheckpointOptions _options;

    private ModelFolder(string path, string modelType, byte[] configJson, CheckpointOptions options)
    {
        _options = options;
        (FolderPath, ModelType, ConfigJson) = (path, modelType, configJson);
    }

    /// <summary>Values of model_type that this build serves.</summary>
    public static ImmutableArray<string> SupportedModelTypes { get; } = [DeepSeekV4Config.ModelType];

    /// <summary>The folder as it was given.</summary>
    public string FolderPath { get; }

    /// <summary>The family: config.json's model_type.</summary>
    public string ModelType { get; }

    /// <summary>Path of config.json, for messages.</summary>
    public string ConfigFile => Path.Combine(FolderPath, ConfigFileName);

    /// <summary>Contents of config.json.</summary>
    public ReadOnlyMemory<byte> ConfigJson { get; }

    /// <summary>Recognises a model folder.</summary>
    /// <param name="path">The folder.</param>
    /// <param name="options">Limits and link policy, also for the weights.</param>
    /// <exception cref="ModelConfigException">No folder, no config.json, or a family that is not served; with a hint.</exception>
    /// <exception cref="CheckpointException">config.json cannot be read, or is a link out of the folder.</exception>
    public static ModelFolder Open(string path, CheckpointOptions? options = null)
    {
        options ??= CheckpointOptions.Default;
        if (File.Exists(path))
        {
            throw new ModelConfigException(path, "this is a file, a model is a folder",
                $"Give the folder that holds it: {Printable.Text(Path.GetDirectoryName(Path.GetFullPath(path))!)}.", null);
        }
        if (!Directory.Exists(path))
            throw new ModelConfigException(path, "there is no such folder", "Give the path of a folder that holds config.json and the weights.", null);
        if (!File.Exists(Path.Combine(path, ConfigFileName)))
            throw NoConfig(path);
        var real = ModelPaths.Resolve(path, ConfigFileName, options.LinkRoot);
        var json = ModelPaths.ReadSmallFile(real, ConfigBytesMax, "Take the config.json that was published with the weights.");
        var modelType = ConfigReader.Read(Path.Combine(path, ConfigFileName), json, ReadModelType);
        return new ModelFolder(path, modelType, json, options);
    }

    /// <summary>Opens the weights; the caller owns them.</summary>
    /// <exception cref="CheckpointException">They are missing, damaged or inconsistent.</exception>
    public Checkpoint OpenCheckpoint() => Checkpoint.Open(FolderPath, _options);

    private static string ReadModelType(ConfigReader json)
    {
        var supported = string.Join(", ", SupportedModelTypes);
        if (!json.Has("model_type"))
            throw json.Missing("model_type", $"one of the supported families ({supported})", "Is this the config.json of a language model?");
        var modelType = json.Text("model_type");
        if (!SupportedModelTypes.Contains(modelType))
            throw json.Contradiction("model_type", $"one of the supported families ({supported})");
        return modelType;
    }

    private static ModelConfigException NoConfig(string path)
    {
        var better = FoldersWithConfig(path);
        if (better.Count > 0)
        {
            return new ModelConfigException(path, $"it holds no {ConfigFileName}",
                $"Did you mean {string.Join(" or ", better.Select(Printable.Text))}?", null);
        }
        var gguf = FilesIn(path).Any(file => Path.GetExtension(file) == ".gguf");
        return new ModelConfigException(path, $"it holds no {ConfigFileName}", gguf
            ? "It holds GGUF files, which this build does not read: take the checkpoint in the safetensors format."
            : $"Give a folder that holds {ConfigFileName} and the weights.", null);
    }

    /// <summary>Folders below that do hold a config.json; two levels, for a model hub's cache keeps models in snapshots/REVISION.</summary>
    private static List<string> FoldersWithConfig(string path)
    {
        var found = new List<string>();
        foreach (var child in FoldersIn(path))
        {
            foreach (var folder in FoldersIn(child).Prepend(child))
            {
                if (File.Exists(Path.Combine(folder, ConfigFileName)))
                    found.Add(folder);
                if (found.Count == SuggestionsMax)
                    return found;
            }
        }
        return found;
    }

    private static List<string> FoldersIn(string path) => Entries(() => Directory.EnumerateDirectories(path));

    private static List<string> FilesIn(string path) => Entries(() => Directory.EnumerateFiles(path));

    /// <summary>A hint must not fail: what cannot be listed is empty.</summary>
    private static List<string> Entries(Func<IEnumerable<string>> list)
    {
        try
        {
            return [.. list().Take(EntriesSearchedMax).Order(StringComparer.Ordinal)];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }
}

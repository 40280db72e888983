using System.CommandLine;
using System.Globalization;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;

namespace Inference.Server.Commands;

/// <summary>
/// <c>inference synthesize</c>: a model folder of any size with random weights, to measure what no checkpoint at hand can show. Everything is written
/// beside the output under another name, which changes at the end: a folder under the name asked for is complete.
/// </summary>
internal static class SynthesizeCommand
{
    private static readonly (string Name, SyntheticStorage Storage)[] Storages =
        [("fp8-fp4", SyntheticStorage.Fp8Fp4), ("bf16", SyntheticStorage.BF16), ("f32", SyntheticStorage.F32)];

    public static Command Create()
    {
        var config = new Option<string>("--config") { Description = "The config.json of a DeepSeek-V4 model, its folder, or the name of a model that ships with the server.", HelpName = "file", Required = true };
        var layers = Numbers.Whole("--layers", "Keep the first so many layers; draft blocks stay. Default: all.", 1, 1000);
        var dtype = new Option<string>("--dtype")
        {
            Description = "How matrices are stored: fp8-fp4 as in the releases, bf16, or f32.",
            HelpName = "fp8-fp4|bf16|f32",
            DefaultValueFactory = _ => Storages[0].Name,
        };
        var seed = Numbers.Seed("--seed", "The same seed gives the same bytes. Default: 1.");
        var output = new Option<string>("--output") { Description = "Folder to write; new or empty.", HelpName = "folder", Required = true };
        var command = new Command("synthesize", "Write a model folder of random weights, for tests of size and speed.") { config, layers, dtype, seed, output };
        command.HasExamples(
            "inference synthesize --config DeepSeek-V4-Flash/config.json --layers 4 --output flash-4",
            "inference synthesize --config deepseek-v4-1b --output random-1b",
            "inference synthesize --config models/pebble --dtype bf16 --seed 7 --output random-pebble");
        command.Runs((parsed, cancel) => Task.FromResult(Run(
            ConfigFile(parsed.GetValue(config)!), parsed.GetValue(layers), Storage(parsed.GetValue(dtype)!), parsed.GetValue(seed) ?? 1, parsed.GetValue(output)!, cancel)));
        return command;
    }

    private static string ConfigFile(string given)
    {
        if (File.Exists(given)) return given;
        string? folder = Directory.Exists(given) ? given : ShippedModels.Find(given);
        return folder is null ? given : Path.Combine(folder, ModelFolder.ConfigFileName);
    }

    private static SyntheticStorage Storage(string name)
    {
        foreach (var (known, storage) in Storages)
            if (known == name) return storage;
        throw new InputException($"--dtype: '{name}' is none of {string.Join(", ", Storages.Select(s => s.Name))}.");
    }

    internal static int Run(string configFile, int? layers, SyntheticStorage storage, ulong seed, string output, CancellationToken cancel)
    {
        output = Path.TrimEndingDirectorySeparator(Path.GetFullPath(output));
        RequireFree(output);
        byte[] json = SyntheticConfig.Adapt(configFile, InputFile.Bytes(configFile, "--config"), layers, storage);
        var synthesis = LayOut(DeepSeekV4Config.Parse(configFile, json), storage, seed, configFile);
        RequireSpace(output, synthesis.Writer.FileBytes + json.Length);
        string partial = Begin(output);
        try
        {
            using (var progress = new WriteProgressLine(synthesis.Writer.FileBytes))
                synthesis.Writer.Write(Path.Combine(partial, Checkpoint.SingleFileName), synthesis.Fill, progress, cancel);
            File.WriteAllBytes(Path.Combine(partial, ModelFolder.ConfigFileName), json);
            if (Directory.Exists(output)) Directory.Delete(output); // empty, or this fails
            Directory.Move(partial, output);
        }
        catch
        {
            Directory.Delete(partial, recursive: true);
            throw;
        }
        Console.WriteLine($"{output}: {Units.Whole(synthesis.Writer.Tensors.Count)} tensors, {Units.Bytes(synthesis.Writer.FileBytes)}");
        return Verb.Done;
    }

    private static DeepSeekV4Synthesis LayOut(DeepSeekV4Config config, SyntheticStorage storage, ulong seed, string configFile)
    {
        try
        {
            return new DeepSeekV4Synthesis(config, storage, seed, configFile);
        }
        catch (OverflowException e)
        {
            throw new InputException($"--config: the model of '{configFile}' has more bytes than a file can hold; give fewer --layers.", e);
        }
    }

    private static void RequireFree(string output)
    {
        if (File.Exists(output)) throw new InputException($"--output: '{output}' is a file; give a new folder.");
        if (Directory.Exists(output) && Directory.EnumerateFileSystemEntries(output).Any())
            throw new InputException($"--output: '{output}' is not empty; give a new folder.");
    }

    private static string Begin(string output)
    {
        string partial = output + ".partial";
        if (Path.Exists(partial))
            throw new InputException($"--output: '{partial}' is there, left by a run that is not over or was killed; wait for it, or remove it.");
        Directory.CreateDirectory(partial);
        return partial;
    }

    private static void RequireSpace(string output, long needed)
    {
        string parent = output;
        while (!Directory.Exists(parent)) parent = Path.GetDirectoryName(parent)!;
        long free = new DriveInfo(parent).AvailableFreeSpace;
        if (free < needed)
            throw new InputException(string.Create(CultureInfo.InvariantCulture,
                $"--output: the model needs {Units.Bytes(needed)}, the disk of '{parent}' has {Units.Bytes(free)} free; give another disk or fewer --layers."));
    }
}

using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>A model folder or its config.json does not describe a model that can be served.</summary>
public sealed class ModelConfigException : ModelLoadException
{
    /// <summary>Creates the error of one key.</summary>
    /// <param name="file">The file that holds the key.</param>
    /// <param name="key">The key, with the keys above it: <c>rope_scaling.factor</c>.</param>
    /// <param name="value">What it holds, as JSON; null if it is not there.</param>
    /// <param name="allowed">What it may hold, e.g. "a whole number from 1 to 128".</param>
    /// <param name="wayOut">What the operator can do, as a sentence; by default to take the published file.</param>
    public ModelConfigException(string file, string key, string? value, string allowed, string? wayOut = null)
        : base(file, Compose(file, key, value, allowed, wayOut ?? "Take the config.json that was published with the weights."), null) =>
        (Key, Value, Allowed) = (key, value, allowed);

    /// <summary>Creates the error of a whole file or folder.</summary>
    /// <param name="file">File or folder.</param>
    /// <param name="reason">What is wrong; no final stop.</param>
    /// <param name="wayOut">What the operator can do, as a sentence.</param>
    /// <param name="inner">The cause, if another exception was.</param>
    public ModelConfigException(string file, string reason, string wayOut, Exception? inner)
        : base(file, $"{Printable.Text(file)}: {reason}. {wayOut}", inner)
    {
    }

    /// <summary>The key at fault; null if the whole file is.</summary>
    public string? Key { get; }

    /// <summary>What the key holds, as JSON; null if it is missing.</summary>
    public string? Value { get; }

    /// <summary>What the key may hold.</summary>
    public string? Allowed { get; }

    private static string Compose(string file, string key, string? value, string allowed, string wayOut) => value is null
        ? $"{Printable.Text(file)}: key {Printable.Quote(key)} is missing; it must be {allowed}. {wayOut}"
        : $"{Printable.Text(file)}: key {Printable.Quote(key)} is {Printable.Text(value)}; it must be {allowed}. {wayOut}";
}

namespace Inference.Runtime.Weights;

/// <summary>
/// A model folder cannot be used: it is not there, its files are damaged, or they describe a model that this build does
/// not serve. The message names the file, the thing in it and the way out; it is meant for the operator.
/// </summary>
public abstract class ModelLoadException : Exception
{
    private protected ModelLoadException(string file, string message, Exception? inner)
        : base(message, inner) => File = file;

    /// <summary>The file or folder at fault, as the message names it.</summary>
    public string File { get; }
}

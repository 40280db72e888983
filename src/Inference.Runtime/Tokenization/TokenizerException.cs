namespace Inference.Runtime.Tokenization;

/// <summary>A tokenizer file that cannot be used: which file, why, and what to do about it.</summary>
public sealed class TokenizerException : Exception
{
    /// <summary>The folder or file at fault, as it was given.</summary>
    public string File { get; }

    /// <summary>What is wrong with it, with the place in the file.</summary>
    public string Reason { get; }

    /// <summary>What the operator can do.</summary>
    public string WayOut { get; }

    /// <summary>Creates the error; its message holds all three parts.</summary>
    public TokenizerException(string file, string reason, string wayOut, Exception? inner = null)
        : base($"{file}: {reason} {wayOut}", inner)
    {
        File = file;
        Reason = reason;
        WayOut = wayOut;
    }
}

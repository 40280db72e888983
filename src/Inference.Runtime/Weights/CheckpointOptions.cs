namespace Inference.Runtime.Weights;

/// <summary>How large the bookkeeping of a checkpoint may be, and where its links may lead. Weights themselves are not limited.</summary>
public sealed record CheckpointOptions
{
    /// <summary>The defaults.</summary>
    public static CheckpointOptions Default { get; } = new();

    /// <summary>Largest header of one file, in bytes. The default is that of the safetensors library.</summary>
    public int HeaderBytesMax { get; init; } = 100_000_000;

    /// <summary>Largest index file, in bytes. The index of a model with 150,000 tensors has about 15 MB.</summary>
    public int IndexBytesMax { get; init; } = 128 << 20;

    /// <summary>Most tensors in one checkpoint. DeepSeek-V4-Pro has about 150,000.</summary>
    public int TensorCountMax { get; init; } = 2_000_000;

    /// <summary>Most files in one checkpoint: each holds a mapping and a file handle.</summary>
    public int FileCountMax { get; init; } = 10_000;

    /// <summary>
    /// A folder that links inside the model folder may lead into, or null for none. A model hub's cache, for instance, keeps
    /// the data of all its snapshots in one folder and fills the snapshots with links; name that cache here.
    /// </summary>
    public string? LinkRoot { get; init; }
}

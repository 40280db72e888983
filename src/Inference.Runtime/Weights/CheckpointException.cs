// Why a checkpoint was refused: one type for everything that can be wrong with weight files.
//
// The text has three parts: where (file, tensor), what (with the numbers that disagree), and the way out. Names that
// come from a file are quoted by Printable, so that a hostile name cannot forge a log line.
namespace Inference.Runtime.Weights;

/// <summary>The kinds of damage a checkpoint is refused for.</summary>
public enum CheckpointFault
{
    /// <summary>A folder, shard or index is not there.</summary>
    FileMissing,

    /// <summary>The operating system refused to open, read or map a file.</summary>
    FileUnreadable,

    /// <summary>A file ends before the bytes that its header promises.</summary>
    FileTruncated,

    /// <summary>A file goes on after the last tensor.</summary>
    TrailingBytes,

    /// <summary>A link leads out of the model folder and no permitted root covers its target.</summary>
    LinkLeavesFolder,

    /// <summary>A count or size exceeds a limit of <see cref="CheckpointOptions"/>.</summary>
    LimitExceeded,

    /// <summary>A header is not the JSON that the safetensors format defines.</summary>
    HeaderMalformed,

    /// <summary>The index is not the JSON it should be, or names a file it must not name.</summary>
    IndexMalformed,

    /// <summary>Index and shards disagree about which tensors exist where.</summary>
    IndexMismatch,

    /// <summary>The same tensor name occurs twice.</summary>
    TensorDuplicate,

    /// <summary>A dtype that this build does not read.</summary>
    DTypeUnsupported,

    /// <summary>A byte range that is reversed, negative or outside of the file.</summary>
    TensorRange,

    /// <summary>The byte range has another length than dtype and shape need.</summary>
    TensorSize,

    /// <summary>Two tensors share bytes.</summary>
    TensorOverlap,

    /// <summary>Bytes between two tensors belong to none.</summary>
    DataHole,

    /// <summary>A tensor that was asked for is not in the checkpoint.</summary>
    TensorMissing,

    /// <summary>A tensor is not what the configured model needs; all that were found are in <see cref="CheckpointException.Problems"/>.</summary>
    TensorsMismatch,
}

/// <summary>A checkpoint was refused. Nothing of it stays open.</summary>
public sealed class CheckpointException : ModelLoadException
{
    /// <summary>Creates the error of one thing in one file.</summary>
    /// <param name="fault">Its kind.</param>
    /// <param name="file">File or folder at fault.</param>
    /// <param name="tensor">Tensor at fault, unquoted, or null.</param>
    /// <param name="reason">What is wrong, with the numbers; no final stop.</param>
    /// <param name="wayOut">What the operator can do, as a sentence.</param>
    /// <param name="inner">The cause, if another exception was.</param>
    public CheckpointException(
        CheckpointFault fault, string file, string? tensor, string reason, string wayOut, Exception? inner = null)
        : base(file, Compose(file, tensor, reason, wayOut), inner)
    {
        Fault = fault;
        Tensor = tensor;
        Problems = [reason];
    }

    /// <summary>Creates the error of many things at once.</summary>
    /// <param name="fault">Its kind.</param>
    /// <param name="file">File or folder at fault.</param>
    /// <param name="summary">Counts, as one line without a final stop.</param>
    /// <param name="problems">The single findings, already capped by the caller.</param>
    /// <param name="wayOut">What the operator can do, as a sentence.</param>
    public CheckpointException(
        CheckpointFault fault, string file, string summary, IReadOnlyList<string> problems, string wayOut)
        : base(file, Compose(file, null, summary + string.Concat(problems.Select(p => "\n  " + p)) + "\n", wayOut), null)
    {
        Fault = fault;
        Problems = problems;
    }

    /// <summary>What kind of damage it is.</summary>
    public CheckpointFault Fault { get; }

    /// <summary>The tensor at fault, if it is one.</summary>
    public string? Tensor { get; }

    /// <summary>The findings: one, or the capped list of a comparison with the configured model.</summary>
    public IReadOnlyList<string> Problems { get; }

    private static string Compose(string file, string? tensor, string reason, string wayOut)
    {
        var where = tensor is null ? Printable.Text(file) : $"{Printable.Text(file)}: tensor {Printable.Quote(tensor)}";
        return reason.EndsWith('\n') ? $"{where}: {reason}{wayOut}" : $"{where}: {reason}. {wayOut}";
    }
}

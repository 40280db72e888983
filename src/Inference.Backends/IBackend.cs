namespace Inference.Backends;

/// <summary>
/// Numbers on a device: memory, weights in the device's layout, and fused transformer operators. It knows no token, no request
/// and no model; a model family is written once as calls on this interface and runs on every backend.
///
/// Operators are plain structs (<see cref="IOperator"/>, in <c>Operators/</c>) that name their tensors and parameters. Each is used
/// in two phases: <see cref="Plan"/> once at load with the largest shapes, <see cref="Enqueue"/> per step with outputs that the caller
/// supplies. Enqueue may finish at once or later, in the order of the calls; only <see cref="Download"/> and <see cref="Wait"/> block.
///
/// One thread at a time calls a backend. Failures are <see cref="BackendException"/>.
/// </summary>
public interface IBackend : IDisposable
{
    BackendInfo Info { get; }

    /// <summary>Memory on the device, contents undefined. <paramref name="purpose"/> appears in the error when there is none left.</summary>
    DeviceBuffer Allocate(long bytes, string purpose);

    /// <summary>Copies bytes into a contiguous tensor; the source may be reused when the call returns.</summary>
    void Upload(ReadOnlySpan<byte> source, in Tensor destination);

    /// <summary>Waits for everything enqueued, then copies a contiguous tensor's bytes out.</summary>
    void Download(in Tensor source, Span<byte> destination);

    /// <summary>Copies a contiguous tensor's bytes to another of the same size on the device, in the order of the calls.</summary>
    void Copy(in Tensor source, in Tensor destination);

    /// <summary>Brings a stored weight into this backend's layout, once at load.</summary>
    PreparedWeight PrepareWeight(in WeightData weight);

    /// <summary>Says whether and how the operator runs for these shapes and types, and what workspace it needs.</summary>
    OpPlan Plan<TOp>(in TOp op) where TOp : struct, IOperator;

    /// <summary>Runs the operator; <paramref name="workspace"/> is at least as large as its plan said (absent if it said 0).</summary>
    void Enqueue<TOp>(in TOp op, in Tensor workspace = default) where TOp : struct, IOperator;

    /// <summary>Returns when everything enqueued has finished.</summary>
    void Wait();
}

/// <summary>An operator with its operands: a struct in <c>Operators/</c>. A marker, so that only operators are planned and enqueued.</summary>
public interface IOperator;

/// <param name="Name">Short name, e.g. <c>cpu</c>.</param>
/// <param name="Device">What it runs on, for people.</param>
/// <param name="Determinism">The weakest class among its operators.</param>
/// <param name="MemoryBytes">Memory a model and its cache may use, in bytes.</param>
public sealed record BackendInfo(string Name, string Device, Determinism Determinism, long MemoryBytes);

/// <summary>What may change the bits of a result besides its inputs.</summary>
public enum Determinism
{
    /// <summary>Nothing: the bits of an output row depend on that row's inputs only, whatever the batch, chunking or placement.</summary>
    AnySchedule,
    /// <summary>The shape of the call.</summary>
    SameShape,
    /// <summary>Anything; results agree within a tolerance.</summary>
    Tolerance,
}

public enum OpSupport { Supported, Composite, Unsupported }

/// <param name="Variant">Name of the kernel chosen, or the reason why there is none.</param>
/// <param name="WorkspaceBytes">Scratch memory that <see cref="IBackend.Enqueue"/> must be given.</param>
public readonly record struct OpPlan(OpSupport Support, string Variant, long WorkspaceBytes, Determinism Determinism)
{
    public static OpPlan Unsupported(string reason) => new(OpSupport.Unsupported, reason, 0, Determinism.Tolerance);
}

/// <summary>Whose fault a backend's failure is; decides what the engine does about it.</summary>
public enum BackendErrorKind
{
    /// <summary>The device has not enough memory.</summary>
    Capacity,
    /// <summary>The call was wrong: shapes, types, an operator that this backend does not have.</summary>
    Request,
    /// <summary>The device failed; nothing on it can be trusted any more.</summary>
    Device,
}

/// <summary>A backend could not do what it was asked.</summary>
public sealed class BackendException(BackendErrorKind kind, string message, Exception? inner = null) : Exception(message, inner)
{
    public BackendErrorKind Kind { get; } = kind;
}

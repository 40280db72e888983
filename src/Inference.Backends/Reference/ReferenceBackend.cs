// The definition: every operator as plain scalar code, one token at a time, sums in float64, rounded to F32 once, where the result is
// stored. All other backends are compared with this one (design decision 1).
//
// It knows no SIMD, no threads, no workspace; nothing here is fast, and nothing here should become fast. It runs each call to its
// end before Enqueue returns. Buffers and weights belong to their creators; this class owns no memory.
// Invariant: the bits of a token's result depend on that token's inputs only.
using Inference.Backends.Operators;
using Checks = Inference.Backends.Operators.OperatorChecks<Inference.Backends.HostBuffer, Inference.Backends.Reference.ReferenceWeight>;

namespace Inference.Backends.Reference;

/// <summary>The scalar oracle, on the processor.</summary>
/// <param name="poison">Memory starts as NaN, and scratch operands are NaN after their call: a read of what nobody wrote shows.</param>
public sealed unsafe class ReferenceBackend(bool poison = false) : IBackend
{
    private static readonly OpPlan Scalar = new(OpSupport.Supported, "scalar", WorkspaceBytes: 0, Determinism.AnySchedule);

    public BackendInfo Info { get; } =
        new("reference", "processor, scalar float64", Determinism.AnySchedule, GC.GetGCMemoryInfo().TotalAvailableMemoryBytes);

    public DeviceBuffer Allocate(long bytes, string purpose)
    {
        if (bytes < 0) throw HostRows.Wrong($"Allocate: {bytes} bytes for {purpose}.");
        if (bytes > Info.MemoryBytes) throw NoMemory(bytes, purpose, null);
        try
        {
            return new HostBuffer(bytes, poison);
        }
        catch (OutOfMemoryException e)
        {
            throw NoMemory(bytes, purpose, e);
        }
    }

    public void Upload(ReadOnlySpan<byte> source, in Tensor destination)
    {
        CheckCopy("Upload", destination, source.Length);
        source.CopyTo(new Span<byte>(destination.Pointer(), source.Length));
    }

    public void Download(in Tensor source, Span<byte> destination)
    {
        CheckCopy("Download", source, destination.Length);
        new ReadOnlySpan<byte>(source.Pointer(), destination.Length).CopyTo(destination);
    }

    public void Copy(in Tensor source, in Tensor destination)
    {
        long bytes = source.DType.ByteLength(source.ElementCount);
        CheckCopy("Copy", source, bytes);
        CheckCopy("Copy", destination, bytes);
        Buffer.MemoryCopy(source.Pointer(), destination.Pointer(), bytes, bytes);
    }

    public PreparedWeight PrepareWeight(in WeightData weight) => new ReferenceWeight(weight);

    public OpPlan Plan<TOp>(in TOp op) where TOp : struct, IOperator
    {
        try
        {
            Checks.Validate(in op);
            return Scalar;
        }
        catch (BackendException e) when (e.Kind == BackendErrorKind.Request)
        {
            return OpPlan.Unsupported(e.Message);
        }
    }

    public void Enqueue<TOp>(in TOp op, in Tensor workspace = default) where TOp : struct, IOperator
    {
        Checks.Validate(in op);
        if (typeof(TOp) == typeof(Embed)) ReferenceDense.Run(in Checks.As<TOp, Embed>(in op));
        else if (typeof(TOp) == typeof(GatherRows)) ReferenceDense.Run(in Checks.As<TOp, GatherRows>(in op));
        else if (typeof(TOp) == typeof(RmsNorm)) ReferenceDense.Run(in Checks.As<TOp, RmsNorm>(in op));
        else if (typeof(TOp) == typeof(Linear)) ReferenceDense.Run(in Checks.As<TOp, Linear>(in op));
        else if (typeof(TOp) == typeof(GroupedLinear)) ReferenceDense.Run(in Checks.As<TOp, GroupedLinear>(in op));
        else if (typeof(TOp) == typeof(SwiGlu)) ReferenceDense.Run(in Checks.As<TOp, SwiGlu>(in op));
        else if (typeof(TOp) == typeof(Rotate)) ReferenceRows.Run(in Checks.As<TOp, Rotate>(in op));
        else if (typeof(TOp) == typeof(KvInsert)) ReferenceRows.Run(in Checks.As<TOp, KvInsert>(in op));
        else if (typeof(TOp) == typeof(CompressorUpdate)) ReferenceRows.Run(in Checks.As<TOp, CompressorUpdate>(in op));
        else if (typeof(TOp) == typeof(IndexTopK)) ReferenceAttention.Run(in Checks.As<TOp, IndexTopK>(in op), poison);
        else if (typeof(TOp) == typeof(Attention)) ReferenceAttention.Run(in Checks.As<TOp, Attention>(in op));
        else if (typeof(TOp) == typeof(Route)) ReferenceExperts.Run(in Checks.As<TOp, Route>(in op));
        else if (typeof(TOp) == typeof(ExpertGateUp)) ReferenceExperts.Run(in Checks.As<TOp, ExpertGateUp>(in op));
        else if (typeof(TOp) == typeof(ExpertDownCombine)) ReferenceExperts.Run(in Checks.As<TOp, ExpertDownCombine>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPre)) ReferenceHyperConnections.Run(in Checks.As<TOp, HyperConnectionPre>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPost)) ReferenceHyperConnections.Run(in Checks.As<TOp, HyperConnectionPost>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionHead)) ReferenceHyperConnections.Run(in Checks.As<TOp, HyperConnectionHead>(in op));
        else throw HostRows.Wrong($"{typeof(TOp).Name} passed the checks but has no code here.");
    }

    public void Wait() { }

    public void Dispose() { }

    private static void CheckCopy(string call, in Tensor t, long bytes)
    {
        if (!t.IsPresent || t.Buffer is not HostBuffer) throw HostRows.Wrong($"{call}: {t} does not lie in a buffer of this backend.");
        if (t.D0 > 1 && t.RowStride != t.RowElements) throw HostRows.Wrong($"{call}: {t} is not contiguous.");
        if (t.DType.ByteLength(t.ElementCount) != bytes)
            throw HostRows.Wrong($"{call}: {t} has {t.DType.ByteLength(t.ElementCount)} bytes, the other side {bytes}.");
    }

    private BackendException NoMemory(long bytes, string purpose, Exception? inner) =>
        new(BackendErrorKind.Capacity, $"No memory for {purpose}: {bytes} bytes asked for, {Info.MemoryBytes} bytes in all.", inner);
}

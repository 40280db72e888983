// The backend that runs everywhere: SIMD kernels on a small pool of threads.
//
// Weights are used as stored (F32, BF16, F16, FP8, FP4; see CpuWeight), activations and sums are F32. Every call runs to its end before Enqueue
// returns. It knows no token, no request, no model; it never changes a caller's weight and keeps no operand after a call.
// It owns the threads and the kernels' scratch memory, both freed by Dispose. One thread at a time may call.
//
// The invariant, Determinism.AnySchedule: the bits of an output row depend on that row's inputs only, whatever the other tokens of the call, the
// number of threads, the partition, or where pages and buffers lie. Each kernel's header states its order of reduction. By construction (IEEE
// operations only, sixteen lanes whatever the register width) the bits are also the same with 512-bit, 256-bit or no vectors.
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;
using Checks = Inference.Backends.Operators.OperatorChecks<Inference.Backends.HostBuffer, Inference.Backends.Cpu.CpuWeight>;

namespace Inference.Backends.Cpu;

/// <summary>The processor, with all the SIMD it has.</summary>
public sealed unsafe class CpuBackend : IBackend
{
    private readonly OpPlan _plan;
    private readonly WorkerPool _pool;
    private readonly LinearKernel _linear;
    private readonly ExpertKernels _experts;
    private readonly HyperConnectionKernels _hyperConnections;
    private readonly RouteKernel _route;
    private readonly RowKernels _rows;
    private readonly CompressorKernel _compressor;
    private readonly IndexKernel _index;
    private readonly AttentionKernel _attention;
    private bool _disposed;

    /// <param name="threads">Threads that compute, the caller's included; 0 means one per physical core.</param>
    /// <exception cref="ArgumentOutOfRangeException">A negative number of threads.</exception>
    public CpuBackend(int threads = 0) : this(threads, WorkerPool.DefaultGrainWork)
    {
    }

    /// <param name="grainWork">As in <see cref="WorkerPool"/>; tests share even the smallest loops.</param>
    internal CpuBackend(int threads, long grainWork)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(threads);
        Threads = threads == 0 ? CpuTopology.PhysicalCores() : threads;
        var width = Vector512.IsHardwareAccelerated ? 512 : Vector256.IsHardwareAccelerated ? 256 : Vector128.IsHardwareAccelerated ? 128 : 0;
        _plan = new OpPlan(OpSupport.Supported, width == 0 ? "scalar" : $"simd{width}", 0, Determinism.AnySchedule);
        Info = new BackendInfo("cpu", $"{CpuTopology.ProcessorName()}, {Threads} threads, {(width == 0 ? "no SIMD" : $"{width}-bit SIMD")}",
            Determinism.AnySchedule, GC.GetGCMemoryInfo().TotalAvailableMemoryBytes);
        _pool = new WorkerPool(Threads, grainWork);
        _linear = new LinearKernel(_pool);
        _experts = new ExpertKernels(_pool);
        _hyperConnections = new HyperConnectionKernels(_pool, _linear);
        _route = new RouteKernel(_pool);
        _rows = new RowKernels(_pool);
        _compressor = new CompressorKernel(_pool);
        _index = new IndexKernel(_pool);
        _attention = new AttentionKernel(_pool);
    }

    public BackendInfo Info { get; }

    /// <summary>Threads that compute, the caller's included.</summary>
    public int Threads { get; }

    public DeviceBuffer Allocate(long bytes, string purpose)
    {
        if (bytes < 0) throw CpuChecks.Wrong($"Allocate: {bytes} bytes for {purpose}.");
        if (bytes > Info.MemoryBytes) throw NoMemory(bytes, purpose, null);
        try
        {
            return new HostBuffer(bytes);
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

    public PreparedWeight PrepareWeight(in WeightData weight) => new CpuWeight(weight);

    public OpPlan Plan<TOp>(in TOp op) where TOp : struct, IOperator
    {
        try
        {
            Checks.Validate(in op);
            return _plan;
        }
        catch (BackendException e) when (e.Kind == BackendErrorKind.Request)
        {
            return OpPlan.Unsupported(e.Message);
        }
    }

    public void Enqueue<TOp>(in TOp op, in Tensor workspace = default) where TOp : struct, IOperator
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        Checks.Validate(in op);
        if (typeof(TOp) == typeof(Embed)) ElementwiseKernels.Run(in Checks.As<TOp, Embed>(in op));
        else if (typeof(TOp) == typeof(GatherRows)) ElementwiseKernels.Run(in Checks.As<TOp, GatherRows>(in op));
        else if (typeof(TOp) == typeof(RmsNorm)) ElementwiseKernels.Run(in Checks.As<TOp, RmsNorm>(in op), _pool);
        else if (typeof(TOp) == typeof(Linear)) _linear.Run(in Checks.As<TOp, Linear>(in op));
        else if (typeof(TOp) == typeof(GroupedLinear)) _linear.Run(in Checks.As<TOp, GroupedLinear>(in op));
        else if (typeof(TOp) == typeof(SwiGlu)) ElementwiseKernels.Run(in Checks.As<TOp, SwiGlu>(in op), _pool);
        else if (typeof(TOp) == typeof(Rotate)) _rows.Run(in Checks.As<TOp, Rotate>(in op));
        else if (typeof(TOp) == typeof(KvInsert)) _rows.Run(in Checks.As<TOp, KvInsert>(in op));
        else if (typeof(TOp) == typeof(CompressorUpdate)) _compressor.Run(in Checks.As<TOp, CompressorUpdate>(in op));
        else if (typeof(TOp) == typeof(IndexTopK)) _index.Run(in Checks.As<TOp, IndexTopK>(in op));
        else if (typeof(TOp) == typeof(Attention)) _attention.Run(in Checks.As<TOp, Attention>(in op));
        else if (typeof(TOp) == typeof(Route)) _route.Run(in Checks.As<TOp, Route>(in op));
        else if (typeof(TOp) == typeof(ExpertGateUp)) _experts.Run(in Checks.As<TOp, ExpertGateUp>(in op));
        else if (typeof(TOp) == typeof(ExpertDownCombine)) _experts.Run(in Checks.As<TOp, ExpertDownCombine>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPre)) _hyperConnections.Run(in Checks.As<TOp, HyperConnectionPre>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPost)) _hyperConnections.Run(in Checks.As<TOp, HyperConnectionPost>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionHead)) _hyperConnections.Run(in Checks.As<TOp, HyperConnectionHead>(in op));
        else throw CpuChecks.Wrong($"{typeof(TOp).Name} passed the checks but has no kernel here.");
    }

    public void Wait() { }

    public void Dispose()
    {
        if (_disposed) return;
        _disposed = true;
        _pool.Dispose();
        _linear.Dispose();
        _experts.Dispose();
        _hyperConnections.Dispose();
        _route.Dispose();
        _rows.Dispose();
        _compressor.Dispose();
        _index.Dispose();
        _attention.Dispose();
    }

    private static void CheckCopy(string call, in Tensor t, long bytes)
    {
        if (!t.IsPresent || t.Buffer is not HostBuffer) throw CpuChecks.Wrong($"{call}: {t} does not lie in a buffer of this backend.");
        if (t.D0 > 1 && t.RowStride != t.RowElements) throw CpuChecks.Wrong($"{call}: {t} is not contiguous.");
        if (t.DType.ByteLength(t.ElementCount) != bytes)
            throw CpuChecks.Wrong($"{call}: {t} has {t.DType.ByteLength(t.ElementCount)} bytes, the other side {bytes}.");
    }

    private BackendException NoMemory(long bytes, string purpose, Exception? inner) =>
        new(BackendErrorKind.Capacity, $"No memory for {purpose}: {bytes} bytes asked for, {Info.MemoryBytes} bytes in all.", inner);
}

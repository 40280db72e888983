using System.Collections.Concurrent;
using Inference.Backends;

namespace Inference.Testing;

/// <summary>
/// A backend that has memory and no operators, for models that compute by themselves (<see cref="HashModel"/>). Memory starts as NaN. Counts
/// what was not given back, and fails an allocation when told to.
/// </summary>
public sealed unsafe class HostMemoryBackend : IBackend
{
    private readonly ConcurrentDictionary<Counted, byte> _live = [];

    public BackendInfo Info { get; init; } = new("host-memory", "test", Determinism.AnySchedule, 1 << 30);

    /// <summary>Buffers allocated and not disposed.</summary>
    public int LiveBuffers => _live.Count(b => !b.Key.Disposed);

    /// <summary>Called before each copy and allocation, with its name; may throw.</summary>
    public Action<string>? Fault { get; set; }

    public DeviceBuffer Allocate(long bytes, string purpose)
    {
        Fault?.Invoke("allocate");
        var counted = new Counted(bytes);
        _live.TryAdd(counted, 0);
        return counted.Host;
    }

    public void Upload(ReadOnlySpan<byte> source, in Tensor destination)
    {
        Fault?.Invoke("upload");
        if (source.Length != destination.SpanBytes) throw new BackendException(BackendErrorKind.Request, "Upload: sizes differ.");
        source.CopyTo(new Span<byte>(destination.Pointer(), source.Length));
    }

    public void Download(in Tensor source, Span<byte> destination)
    {
        Fault?.Invoke("download");
        if (destination.Length != source.SpanBytes) throw new BackendException(BackendErrorKind.Request, "Download: sizes differ.");
        new ReadOnlySpan<byte>(source.Pointer(), destination.Length).CopyTo(destination);
    }

    public void Copy(in Tensor source, in Tensor destination)
    {
        Fault?.Invoke("copy");
        if (destination.SpanBytes != source.SpanBytes) throw new BackendException(BackendErrorKind.Request, "Copy: sizes differ.");
        Buffer.MemoryCopy(source.Pointer(), destination.Pointer(), source.SpanBytes, source.SpanBytes);
    }

    public PreparedWeight PrepareWeight(in WeightData weight) => throw new NotSupportedException("No weights here.");
    public OpPlan Plan<TOp>(in TOp op) where TOp : struct, IOperator => OpPlan.Unsupported("no operators here");
    public void Enqueue<TOp>(in TOp op, in Tensor workspace = default) where TOp : struct, IOperator =>
        throw new NotSupportedException("No operators here.");
    public void Wait() { }
    public void Dispose() { }

    private sealed class Counted(long bytes)
    {
        public HostBuffer Host { get; } = new(bytes, poison: true);

        public bool Disposed
        {
            get
            {
                try
                {
                    _ = Host.Data;
                    return false;
                }
                catch (ObjectDisposedException)
                {
                    return true;
                }
            }
        }
    }
}

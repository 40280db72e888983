namespace Inference.Backends;

/// <summary>
/// A range of memory on a backend's device. Created and freed by its backend; nobody else knows where it lies.
/// Freed once, by <see cref="Dispose()"/>; the owner is whoever asked for it.
/// </summary>
public abstract class DeviceBuffer(long sizeBytes) : IDisposable
{
    /// <summary>Size in bytes.</summary>
    public long SizeBytes { get; } = sizeBytes;

    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    protected abstract void Dispose(bool disposing);
}

using System.Runtime.InteropServices;

namespace Inference.Backends;

/// <summary>
/// Memory that the processor can read: the buffer of the Reference and Cpu backends. 64-byte aligned and never moved.
/// Large buffers take no physical memory until they are touched, and then pages of 2 MB where the system has them. With <c>poison</c> every byte starts as 0xFF (NaN in every
/// float type we use), so that a test sees a kernel that reads what nobody wrote.
/// </summary>
public sealed unsafe class HostBuffer : DeviceBuffer
{
    private void* _data;

    public HostBuffer(long sizeBytes, bool poison = false) : base(sizeBytes)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(sizeBytes);
        _data = NativeMemory.AlignedAlloc((nuint)Math.Max(sizeBytes, 64), 64);
        Cpu.HugePages.Advise(_data, sizeBytes);
        GC.AddMemoryPressure(Math.Max(sizeBytes, 64));
        if (poison) NativeMemory.Fill(_data, (nuint)sizeBytes, 0xFF);
    }

    /// <summary>Address of the first byte; valid until <see cref="DeviceBuffer.Dispose()"/>.</summary>
    public byte* Data => _data is not null ? (byte*)_data : throw new ObjectDisposedException(nameof(HostBuffer));

    ~HostBuffer() => Dispose(false);

    protected override void Dispose(bool disposing)
    {
        if (_data is null) return;
        NativeMemory.AlignedFree(_data);
        _data = null;
        GC.RemoveMemoryPressure(Math.Max(SizeBytes, 64));
    }
}

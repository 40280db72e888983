using System.Runtime.InteropServices;

namespace Inference.Backends.Cpu;

/// <summary>
/// A piece of native memory that grows to the largest size asked for and is reused call after call, 64-byte aligned. Contents are
/// undefined at every call of <see cref="Get{T}"/>. One owner, one user at a time.
/// </summary>
internal sealed unsafe class Scratch : IDisposable
{
    private void* _data;
    private nuint _bytes;

    /// <summary>Room for <paramref name="count"/> items; what an earlier call returned is no longer valid.</summary>
    public T* Get<T>(long count) where T : unmanaged
    {
        var bytes = checked((nuint)count * (nuint)sizeof(T));
        if (bytes <= _bytes && _data is not null) return (T*)_data;
        Dispose();
        bytes = (Math.Max(bytes, 4096) + bytes / 4 + 63) & ~(nuint)63; // some more than asked for, or growing contexts would reallocate every step
        _data = NativeMemory.AlignedAlloc(bytes, 64);
        _bytes = bytes;
        HugePages.Advise(_data, (long)bytes);
        return (T*)_data;
    }

    public void Dispose()
    {
        NativeMemory.AlignedFree(_data);
        _data = null;
        _bytes = 0;
        GC.SuppressFinalize(this);
    }

    ~Scratch() => NativeMemory.AlignedFree(_data);
}

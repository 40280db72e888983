using System.Runtime.InteropServices;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// Memory outside the managed heap for payload on its way to or from the disk, at most <see cref="BytesMax"/> in all, free buffers that wait to be
/// used again included (touching fresh memory costs as much as checking it). Any thread.
/// </summary>
internal sealed unsafe class StagingMemory(long bytesMax) : IDisposable
{
    private const nuint Alignment = 4096;

    private readonly Lock _gate = new();
    private readonly List<Buffer> _free = [];
    private long _allocated, _rented;
    private bool _disposed;

    public long BytesMax { get; } = bytesMax;

    /// <summary>What a buffer of a size takes.</summary>
    public static long Capacity(long bytes) => Math.Max(1, (bytes + (long)Alignment - 1) / (long)Alignment) * (long)Alignment;

    /// <summary>Bytes that are in use.</summary>
    public long Rented
    {
        get { lock (_gate) return _rented; }
    }

    /// <summary>A buffer of at least this size, its contents undefined; null if there is no room now.</summary>
    public Buffer? TryRent(long bytes)
    {
        long capacity = Capacity(bytes);
        lock (_gate)
        {
            if (_disposed || _rented + capacity > BytesMax) return null;
            int fit = _free.FindIndex(b => b.Capacity >= capacity && b.Capacity <= 2 * capacity && _rented + b.Capacity <= BytesMax);
            Buffer buffer;
            if (fit >= 0)
            {
                buffer = _free[fit];
                _free.RemoveAt(fit);
            }
            else
            {
                while (_allocated + capacity > BytesMax) Free(_free[^1]);
                buffer = new Buffer(this, capacity);
                _allocated += capacity;
            }
            _rented += buffer.Capacity;
            buffer.Bytes = (int)bytes;
            return buffer;
        }
    }

    private void Return(Buffer buffer)
    {
        lock (_gate)
        {
            _rented -= buffer.Capacity;
            _free.Insert(0, buffer);
            if (_disposed) Free(buffer);
        }
    }

    private void Free(Buffer buffer)
    {
        _free.Remove(buffer);
        _allocated -= buffer.Capacity;
        buffer.Free();
    }

    /// <summary>Frees what is not in use now; what is in use when it is returned.</summary>
    public void Dispose()
    {
        lock (_gate)
        {
            _disposed = true;
            while (_free.Count > 0) Free(_free[^1]);
        }
    }

    /// <summary>Rented memory; disposed, that is returned, exactly once.</summary>
    public sealed class Buffer(StagingMemory owner, long capacity) : IDisposable
    {
        private byte* _memory = (byte*)NativeMemory.AlignedAlloc((nuint)capacity, Alignment);

        public long Capacity { get; } = capacity;

        /// <summary>What was asked for.</summary>
        public int Bytes { get; set; }

        public Span<byte> Span => new(_memory, Bytes);

        public void Dispose() => owner.Return(this);

        internal void Free()
        {
            NativeMemory.AlignedFree(_memory);
            _memory = null;
        }
    }
}

// The bytes of one weight file in the address space: mapped read-only from disk, pinned in memory, or made there.
//
// Mapped pages are read by the operating system when they are touched and can be dropped again under pressure, so a
// checkpoint may be larger than memory. If somebody truncates a mapped file in place, touching a lost page ends the
// process (SIGBUS): replace model files by renaming, never by overwriting.
// Owned by its Checkpoint, which disposes it. Invariant: Pointer is valid for Length bytes until Dispose, and asking
// afterwards throws instead of reading unmapped memory.
using System.IO.MemoryMappedFiles;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using Inference.Backends;

namespace Inference.Runtime.Weights;

internal sealed unsafe class WeightRegion : IDisposable
{
    private readonly IDisposable? _owner;
    private byte* _pointer;

    private WeightRegion(string name, IDisposable? owner, byte* pointer, long length)
    {
        (Name, _owner, Length) = (name, owner, length);
        _pointer = pointer;
    }

    /// <summary>The file, as messages name it.</summary>
    public string Name { get; }

    /// <summary>Bytes, header included.</summary>
    public long Length { get; }

    /// <summary>The first byte of the file.</summary>
    /// <exception cref="ObjectDisposedException">The checkpoint was disposed.</exception>
    public byte* Pointer
    {
        get
        {
            var pointer = _pointer;
            ObjectDisposedException.ThrowIf(pointer is null, typeof(Checkpoint));
            return pointer;
        }
    }

    /// <summary>Maps a file read-only.</summary>
    /// <param name="name">For messages.</param>
    /// <param name="path">The real path.</param>
    /// <exception cref="CheckpointException">Missing, unreadable or empty.</exception>
    public static WeightRegion Map(string name, string path)
    {
        try
        {
            var info = new FileInfo(path);
            if (!info.Exists)
            {
                throw new CheckpointException(CheckpointFault.FileMissing, name, null,
                    path == name ? "no such file" : $"no such file (looked for {Printable.Text(path)})", "Complete the download of the model.");
            }
            if (info.Length == 0) // also what a pipe or a device says: opening one could block for ever
                throw new CheckpointException(CheckpointFault.FileTruncated, name, null, "the file is empty", "Download the file again.");
            using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 1);
            return new WeightRegion(name, new Mapping(file, out var pointer, out var length), pointer, length);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw ModelPaths.Unreadable(name, e.Message, "Check that the file is a readable, complete copy.", e);
        }
    }

    /// <summary>Pins an image of a file in memory; the array must not be changed afterwards.</summary>
    public static WeightRegion Pin(string name, byte[] image)
    {
        var pin = new Pinned(image);
        return new WeightRegion(name, pin, pin.Pointer, image.Length);
    }

    /// <summary>Memory of its own, contents undefined; large regions take no physical memory until they are written.</summary>
    public static WeightRegion Allocate(string name, long bytes)
    {
        var buffer = new HostBuffer(bytes);
        return new WeightRegion(name, buffer, buffer.Data, bytes);
    }

    /// <summary>Stands for data that is not there: asking for it throws, as after Dispose.</summary>
    public static WeightRegion WithoutData(string name) => new(name, null, null, 0);

    /// <summary>Adds what tells this file from others; see <see cref="Checkpoint.Digest"/>.</summary>
    public void AppendTo(IncrementalHash hash)
    {
        const int wholeMax = 64 << 20, head = 1 << 20, samples = 256, sample = 4096;
        hash.AppendData(Encoding.UTF8.GetBytes($"{Path.GetFileName(Name)}\0{Length}\0"));
        if (Length <= wholeMax)
        {
            hash.AppendData(new ReadOnlySpan<byte>(Pointer, (int)Length));
            return;
        }
        hash.AppendData(new ReadOnlySpan<byte>(Pointer, head));
        for (int i = 0; i < samples; i++)
            hash.AppendData(new ReadOnlySpan<byte>(Pointer + (Length - sample) / samples * (i + 1), sample));
    }

    public void Dispose()
    {
        if (_pointer is null)
            return;
        _pointer = null;
        _owner?.Dispose();
    }

    private sealed class Mapping : IDisposable
    {
        private readonly MemoryMappedFile _map;
        private readonly MemoryMappedViewAccessor _view;

        public Mapping(FileStream file, out byte* pointer, out long length)
        {
            length = file.Length;
            _map = MemoryMappedFile.CreateFromFile(file, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: false);
            try
            {
                _view = _map.CreateViewAccessor(0, length, MemoryMappedFileAccess.Read);
                byte* start = null;
                _view.SafeMemoryMappedViewHandle.AcquirePointer(ref start);
                pointer = start + _view.PointerOffset;
            }
            catch
            {
                _view?.Dispose();
                _map.Dispose();
                throw;
            }
        }

        public void Dispose()
        {
            _view.SafeMemoryMappedViewHandle.ReleasePointer();
            _view.Dispose();
            _map.Dispose();
        }
    }

    private sealed class Pinned(byte[] image) : IDisposable
    {
        private GCHandle _handle = GCHandle.Alloc(image, GCHandleType.Pinned);

        public byte* Pointer => (byte*)_handle.AddrOfPinnedObject();

        public void Dispose() => _handle.Free();
    }
}

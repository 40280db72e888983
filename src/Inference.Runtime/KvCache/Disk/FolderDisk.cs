using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

#pragma warning disable CA1416  // Open refuses systems other than Linux

namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// A real folder. It is created with mode 0700 and refused unless it is a folder itself (no symbolic link), belongs to the user that runs the
/// process, is open to nobody else and holds nothing but files of a <see cref="KvStore"/>. A lock file keeps a second process out; the
/// kernel drops the lock with the process, however that ends. Files are 0600. Needs Linux. Never follows a name that does not come
/// from the store's own counter.
/// </summary>
internal sealed partial class FolderDisk : IDisk
{
    private const string LockName = "lock";
    private const UnixFileMode Private = UnixFileMode.UserRead | UnixFileMode.UserWrite;

    private readonly string _folder;
    private readonly SafeFileHandle _self;  // the folder, for flushing
    private readonly SafeFileHandle _lock;

    private FolderDisk(string folder, SafeFileHandle self, SafeFileHandle @lock) => (_folder, _self, _lock) = (folder, self, @lock);

    /// <param name="isOurs">Which file names may be there; null = those of a <see cref="KvStore"/>.</param>
    /// <exception cref="KvFolderException">The folder is not fit or not free.</exception>
    public static FolderDisk Open(string folder, Func<string, bool>? isOurs = null)
    {
        isOurs ??= KvStore.IsOurs;
        if (!OperatingSystem.IsLinux()) throw new KvFolderException("KV state on disk needs Linux; leave the folder for it unset.");
        folder = Path.TrimEndingDirectorySeparator(Path.GetFullPath(folder));
        SafeFileHandle? self = null;
        try
        {
            Directory.CreateDirectory(folder, Private | UnixFileMode.UserExecute);
            self = OpenPrivate(folder);
            CheckContents(folder, isOurs);
            return new FolderDisk(folder, self, Lock(folder));
        }
        catch (Exception e)
        {
            self?.Dispose();
            if (e is IOException or UnauthorizedAccessException) throw new KvFolderException($"KV folder {folder}: {e.Message}", e);
            throw;
        }
    }

    private static SafeFileHandle OpenPrivate(string folder)
    {
        var named = Native.Stat(Native.WorkingFolder, folder, Native.NoFollow, folder);
        if (named.Type == Native.SymbolicLink)
            throw new KvFolderException($"KV folder {folder} is a symbolic link; name the folder that it leads to.");
        if (named.Type != Native.Folder) throw new KvFolderException($"KV folder {folder} is a file; name another.");
        var self = Native.OpenFolder(folder);
        var opened = Native.Stat((int)self.DangerousGetHandle(), "", Native.EmptyPath, folder);
        if (opened.Inode != named.Inode || opened.Device != named.Device)
            throw new KvFolderException($"KV folder {folder} was replaced while it was opened; name one that only this user can replace.");
        if (opened.User != Native.User())
            throw new KvFolderException($"KV folder {folder} belongs to user {opened.User}, not to user {Native.User()} who runs this process; name one of its own.");
        if ((opened.Mode & 0x3F) != 0)
            throw new KvFolderException($"KV folder {folder} is open to others (mode {Convert.ToString(opened.Mode & 0x1FF, 8)}); chmod 700 it if they never wrote there, or name a new one.");
        return self;
    }

    private static void CheckContents(string folder, Func<string, bool> isOurs)
    {
        foreach (var entry in new DirectoryInfo(folder).EnumerateFileSystemInfos())
            if (entry is not FileInfo || entry.LinkTarget is not null || entry.Name != LockName && !isOurs(entry.Name))
                throw new KvFolderException($"KV folder {folder} holds '{entry.Name}', which is no file of this server; name an empty folder.");
    }

    // Not through the class library, which takes a lock of its own, or none where an environment variable says so.
    private static SafeFileHandle Lock(string folder)
    {
        var file = Native.OpenLock(Path.Combine(folder, LockName));
        if (Native.TryLock(file)) return file;
        file.Dispose();
        throw new KvFolderException($"KV folder {folder} is in use by another process; stop that one or name another folder.");
    }

    public IReadOnlyList<(string Name, long Length)> List() => Io(() =>
        (IReadOnlyList<(string, long)>)[.. new DirectoryInfo(_folder).EnumerateFiles().Where(f => f.Name != LockName).Select(f => (f.Name, f.Length))]);

    public IDiskFile Create(string name, long length) => Io(() => new DiskFile(new FileStream(PathOf(name), new FileStreamOptions
    {
        Mode = FileMode.Create,
        Access = FileAccess.Write,
        Share = FileShare.ReadWrite,
        BufferSize = 0,
        PreallocationSize = length,
        UnixCreateMode = Private,
    }), length > 0 ? Native.OpenDirect(PathOf(name), write: true) : null));

    public IDiskFile OpenRead(string name) => Io(() => new DiskFile(new FileStream(PathOf(name), new FileStreamOptions
    {
        Mode = FileMode.Open,
        Access = FileAccess.Read,
        Share = FileShare.ReadWrite | FileShare.Delete,
        BufferSize = 0,
    }), Native.OpenDirect(PathOf(name), write: false)));

    public void Rename(string from, string to) => Io(() => { File.Move(PathOf(from), PathOf(to), overwrite: true); return 0; });

    public void Delete(string name) => Io(() => { File.Delete(PathOf(name)); return 0; });

    public void FlushFolder() => Native.Flush(_self, _folder);

    public void Dispose()
    {
        _self.Dispose();
        _lock.Dispose();
    }

    private string PathOf(string name) => Path.Combine(_folder, name);

    // Some errors of a disk (a file system that became read-only) come as another type.
    private static T Io<T>(Func<T> action)
    {
        try
        {
            return action();
        }
        catch (UnauthorizedAccessException e)
        {
            throw new IOException(e.Message, e);
        }
    }

    // What is aligned goes past the page cache: that saves a copy, and memory that the rest of the machine has better use for.
    private sealed unsafe class DiskFile(FileStream file, SafeFileHandle? direct) : IDiskFile
    {
        private const int Alignment = 4096;

        public int ReadAt(Span<byte> bytes, long offset)
        {
            try
            {
                if (bytes.Length > 0 && Direct(bytes, offset) == bytes.Length) return RandomAccess.Read(direct!, bytes, offset);
            }
            catch (IOException e) when (e.HResult == Native.Invalid)
            {
                // The file system wants another alignment.
            }
            return RandomAccess.Read(file.SafeFileHandle, bytes, offset);
        }

        public void WriteAt(ReadOnlySpan<byte> bytes, long offset)
        {
            int past = Direct(bytes, offset);
            try
            {
                if (past > 0) RandomAccess.Write(direct!, bytes[..past], offset);
            }
            catch (IOException e) when (e.HResult == Native.Invalid)
            {
                past = 0;
            }
            RandomAccess.Write(file.SafeFileHandle, bytes[past..], offset + past);
        }

        // How many of the bytes, from the first on, may go past the page cache.
        private int Direct(ReadOnlySpan<byte> bytes, long offset)
        {
            fixed (byte* memory = bytes)
                return direct is null || offset % Alignment != 0 || (nuint)memory % Alignment != 0 ? 0 : bytes.Length / Alignment * Alignment;
        }

        // Both handles are of one file.
        public void Flush() => RandomAccess.FlushToDisk(file.SafeFileHandle);

        public void Dispose()
        {
            file.Dispose();
            direct?.Dispose();
        }
    }

    // What the class library does not offer: who owns a folder, flushing one, and a lock that no environment variable switches off.
    // Linux; but for O_DIRECT the numbers are the same on its architectures that .NET runs on.
    private static unsafe partial class Native
    {
        public const int WorkingFolder = -100, NoFollow = 0x100, EmptyPath = 0x1000;
        public const int SymbolicLink = 0xA000, Folder = 0x4000, Invalid = 22;
        private const int CloseOnExec = 0x80000, CreateIfAbsent = 0x40, ReadWrite = 2, LockExclusive = 2, LockNonBlocking = 4, WouldBlock = 11, BasicStats = 0x7FF;

        public readonly record struct Status(int Mode, uint User, ulong Inode, ulong Device)
        {
            public int Type => Mode & 0xF000;
        }

        public static Status Stat(int at, string path, int flags, string folder)
        {
            // struct statx: the same on every architecture. User at 20, mode at 28, inode at 32, device at 136 and 140.
            byte* s = stackalloc byte[256];
            if (statx(at, path, flags, BasicStats, s) != 0) throw Error($"{folder}: its owner cannot be read");
            return new Status(*(ushort*)(s + 28), *(uint*)(s + 20), *(ulong*)(s + 32), (ulong)*(uint*)(s + 136) << 32 | *(uint*)(s + 140));
        }

        public static SafeFileHandle OpenFolder(string folder) => Opened(open(folder, CloseOnExec, 0), folder);

        public static SafeFileHandle OpenLock(string file) => Opened(open(file, CloseOnExec | CreateIfAbsent | ReadWrite, (uint)Private), file);

        // Null where the file system has no such thing.
        public static SafeFileHandle? OpenDirect(string file, bool write)
        {
            int direct = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 0x10000 : 0x4000;
            int descriptor = open(file, CloseOnExec | direct | (write ? ReadWrite : 0), 0);
            return descriptor >= 0 ? new SafeFileHandle(descriptor, ownsHandle: true) : null;
        }

        private static SafeFileHandle Opened(int descriptor, string what) =>
            descriptor >= 0 ? new SafeFileHandle(descriptor, ownsHandle: true) : throw Error(what);

        public static void Flush(SafeFileHandle folder, string name)
        {
            if (fsync(folder) != 0) throw Error($"{name}: cannot be flushed");
        }

        public static bool TryLock(SafeFileHandle file)
        {
            if (flock(file, LockExclusive | LockNonBlocking) == 0) return true;
            if (Marshal.GetLastPInvokeError() == WouldBlock) return false;
            throw Error("the lock file cannot be locked");
        }

        public static uint User() => geteuid();

        private static IOException Error(string what) => new($"{what} ({Marshal.GetLastPInvokeErrorMessage()}).");

        [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
        private static partial int statx(int at, string path, int flags, uint mask, byte* status);

        [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
        private static partial int open(string path, int flags, uint mode);

        [LibraryImport("libc", SetLastError = true)]
        private static partial int fsync(SafeFileHandle file);

        [LibraryImport("libc", SetLastError = true)]
        private static partial int flock(SafeFileHandle file, int operation);

        [LibraryImport("libc")]
        private static partial uint geteuid();
    }
}

namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// The files of one private folder, as far as <see cref="KvStore"/> needs them: a real folder (<see cref="FolderDisk"/>), or a simulated one in
/// tests. What was written is durable after <see cref="IDiskFile.Flush"/>; a created, renamed or deleted name after <see cref="FlushFolder"/>.
/// Calls end with an <see cref="IOException"/> where the disk does; any thread may call, but one file is written by one.
/// </summary>
internal interface IDisk : IDisposable
{
    /// <summary>All files with their lengths in bytes, in no order.</summary>
    IReadOnlyList<(string Name, long Length)> List();

    /// <summary>A new empty file to write, in place of one of this name. Room for <paramref name="length"/> bytes is reserved where the file system can.</summary>
    IDiskFile Create(string name, long length);

    /// <summary>A file to read.</summary>
    IDiskFile OpenRead(string name);

    /// <summary>Renames atomically, in place of a file of the new name.</summary>
    void Rename(string from, string to);

    /// <summary>Deletes a file; one that is not there is no error.</summary>
    void Delete(string name);

    /// <summary>Makes durable which names there are.</summary>
    void FlushFolder();
}

/// <summary>An open file of an <see cref="IDisk"/>.</summary>
internal interface IDiskFile : IDisposable
{
    /// <summary>Reads at most what the span holds; fewer bytes are no error, 0 is the end of the file.</summary>
    int ReadAt(Span<byte> bytes, long offset);

    /// <summary>Writes all bytes.</summary>
    void WriteAt(ReadOnlySpan<byte> bytes, long offset);

    /// <summary>Makes what was written durable. After an error nothing written before it may be relied on.</summary>
    void Flush();
}

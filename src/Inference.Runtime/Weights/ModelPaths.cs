// Which file on disk a name in a model folder stands for, and whether that file may be used.
//
// Links are followed by hand, component by component, so that the answer is the real file; it must lie in the real
// model folder or in the root that the operator permitted. Callers open the answer, never the name they asked with.
// Holds no state. Invariant: no path is returned that a link inside the folder smuggled out of it.
namespace Inference.Runtime.Weights;

internal static class ModelPaths
{
    private const int LinkHopsMax = 40; // as Linux

    /// <summary>The real path of <paramref name="name"/> in <paramref name="folder"/>; the file need not exist.</summary>
    /// <exception cref="CheckpointException">Its links leave the folder, or form a loop.</exception>
    public static string Resolve(string folder, string name, string? linkRoot)
    {
        var asked = Path.Combine(folder, name);
        var realFolder = RealPath(folder);
        var real = RealPath(asked);
        if (IsBelow(real, realFolder) || (linkRoot is not null && IsBelow(real, RealPath(linkRoot))))
            return real;
        throw new CheckpointException(CheckpointFault.LinkLeavesFolder, asked, null,
            $"this is a link to {Printable.Text(real)}, which is outside of the model folder" +
            (linkRoot is null ? "" : $" and of the permitted link root {Printable.Text(linkRoot)}"),
            "Copy the file into the folder, or permit the folder that holds the target as the link root (LinkRoot).");
    }

    /// <summary>The path with all links followed, also those among its parents. Components that do not exist stay as they are.</summary>
    public static string RealPath(string path)
    {
        var full = Path.GetFullPath(path);
        var current = Path.GetPathRoot(full)!;
        var pending = new Stack<string>();
        Push(full[current.Length..]);
        for (var hops = 0; pending.TryPop(out var part);)
        {
            if (part == "..")
            {
                current = Path.GetDirectoryName(current) ?? current;
                continue;
            }
            var next = Path.Combine(current, part);
            if (LinkTarget(next) is not { } target)
            {
                current = next;
                continue;
            }
            if (++hops > LinkHopsMax)
                throw Unreadable(path, $"more than {LinkHopsMax} links on the way to it", "Remove the link loop.", null);
            if (Path.IsPathRooted(target))
                (current, target) = (Path.GetPathRoot(target)!, target[Path.GetPathRoot(target)!.Length..]);
            Push(target);
        }
        return current;

        void Push(string relative)
        {
            var parts = relative.Split([Path.DirectorySeparatorChar, Path.AltDirectorySeparatorChar], StringSplitOptions.RemoveEmptyEntries);
            foreach (var part in parts.Reverse())
            {
                if (part != ".")
                    pending.Push(part);
            }
        }
    }

    /// <summary>Reads a small file whole, after its length was compared with <paramref name="bytesMax"/>.</summary>
    /// <exception cref="CheckpointException">Missing, unreadable, empty or too large.</exception>
    public static byte[] ReadSmallFile(string path, int bytesMax, string wayOut)
    {
        try
        {
            var info = new FileInfo(path);
            if (!info.Exists)
                throw new CheckpointException(CheckpointFault.FileMissing, path, null, "no such file", wayOut);
            if (info.Length == 0) // also what a pipe or a device says: opening one could block for ever
                throw new CheckpointException(CheckpointFault.FileTruncated, path, null, "the file is empty", wayOut);
            using var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 1);
            if (stream.Length > bytesMax)
            {
                throw new CheckpointException(CheckpointFault.LimitExceeded, path, null,
                    $"the file has {stream.Length} bytes, the limit is {bytesMax}", "Is this the right file? If it is, raise the limit.");
            }
            var bytes = new byte[(int)stream.Length];
            stream.ReadExactly(bytes);
            return bytes;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw Unreadable(path, e.Message, "Check that the file is a readable, complete copy.", e);
        }
    }

    /// <summary>The error of a file that the operating system does not let us use.</summary>
    public static CheckpointException Unreadable(string path, string reason, string wayOut, Exception? inner) =>
        new(CheckpointFault.FileUnreadable, path, null, $"cannot be read: {reason.TrimEnd('.')}", wayOut, inner);

    private static string? LinkTarget(string path)
    {
        try
        {
            return new FileInfo(path).LinkTarget;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw Unreadable(path, e.Message, "Check the permissions of the model folder.", e);
        }
    }

    private static bool IsBelow(string path, string folder) =>
        path.StartsWith(folder.EndsWith(Path.DirectorySeparatorChar) ? folder : folder + Path.DirectorySeparatorChar, StringComparison.Ordinal);
}

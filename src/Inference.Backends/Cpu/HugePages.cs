using System.Runtime.InteropServices;

namespace Inference.Backends.Cpu;

/// <summary>
/// Asks Linux for 2 MB pages. Cached rows are read in any order, each on another 4 KB page: without them the walk through the page tables
/// takes as long as the arithmetic (measured: benchmarks/LOG.md). A hint only; elsewhere, and where it is refused, nothing happens.
/// </summary>
internal static unsafe partial class HugePages
{
    private const nuint Size = 2 << 20;
    private const int AdviseHugePage = 14; // MADV_HUGEPAGE

    [LibraryImport("libc")]
    private static partial int madvise(void* address, nuint length, int advice);

    /// <summary>Advises for the whole 2 MB pages within a range; small ranges are left alone.</summary>
    public static void Advise(void* data, long bytes)
    {
        if (!OperatingSystem.IsLinux() || bytes < 4 * (long)Size) return;
        var start = ((nuint)data + Size - 1) & ~(Size - 1);
        var end = ((nuint)data + (nuint)bytes) & ~(Size - 1);
        try
        {
            _ = madvise((void*)start, end - start, AdviseHugePage);
        }
        catch (Exception e) when (e is DllNotFoundException or EntryPointNotFoundException)
        {
            // no such C library: no hint
        }
    }
}

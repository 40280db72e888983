namespace Inference.Backends.Cpu;

/// <summary>How many threads are worth starting. Reads the operating system once; owns nothing.</summary>
internal static class CpuTopology
{
    /// <summary>Physical cores this process may use: hyper-threads share the FMA units and the caches that the kernels live on.</summary>
    public static int PhysicalCores()
    {
        var logical = Environment.ProcessorCount; // knows affinity and container quotas
        try
        {
            var cores = new HashSet<string>();
            foreach (var cpu in Directory.EnumerateDirectories("/sys/devices/system/cpu", "cpu*"))
            {
                var siblings = Path.Combine(cpu, "topology", "thread_siblings_list");
                if (File.Exists(siblings)) cores.Add(File.ReadAllText(siblings).Trim());
            }
            return cores.Count == 0 ? logical : Math.Min(cores.Count, logical);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return logical; // not Linux, or a sandbox
        }
    }

    /// <summary>The processor's name for people, e.g. <c>AMD EPYC 9B14</c>.</summary>
    public static string ProcessorName()
    {
        try
        {
            foreach (var line in File.ReadLines("/proc/cpuinfo"))
            {
                if (line.StartsWith("model name", StringComparison.Ordinal)) return line[(line.IndexOf(':') + 1)..].Trim();
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // not Linux
        }
        return System.Runtime.InteropServices.RuntimeInformation.ProcessArchitecture.ToString();
    }
}

using Inference.Backends.Cpu;
using Inference.Backends.Reference;

namespace Inference.Backends.Tests.Conformance;

/// <summary>The backends that the conformance suite runs on; a new one is one line.</summary>
internal static class BackendCases
{
    public static readonly Dictionary<string, Func<IBackend>> All = new()
    {
        ["reference"] = () => new ReferenceBackend(poison: true),
        ["cpu"] = () => new CpuBackend(threads: 2),
        ["cpu, every loop shared"] = () => new CpuBackend(threads: 3, grainWork: 1),
    };
}

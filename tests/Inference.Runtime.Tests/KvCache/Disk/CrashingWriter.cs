using System.Globalization;
using System.Runtime.CompilerServices;

namespace Inference.Runtime.Tests.KvCache.Disk;

/// <summary>Turns this assembly, started with a variable set, into the process that <see cref="KillTests"/> kills, before any test is looked for.</summary>
internal static class CrashingWriter
{
    /// <summary>A seed and a folder, separated by a space.</summary>
    public const string Variable = "INFERENCE_TEST_KV_WRITER";

#pragma warning disable CA2255  // a module initializer in an application: there is no other way in before the test runner's own
    [ModuleInitializer]
#pragma warning restore CA2255
    internal static void Enter()
    {
        if (Environment.GetEnvironmentVariable(Variable) is not { } argument) return;
        int space = argument.IndexOf(' ');
        KillTests.WriteForEver(int.Parse(argument.AsSpan(0, space), CultureInfo.InvariantCulture), argument[(space + 1)..]);
    }
}

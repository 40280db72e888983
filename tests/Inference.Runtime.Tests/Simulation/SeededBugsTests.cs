// Do the simulations find bugs? The catalogue of docs/simulation.md is planted in a build of its own, and every one must be found.
using System.Diagnostics;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Simulation;

public sealed class SeededBugsTests(ITestOutputHelper output)
{
    private static readonly TimeSpan Patience = TimeSpan.FromMinutes(10);

    [Fact]
    public async Task Every_seeded_bug_is_found()
    {
        var (built, build) = await RunAsync("build", "tests/Inference.Simulation", "-c", "Release", "-p:SeededBugs=true", "-v", "quiet", "--nologo");
        Assert.True(built == 0, build);
        var (found, table) = await RunAsync("artifacts/seeded/bin/Inference.Simulation/Release/net10.0/Inference.Simulation.dll", "bugs", "--seconds", "60");
        output.WriteLine(table);
        Assert.True(found == 0, table);
        Assert.Contains("24/24", table);
    }

    private static async Task<(int ExitCode, string Output)> RunAsync(params string[] arguments)
    {
        var start = new ProcessStartInfo("dotnet", arguments) { WorkingDirectory = RepositoryPaths.Root, RedirectStandardOutput = true, RedirectStandardError = true };
        // What the runner of the tests sets for itself is not for the build.
        foreach (string name in start.Environment.Keys.Where(k => k.StartsWith("MSBUILD", StringComparison.OrdinalIgnoreCase) || k.StartsWith("TESTINGPLATFORM", StringComparison.OrdinalIgnoreCase)).ToList())
            start.Environment.Remove(name);
        start.Environment["MSBUILDDISABLENODEREUSE"] = "1";
        using var process = Process.Start(start)!;
        var (text, errors) = (process.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
        try
        {
            await process.WaitForExitAsync(TestContext.Current.CancellationToken).WaitAsync(Patience);
        }
        finally
        {
            if (!process.HasExited) process.Kill(entireProcessTree: true);
        }
        return (process.ExitCode, await text + await errors);
    }
}

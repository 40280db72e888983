// Runs the built program `inference` as a user does: a process of its own, with arguments, standard input, and nothing else. The variables that the
// program reads are taken away, so that a test means the same on every machine.
using System.Diagnostics;
using System.Text;
using System.Text.Json;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

/// <summary>What a run of the program left behind.</summary>
internal sealed record CliResult(int ExitCode, string Out, string Error)
{
    /// <summary>The run was right: exit code 0.</summary>
    public CliResult Succeeds()
    {
        Assert.True(ExitCode == 0, $"exit code {ExitCode}\n{Error}\n{Out}");
        return this;
    }

    /// <summary>The run was refused with this exit code and a clear message: all parts in it, no stack trace, nothing on standard output.</summary>
    public CliResult Fails(int exitCode, params string[] parts)
    {
        Assert.True(ExitCode == exitCode, $"exit code {ExitCode} instead of {exitCode}\n{Error}\n{Out}");
        Assert.StartsWith("error: ", Error, StringComparison.Ordinal);
        foreach (string part in parts) Assert.Contains(part, Error, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", Error, StringComparison.Ordinal);
        Assert.DoesNotContain("Unexpected:", Error, StringComparison.Ordinal);
        Assert.Equal("", Out);
        return this;
    }

    /// <summary>Standard output as one JSON value.</summary>
    public JsonElement Json => JsonDocument.Parse(Succeeds().Out).RootElement;

    /// <summary>Standard output as one JSON value per line.</summary>
    public IReadOnlyList<JsonElement> JsonLines =>
        [.. Succeeds().Out.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(l => JsonDocument.Parse(l).RootElement)];
}

internal static class Cli
{
    private static readonly TimeSpan Limit = TimeSpan.FromSeconds(90);

    // The program as the build left it, of the configuration that the tests were built in.
    private static readonly string Program = RepositoryPaths.Combine(
        "src", "Inference.Server", "bin", Path.GetFileName(Path.GetDirectoryName(AppContext.BaseDirectory.TrimEnd('/', '\\'))!), "net10.0",
        OperatingSystem.IsWindows() ? "inference.exe" : "inference");

    public static CliResult Run(params string[] arguments) => RunWithInput("", arguments);

    public static CliResult RunWithInput(string input, params string[] arguments)
    {
        using var process = Start(arguments);
        var (output, error) = (process.StandardOutput.ReadToEndAsync(), process.StandardError.ReadToEndAsync());
        process.StandardInput.Write(input);
        process.StandardInput.Close();
        if (!process.WaitForExit(Limit))
        {
            process.Kill(entireProcessTree: true);
            Assert.Fail($"inference {string.Join(' ', arguments)} did not end within {Limit.TotalSeconds} s");
        }
        return new CliResult(process.ExitCode, output.Result, error.Result);
    }

    /// <summary>Starts the program; the caller talks to it.</summary>
    public static Process Start(params string[] arguments)
    {
        var start = new ProcessStartInfo(Program, arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            StandardInputEncoding = new UTF8Encoding(false),
            StandardOutputEncoding = Encoding.UTF8,
            StandardErrorEncoding = Encoding.UTF8,
        };
        foreach (string name in start.Environment.Keys.Where(k => k.StartsWith("INFERENCE_", StringComparison.Ordinal)).ToList())
            start.Environment.Remove(name);
        return Process.Start(start)!;
    }
}

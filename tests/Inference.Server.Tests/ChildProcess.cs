using System.ComponentModel;
using System.Diagnostics;

namespace Inference.Server.Tests;

/// <summary>Programs that tests run.</summary>
internal static class ChildProcess
{
    public static Process Start(string program, IEnumerable<string> arguments, string? folder = null, IReadOnlyDictionary<string, string>? environment = null)
    {
        var info = new ProcessStartInfo(program, arguments)
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            RedirectStandardInput = true,
            WorkingDirectory = folder ?? "",
        };
        foreach (var (name, value) in environment ?? new Dictionary<string, string>()) info.Environment[name] = value;
        return Process.Start(info)!;
    }

    /// <summary>Runs to the end; exit code, and both outputs together. After the limit the program is killed and the exit code is -1.</summary>
    public static async Task<(int ExitCode, string Output)> RunAsync(string program, IEnumerable<string> arguments, string? folder, TimeSpan limit)
    {
        using var process = Start(program, arguments, folder);
        process.StandardInput.Close();
        var output = process.StandardOutput.ReadToEndAsync();
        var errors = process.StandardError.ReadToEndAsync();
        try
        {
            await process.WaitForExitAsync().WaitAsync(limit);
        }
        catch (TimeoutException)
        {
            process.Kill(entireProcessTree: true);
            return (-1, $"{await output}{await errors}\nkilled after {limit}");
        }
        return (process.ExitCode, await output + await errors);
    }

    /// <summary>Whether the program is there and ends well.</summary>
    public static bool Exists(string program, params string[] arguments)
    {
        try
        {
            return RunAsync(program, arguments, null, TimeSpan.FromSeconds(20)).GetAwaiter().GetResult().ExitCode == 0;
        }
        catch (Win32Exception)
        {
            return false;
        }
    }
}

using System.Text.Json;
using Grpc.Core;
using Inference.Server.Errors;
using Inference.Server.Hosting;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>The process itself: signals, exit codes, and the model that ships with it answering through it.</summary>
public sealed class ProcessTests
{
    [Fact]
    public async Task Sigterm_ends_the_process_well_after_its_streams()
    {
        await using var server = await ServerProcess.StartServingAsync();
        var client = server.Completions;
        var calls = Enumerable.Range(0, 4).Select(i => client.Generate(Rpc.Ids(400, (uint)i + 40, 41, 42))).ToList();
        foreach (var call in calls) Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));

        await server.SignalAsync("TERM");
        await server.UntilAsync(() => server.Log.Contains("State: Draining", StringComparison.Ordinal), "the server drains");
        (await Rpc.FailureAsync(() => client.CompleteAsync(Rpc.Ids(1)).ResponseAsync)).Is(StatusCode.Unavailable, ErrorReason.Draining);
        foreach (var call in calls)
        {
            var events = await Rpc.ReadAsync(call);
            Assert.Equal(400, events.Where(e => e.Delta is not null).Sum(e => e.Delta.TokenIds.Count));
        }
        Assert.Equal(ExitCode.Stopped, await server.ExitAsync());
    }

    [Fact]
    public async Task A_second_signal_ends_the_process_at_once()
    {
        await using var server = await ServerProcess.StartServingAsync();
        using var call = server.Completions.Generate(Rpc.Ids(500_000));
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        await server.SignalAsync("INT");
        await server.UntilAsync(() => server.Log.Contains("State: Draining", StringComparison.Ordinal), "the server drains");
        await Task.Delay(400);
        await server.SignalAsync("TERM");
        Assert.Equal(ExitCode.Signalled + 15, await server.ExitAsync(5));
    }

    [Fact]
    public async Task A_configuration_that_cannot_work_is_told_whole_and_has_its_exit_code()
    {
        await using var server = ServerProcess.Start("--queue-max", "none", "--tls-listen", "127.0.0.1:0");
        Assert.Equal(ExitCode.Configuration, await server.ExitAsync());
        Assert.Contains("--queue-max: 'none'", server.Log, StringComparison.Ordinal);
        Assert.Contains("--tls-certificate", server.Log, StringComparison.Ordinal);
    }

    [Fact]
    public async Task An_address_that_is_taken_is_told_in_a_line()
    {
        using var taken = new System.Net.Sockets.TcpListener(System.Net.IPAddress.Loopback, 0);
        taken.Start();
        await using var server = ServerProcess.Start("--tls-listen", "none", "--http-listen", taken.LocalEndpoint.ToString()!);
        Assert.Equal(ExitCode.Configuration, await server.ExitAsync());
        Assert.Contains("address already in use", server.Log, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", server.Log, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_certificate_that_is_none_is_told_in_a_line()
    {
        string file = Path.Combine(RepositoryPaths.Pebble, "config.json");
        await using var server = ServerProcess.Start("--tls-listen", "127.0.0.1:0", "--tls-certificate", file, "--tls-key", file);
        Assert.Equal(ExitCode.Configuration, await server.ExitAsync());
        Assert.Contains("--tls-certificate", server.Log, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", server.Log, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_cache_that_is_too_small_is_a_matter_of_configuration()
    {
        await using var server = ServerProcess.Start("--kv-cache-bytes", "1MiB");
        Assert.Equal(ExitCode.Configuration, await server.ExitAsync());
        Assert.DoesNotContain("   at ", server.Log, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_folder_that_is_no_model_has_its_exit_code()
    {
        using var folder = new TemporaryFolder();
        await using var server = ServerProcess.Start("--model", folder.Path);
        Assert.Equal(ExitCode.EngineFailed, await server.ExitAsync());
        Assert.Contains("The model could not be loaded: ", server.Log, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", server.Log, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Pebble_says_what_it_was_taught_to_many_at_once_and_nothing_of_it_is_logged()
    {
        await using var server = await ServerProcess.StartServingAsync();
        var client = server.Completions;
        using var examples = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(RepositoryPaths.Pebble, "examples.json")));
        // Below that distance a right implementation may choose the other token.
        var clear = examples.RootElement.EnumerateArray().Where(e => e.GetProperty("smallest_gap").GetDouble() > 0.01).ToList();
        Assert.True(clear.Count > 10);
        await Task.WhenAll(clear.Select(async example =>
        {
            var response = await client.CompleteAsync(new()
            {
                Text = example.GetProperty("prompt").GetString(),
                Output = new() { SpecialTokens = true },
            });
            string completion = example.GetProperty("completion").GetString()!;
            Assert.Equal(completion[..completion.LastIndexOf("<｜end", StringComparison.Ordinal)], response.Text);
            Assert.Equal(V1.FinishReason.Stop, response.Finished.Reason);
            Assert.Equal(example.GetProperty("prompt_ids").GetArrayLength(), response.Started.PromptTokens);
        }));
        Assert.DoesNotContain("Pebble, a tiny", server.Log, StringComparison.Ordinal);
        await server.SignalAsync("TERM");
        Assert.Equal(ExitCode.Stopped, await server.ExitAsync());
    }
}

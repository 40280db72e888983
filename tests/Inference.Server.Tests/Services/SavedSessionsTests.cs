using Grpc.Core;
using Inference.Server.Errors;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Services;

/// <summary>Sessions and prefixes on disk, across servers that start and stop. The model's rows are hashes of what they stand for, and it looks at
/// every row it may read, so state that came back wrong is an error and not only a slow answer.</summary>
public sealed class SavedSessionsTests
{
    [Fact(SkipUnless = nameof(IsLinux), Skip = "State on disk needs Linux.")]
    public async Task A_saved_session_goes_on_in_another_process_as_if_nothing_had_happened()
    {
        using var folder = new TemporaryFolder();
        List<uint> first, second, whole;
        await using (var server = await StartAsync(folder))
        {
            var (sessions, completions) = Clients(server);
            await sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 1000) });
            first = [.. (await completions.CompleteAsync(Going("a", Numbers(2, 30)))).TokenIds];
            var saved = await sessions.SaveSessionAsync(new() { SessionId = "a" });
            Assert.Equal((true, 1035, 1035), (saved.Saved, saved.SavedTokens, saved.Tokens));
            Assert.Equal(1034, saved.Disk.Tokens);
            Assert.True(saved.Disk.Bytes > 0);
            await sessions.CreateSessionAsync(new() { SessionId = "not saved", Content = Ids(3, 10) }).ResponseAsync.ContinueWith(_ => { }, TaskScheduler.Default);
        }
        await using (var server = await StartAsync(folder))
        {
            var (sessions, completions) = Clients(server);
            var listed = Assert.Single((await sessions.ListSessionsAsync(new())).Sessions);
            Assert.Equal(("a", 1035, 0, 1034, true), (listed.SessionId, listed.Tokens, listed.Memory.Tokens, listed.Disk.Tokens, listed.Saved));
            var answer = await completions.CompleteAsync(Going("a", Numbers(4, 30)));
            second = [.. answer.TokenIds];
            Assert.Equal((1034, 1034), (answer.Finished.Usage.CachedTokens, answer.Finished.Usage.CachedDiskTokens));
            // What was saved is still what it was.
            Assert.Equal(1035, (await sessions.GetSessionAsync(new() { SessionId = "a" })).SavedTokens);
            Assert.Equal(1070, (await sessions.GetSessionAsync(new() { SessionId = "a" })).Tokens);
        }
        await using (var server = await TestServer.StartAsync())
        {
            var (_, completions) = Clients(server);
            whole = [.. Numbers(1, 1000), .. Numbers(2, 30)];
            Assert.Equal(await AnswerAsync(completions, whole), first);
            whole = [.. whole, .. first, .. Numbers(4, 30)];
            Assert.Equal(await AnswerAsync(completions, whole), second);
        }
        await using (var server = await StartAsync(folder))
        {
            var (sessions, completions) = Clients(server);
            // The change after the save was not saved.
            Assert.Equal(1035, (await sessions.GetSessionAsync(new() { SessionId = "a" })).Tokens);
            var restored = await sessions.RestoreSessionAsync(new() { SessionId = "a" });
            Assert.InRange(restored.Memory.Tokens, 1034, 1035);
            Assert.Equal(second, [.. (await completions.CompleteAsync(Going("a", Numbers(4, 30)))).TokenIds]);
            await sessions.DeleteSessionAsync(new() { SessionId = "a" });
        }
        await using (var server = await StartAsync(folder))
            Assert.Empty((await Clients(server).Sessions.ListSessionsAsync(new())).Sessions);
    }

    [Fact(SkipUnless = nameof(IsLinux), Skip = "State on disk needs Linux.")]
    public async Task A_prompt_is_found_on_disk_after_a_restart()
    {
        using var folder = new TemporaryFolder();
        var prompt = Numbers(1, 900);
        List<uint> answer;
        await using (var server = await StartAsync(folder))
        {
            answer = await AnswerAsync(Clients(server).Completions, prompt);
            await server.UntilAsync(() => server.Served.Engine.Stats.Disk is { Waiting: 0, Written: > 0 }, "the answer's state is on disk");
        }
        await using (var server = await StartAsync(folder))
        {
            var (_, completions) = Clients(server);
            var again = await completions.CompleteAsync(Whole([.. prompt, .. answer, .. Numbers(2, 10)]));
            Assert.Equal((904, 904), (again.Finished.Usage.CachedTokens, again.Finished.Usage.CachedDiskTokens));
            var next = await completions.CompleteAsync(Whole([.. prompt, .. answer, .. Numbers(3, 10)]));
            Assert.Equal((904, 0), (next.Finished.Usage.CachedTokens, next.Finished.Usage.CachedDiskTokens));
        }
    }

    [Fact(SkipUnless = nameof(IsLinux), Skip = "State on disk needs Linux.")]
    public async Task Without_a_disk_saving_says_what_to_do_and_a_folder_of_others_is_refused()
    {
        await using (var server = await TestServer.StartAsync())
        {
            var (sessions, _) = Clients(server);
            await sessions.CreateSessionAsync(new() { SessionId = "a" });
            var failure = await Rpc.FailureAsync(() => sessions.SaveSessionAsync(new() { SessionId = "a" }).ResponseAsync);
            failure.Is(StatusCode.FailedPrecondition, ErrorReason.NoDiskTier);
            Assert.Contains("--kv-disk", failure.Message, StringComparison.Ordinal);
        }
        using var folder = new TemporaryFolder();
        await (await StartAsync(folder)).DisposeAsync();
        File.WriteAllText(Path.Combine(folder.Path, "state", "thesis.txt"), "mine");
        await using var refused = await StartAsync(folder);
        Assert.Equal(Inference.Server.Hosting.ServingState.Failed, refused.Engine.State);
        Assert.Contains("thesis.txt", refused.Log.ToString(), StringComparison.Ordinal);
        Assert.Equal("mine", File.ReadAllText(Path.Combine(folder.Path, "state", "thesis.txt")));
    }

    [Fact(SkipUnless = nameof(IsLinux), Skip = "State on disk needs Linux.")]
    public async Task A_damaged_session_is_not_used_not_deleted_and_reported()
    {
        using var folder = new TemporaryFolder();
        await using (var server = await StartAsync(folder))
        {
            var (sessions, _) = Clients(server);
            await sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 300) });
            await sessions.SaveSessionAsync(new() { SessionId = "a" });
        }
        string file = Assert.Single(Directory.GetFiles(Path.Combine(folder.Path, "sessions"), "*.session"));
        byte[] bytes = File.ReadAllBytes(file);
        bytes[bytes.Length / 2] ^= 1;
        File.WriteAllBytes(file, bytes);
        await using (var server = await StartAsync(folder))
        {
            Assert.Empty((await Clients(server).Sessions.ListSessionsAsync(new())).Sessions);
            Assert.Contains("1 damaged", server.Log.ToString(), StringComparison.Ordinal);
        }
        Assert.Equal(bytes, File.ReadAllBytes(file));
    }

    public static bool IsLinux => OperatingSystem.IsLinux();

    private static Task<TestServer> StartAsync(TemporaryFolder folder) =>
        TestServer.StartAsync(new Dictionary<string, string> { ["kv-disk"] = folder.Path, ["kv-disk-bytes"] = "64MiB" });

    private static (V1.Sessions.SessionsClient Sessions, V1.Completions.CompletionsClient Completions) Clients(TestServer server)
    {
        var channel = server.Channel();
        return (new(channel), new(channel));
    }

    private static async Task<List<uint>> AnswerAsync(V1.Completions.CompletionsClient client, List<uint> ids) =>
        [.. (await client.CompleteAsync(Whole(ids))).TokenIds];

    private static V1.GenerateRequest Whole(List<uint> ids) => new()
    {
        TokenIds = new() { Ids = { ids } },
        Stopping = new() { MaxTokens = 5, IgnoreEos = true },
        Sampling = new() { Temperature = 0 },
    };

    private static V1.GenerateRequest Going(string id, List<uint> ids)
    {
        var request = Whole(ids);
        request.SessionId = id;
        return request;
    }

    private static V1.SessionContent Ids(int seed, int count) => new() { TokenIds = new() { Ids = { Numbers(seed, count) } } };

    private static List<uint> Numbers(int seed, int count)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (uint)random.Next(10, 1000))];
    }
}

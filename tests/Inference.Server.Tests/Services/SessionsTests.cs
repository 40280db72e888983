using Grpc.Core;
using Google.Protobuf.WellKnownTypes;
using Inference.Server.Errors;
using Xunit;

namespace Inference.Server.Tests.Services;

/// <summary>Sessions over the wire. The model's next token is a hash of everything before it, so a session with a token too many, too few or of
/// somebody else's answers differently from the same tokens sent as one prompt.</summary>
public sealed class SessionsTests
{
    [Fact]
    public async Task A_session_answers_as_its_tokens_sent_whole_and_computes_only_what_is_new()
    {
        await using var server = await TestServer.StartAsync();
        var client = new Client(server);
        var made = await client.Sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 600) });
        Assert.Equal((600, 600), (made.Tokens, made.Memory.Tokens));
        Assert.True(made.Memory.Bytes > 0);
        var known = Numbers(1, 600);
        foreach (int turn in (int[])[2, 3, 4])
        {
            known.AddRange(Numbers(turn, 50));
            var answer = await client.GoOnAsync("a", Numbers(turn, 50));
            var whole = await client.WholeAsync(known);
            Assert.Equal(whole.TokenIds, answer.TokenIds);
            Assert.Equal(known.Count, answer.Finished.Usage.PromptTokens);
            Assert.Equal(known.Count - 51, answer.Finished.Usage.CachedTokens + (turn == 2 ? -1 : 0));
            known.AddRange(answer.TokenIds);
        }
        Assert.Equal(known.Count, (await client.GetAsync("a")).Tokens);
    }

    [Fact]
    public async Task Forks_go_their_own_ways()
    {
        await using var server = await TestServer.StartAsync();
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 300) });
        var fork = await client.Sessions.ForkSessionAsync(new() { SessionId = "a", NewSessionId = "b" });
        Assert.Equal((300, 300), (fork.Tokens, fork.Memory.Tokens));
        var shorter = await client.Sessions.ForkSessionAsync(new() { SessionId = "a", Tokens = 100 });
        var a = await client.GoOnAsync("a", Numbers(2, 10));
        var b = await client.GoOnAsync("b", Numbers(3, 10));
        var c = await client.GoOnAsync(shorter.SessionId, Numbers(4, 10));
        Assert.Equal((await client.WholeAsync([.. Numbers(1, 300), .. Numbers(2, 10)])).TokenIds, a.TokenIds);
        Assert.Equal((await client.WholeAsync([.. Numbers(1, 300), .. Numbers(3, 10)])).TokenIds, b.TokenIds);
        Assert.Equal((await client.WholeAsync([.. Numbers(1, 300).Take(100), .. Numbers(4, 10)])).TokenIds, c.TokenIds);
        Assert.Equal(((string[])["a", "b", shorter.SessionId]).Order(StringComparer.Ordinal), await client.ListAsync());
    }

    [Fact]
    public async Task Truncating_takes_back_what_was_said()
    {
        await using var server = await TestServer.StartAsync();
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 300) });
        await client.GoOnAsync("a", Numbers(2, 10));
        Assert.Equal(299, (await client.Sessions.TruncateSessionAsync(new() { SessionId = "a", Tokens = 299 })).Tokens);
        var answer = await client.GoOnAsync("a", Numbers(3, 10));
        Assert.Equal((await client.WholeAsync([.. Numbers(1, 299), .. Numbers(3, 10)])).TokenIds, answer.TokenIds);
        var failure = await Rpc.FailureAsync(() => client.Sessions.TruncateSessionAsync(new() { SessionId = "a", Tokens = 10_000 }).ResponseAsync);
        Assert.Equal(StatusCode.InvalidArgument, failure.Code);
        Assert.Equal(0, (await client.Sessions.TruncateSessionAsync(new() { SessionId = "a", Tokens = 0 })).Tokens);
    }

    [Fact]
    public async Task A_chat_goes_on_message_by_message_as_the_whole_conversation_would()
    {
        await using var server = await TestServer.StartAsync();
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "a", Content = new() { Chat = Chat((V1.Role.System, "Be brief.")) } });
        var first = await client.Completions.CompleteAsync(new()
        {
            SessionId = "a",
            Chat = Chat((V1.Role.User, "How are you?")),
            Stopping = new() { MaxTokens = 4, IgnoreEos = true },
        });
        var begin = await client.RenderAsync(Chat((V1.Role.System, "Be brief."), (V1.Role.User, "How are you?")));
        Assert.Equal((await client.WholeAsync(begin, 4)).TokenIds, first.TokenIds);
        var second = await client.Completions.CompleteAsync(new()
        {
            SessionId = "a",
            Chat = Chat((V1.Role.User, "And now?")),
            Stopping = new() { MaxTokens = 4, IgnoreEos = true },
        });
        // The cut answer is closed by an end token, as the encoding closes it.
        var next = await client.RenderAsync(Chat((V1.Role.User, "And now?")));
        var end = (await new V1.Models.ModelsClient(server.Channel()).GetModelAsync(new())).EndTokenIds[0];
        Assert.Equal((await client.WholeAsync([.. begin, .. first.TokenIds, end, .. next.Skip(1)], 4)).TokenIds, second.TokenIds);
    }

    [Fact]
    public async Task An_answer_goes_on_where_it_was_cut()
    {
        await using var server = await TestServer.StartAsync();
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "a" });
        var first = await client.GoOnAsync("a", Numbers(1, 40));
        var second = await client.Completions.CompleteAsync(new() { SessionId = "a", Stopping = new() { MaxTokens = 5, IgnoreEos = true } });
        var whole = await client.WholeAsync(Numbers(1, 40), 10);
        Assert.Equal(whole.TokenIds, [.. first.TokenIds, .. second.TokenIds]);
        var failure = await Rpc.FailureAsync(() => client.Completions.CompleteAsync(new() { SessionId = Client.Empty(client) }).ResponseAsync);
        Assert.Equal(StatusCode.InvalidArgument, failure.Code);
    }

    [Fact]
    public async Task A_pin_keeps_the_state_that_would_have_given_way()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["prefixes-max"] = "4", ["kv-cache-bytes"] = "4MiB" });
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "kept", Content = Ids(1, 900) });
        await client.Sessions.CreateSessionAsync(new() { SessionId = "not", Content = Ids(2, 900) });
        var pinned = await client.Sessions.PinSessionAsync(new() { SessionId = "kept", Duration = Duration.FromTimeSpan(TimeSpan.FromMinutes(5)) });
        Assert.InRange(pinned.PinnedUntil.ToDateTime() - DateTime.UtcNow, TimeSpan.FromMinutes(4), TimeSpan.FromMinutes(5));
        for (int i = 0; i < 6; i++) await client.WholeAsync(Numbers(10 + i, 900));
        Assert.Equal(900, (await client.GetAsync("kept")).Memory.Tokens);
        Assert.Equal(0, (await client.GetAsync("not")).Memory.Tokens);
        // It moves along.
        await client.GoOnAsync("kept", Numbers(3, 20));
        for (int i = 0; i < 6; i++) await client.WholeAsync(Numbers(20 + i, 900));
        Assert.Equal(924, (await client.GetAsync("kept")).Memory.Tokens);
        var unpinned = await client.Sessions.PinSessionAsync(new() { SessionId = "kept", Duration = Duration.FromTimeSpan(TimeSpan.Zero) });
        Assert.Null(unpinned.PinnedUntil);
        for (int i = 0; i < 6; i++) await client.WholeAsync(Numbers(30 + i, 900));
        Assert.Equal(0, (await client.GetAsync("kept")).Memory.Tokens);
    }

    [Fact]
    public async Task A_pin_ends_by_itself_and_too_many_are_refused()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["prefixes-max"] = "4" });
        var client = new Client(server);
        foreach (string id in (string[])["a", "b", "c"]) await client.Sessions.CreateSessionAsync(new() { SessionId = id, Content = Ids(id[0], 300) });
        await client.Sessions.PinSessionAsync(new() { SessionId = "a", Duration = Duration.FromTimeSpan(TimeSpan.FromSeconds(1)) });
        await client.Sessions.PinSessionAsync(new() { SessionId = "b", Duration = Duration.FromTimeSpan(TimeSpan.FromMinutes(1)) });
        Task<V1.Session> PinC() => client.Sessions.PinSessionAsync(new() { SessionId = "c", Duration = Duration.FromTimeSpan(TimeSpan.FromMinutes(1)) }).ResponseAsync;
        var failure = await Rpc.FailureAsync(PinC);
        Assert.Equal((StatusCode.ResourceExhausted, ErrorReason.SessionLimit), (failure.Code, failure.Reason));
        var session = new V1.Session();
        for (int i = 0; i < 100 && session.PinnedUntil is null; i++)
        {
            await Task.Delay(100);
            try
            {
                session = await PinC();
            }
            catch (RpcException)
            {
            }
        }
        Assert.NotNull(session.PinnedUntil);
        Assert.Null((await client.GetAsync("a")).PinnedUntil);
    }

    [Fact]
    public async Task A_call_that_fails_leaves_the_session_as_it_was()
    {
        await using var server = await TestServer.StartAsync(model: new(vocab: 1024, contextMax: 4096, pageRows: 32) { BeforeStep = _ => Thread.Sleep(5) });
        var client = new Client(server);
        await client.Sessions.CreateSessionAsync(new() { SessionId = "a", Content = Ids(1, 40) });
        using (var call = client.Completions.Generate(Going("a", Numbers(2, 5), 2000)))
        {
            for (int i = 0; i < 4; i++) await call.ResponseStream.MoveNext(default);
            var busy = await Rpc.FailureAsync(() => client.GoOnAsync("a", Numbers(3, 5)));
            Assert.Equal((StatusCode.Aborted, ErrorReason.SessionBusy), (busy.Code, busy.Reason));
            Assert.True((await client.GetAsync("a")).Busy);
        }
        V1.Session session;
        do session = await client.GetAsync("a"); while (session.Busy);
        Assert.Equal(40, session.Tokens);
        var late = await Rpc.FailureAsync(() => client.Completions.CompleteAsync(Going("a", Numbers(2, 5), 2000), deadline: DateTime.UtcNow.AddMilliseconds(300)).ResponseAsync);
        Assert.Equal(StatusCode.DeadlineExceeded, late.Code);
        do session = await client.GetAsync("a"); while (session.Busy);
        Assert.Equal(40, session.Tokens);
        var tooLong = await Rpc.FailureAsync(() => client.Sessions.AppendToSessionAsync(new() { SessionId = "a", Content = Ids(1, 5000) }).ResponseAsync);
        Assert.Equal(StatusCode.InvalidArgument, tooLong.Code);
        Assert.Equal((40, false), ((await client.GetAsync("a")).Tokens, (await client.GetAsync("a")).Busy));
        var answer = await client.GoOnAsync("a", Numbers(2, 5));
        Assert.Equal((await client.WholeAsync([.. Numbers(1, 40), .. Numbers(2, 5)])).TokenIds, answer.TokenIds);
    }

    [Fact]
    public async Task Tenants_see_their_own_only_and_names_are_checked()
    {
        await using var server = await TestServer.StartAsync();
        var (mine, yours) = (new Client(server), new Client(server, "you"));
        await mine.Sessions.CreateSessionAsync(new() { SessionId = "a" });
        Assert.Empty(await yours.ListAsync());
        Assert.Equal(ErrorReason.SessionNotFound, (await Rpc.FailureAsync(() => yours.GetAsync("a"))).Reason);
        Assert.Equal(ErrorReason.SessionNotFound, (await Rpc.FailureAsync(() => yours.GoOnAsync("a", Numbers(1, 3)))).Reason);
        Assert.Equal(ErrorReason.SessionExists, (await Rpc.FailureAsync(() => mine.Sessions.CreateSessionAsync(new() { SessionId = "a" }).ResponseAsync)).Reason);
        foreach (string bad in (string[])["", "a/b", "..\\x", new('x', 129), "ä"])
            Assert.Equal(StatusCode.InvalidArgument, (await Rpc.FailureAsync(() => mine.Sessions.CreateSessionAsync(new() { SessionId = bad }).ResponseAsync)).Code);
        await mine.Sessions.DeleteSessionAsync(new() { SessionId = "a" });
        Assert.Empty(await mine.ListAsync());
        Assert.Equal(ErrorReason.SessionNotFound, (await Rpc.FailureAsync(() => mine.GetAsync("a"))).Reason);
    }

    private static List<uint> Numbers(int seed, int count)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (uint)random.Next(10, 1000))];
    }

    private static V1.SessionContent Ids(int seed, int count) => new() { TokenIds = new() { Ids = { Numbers(seed, count) } } };

    private static V1.ChatPrompt Chat(params (V1.Role Role, string Text)[] messages) => new()
    {
        Thinking = V1.ThinkingMode.Off,
        Messages = { messages.Select(m => new V1.Message { Role = m.Role, Content = { new V1.ContentPart { Text = m.Text } } }) },
    };

    private static V1.GenerateRequest Going(string id, List<uint> ids, int maxTokens) => new()
    {
        SessionId = id,
        TokenIds = new() { Ids = { ids } },
        Stopping = new() { MaxTokens = maxTokens, IgnoreEos = true },
        Sampling = new() { Temperature = 0 },
    };

    private sealed class Client(TestServer server, string? tenant = null)
    {
        private readonly CallInvoker _invoker = tenant is null
            ? server.Channel().CreateCallInvoker()
            : Grpc.Core.Interceptors.CallInvokerExtensions.Intercept(server.Channel().CreateCallInvoker(), m => { m.Add("x-tenant", tenant); return m; });

        public V1.Sessions.SessionsClient Sessions => new(_invoker);
        public V1.Completions.CompletionsClient Completions => new(_invoker);

        public static string Empty(Client client) => client.Sessions.CreateSession(new()).SessionId;

        public async Task<V1.CompleteResponse> GoOnAsync(string id, List<uint> ids) => await Completions.CompleteAsync(Going(id, ids, 5));

        public async Task<V1.CompleteResponse> WholeAsync(List<uint> ids, int maxTokens = 5) => await Completions.CompleteAsync(new()
        {
            TokenIds = new() { Ids = { ids } },
            Stopping = new() { MaxTokens = maxTokens, IgnoreEos = true },
            Sampling = new() { Temperature = 0 },
        });

        public async Task<V1.Session> GetAsync(string id) => await Sessions.GetSessionAsync(new() { SessionId = id });

        public async Task<IEnumerable<string>> ListAsync() => (await Sessions.ListSessionsAsync(new())).Sessions.Select(s => s.SessionId);

        public async Task<List<uint>> RenderAsync(V1.ChatPrompt chat) =>
            [.. (await new V1.Tokenization.TokenizationClient(_invoker).RenderChatAsync(new() { Chat = chat })).TokenIds];
    }
}

using System.Diagnostics;
using Grpc.Core;
using Inference.Server.Errors;
using Inference.Server.Options;
using Xunit;

namespace Inference.Server.Tests.Services;

/// <summary>Deadlines, cancellation, slow readers, sizes, metadata: what gRPC promises, down to the engine.</summary>
public sealed class CallTests
{
    [Fact]
    public async Task A_deadline_ends_the_call_and_the_work()
    {
        await using var server = await Slow(10);
        var clock = Stopwatch.StartNew();
        var events = new List<V1.GenerateEvent>();
        var failure = await Rpc.FailureAsync(async () =>
        {
            using var call = server.Completions.Generate(Rpc.Ids(4000), deadline: DateTime.UtcNow.AddMilliseconds(400));
            await foreach (var e in call.ResponseStream.ReadAllAsync()) events.Add(e);
        });
        Assert.Equal(StatusCode.DeadlineExceeded, failure.Code);
        Assert.InRange(clock.ElapsedMilliseconds, 300, 10_000);
        Assert.NotEmpty(events);
        await server.UntilAsync(() => server.IsIdle, "the engine has let go");
    }

    [Fact]
    public async Task A_deadline_is_kept_when_the_engine_is_stuck()
    {
        using var stuck = new ManualResetEventSlim(true);
        await using var server = await TestServer.StartAsync(model: Model(_ => stuck.Wait()));
        stuck.Reset();
        var clock = Stopwatch.StartNew();
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(Rpc.Ids(5), deadline: DateTime.UtcNow.AddMilliseconds(300)).ResponseAsync);
        Assert.Equal(StatusCode.DeadlineExceeded, failure.Code);
        Assert.InRange(clock.ElapsedMilliseconds, 200, 10_000);
        stuck.Set();
        await server.UntilAsync(() => server.IsIdle, "the engine has let go");
    }

    [Fact]
    public async Task Tenants_share_no_cached_tokens()
    {
        await using var server = await TestServer.StartAsync();
        Assert.Equal(0, await Cached("a"));
        Assert.Equal(0, await Cached("b"));
        Assert.Equal(0, await Cached(null));
        Assert.Equal(Prompt.Count - 1, await Cached("a"));
        var failure = await Rpc.FailureAsync(async () => await Cached("a\tb"));
        Assert.Equal(StatusCode.InvalidArgument, failure.Code);

        async Task<int> Cached(string? tenant)
        {
            var headers = new Metadata();
            if (tenant is not null) headers.Add("x-tenant", tenant);
            var request = new V1.GenerateRequest { TokenIds = new() { Ids = { Prompt } }, Stopping = new() { MaxTokens = 1 } };
            return (await server.Completions.CompleteAsync(request, headers)).Finished.Usage.CachedTokens;
        }
    }

    private static List<uint> Prompt => [.. Enumerable.Range(0, 700).Select(i => (uint)(i * 7 % 1000))];

    [Fact]
    public async Task A_first_token_that_is_late_is_told_while_the_engine_is_stuck()
    {
        using var stuck = new ManualResetEventSlim(true);
        await using var server = await TestServer.StartAsync(model: Model(_ => stuck.Wait()));
        stuck.Reset();
        var request = Rpc.Ids(5);
        request.FirstTokenTimeout = Google.Protobuf.WellKnownTypes.Duration.FromTimeSpan(TimeSpan.FromMilliseconds(300));
        foreach (bool streams in (bool[])[false, true])
        {
            var clock = Stopwatch.StartNew();
            var failure = await Rpc.FailureAsync(async () =>
            {
                if (!streams) await server.Completions.CompleteAsync(request);
                else await Rpc.ReadAsync(server.Completions.Generate(request));
            });
            failure.Is(StatusCode.DeadlineExceeded, ErrorReason.FirstTokenTimeout);
            Assert.InRange(clock.ElapsedMilliseconds, 290, 10_000);
        }
        stuck.Set();
        await server.UntilAsync(() => server.IsIdle, "the engine has let go");
    }

    [Fact]
    public async Task A_first_token_in_time_ends_its_deadline()
    {
        await using var server = await Slow(5);
        var request = Rpc.Ids(200);
        request.FirstTokenTimeout = Google.Protobuf.WellKnownTypes.Duration.FromTimeSpan(TimeSpan.FromMilliseconds(900));
        Assert.Equal(200, (await server.Completions.CompleteAsync(request)).TokenIds.Count);
    }

    [Fact]
    public async Task A_deadline_that_cannot_be_met_is_refused_before_any_work_with_the_numbers()
    {
        await using var server = await TestServer.StartAsync(
            new Dictionary<string, string> { ["step-tokens-max"] = "64", ["prefixes-max"] = "0" }, Model(_ => Thread.Sleep(200)));
        var request = Rpc.Ids(1, [.. Enumerable.Range(1, 640).Select(i => (uint)i)]);
        await server.Completions.CompleteAsync(request);  // 10 full steps: the speed is known
        long before = server.Served.Engine.Stats.PromptTokens;
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(request, deadline: DateTime.UtcNow.AddMilliseconds(900)).ResponseAsync);
        failure.Is(StatusCode.DeadlineExceeded, ErrorReason.DeadlineUnreachable);
        Assert.Equal("640", failure.Info!.Metadata["prompt_tokens"]);
        Assert.InRange(double.Parse(failure.Info.Metadata["needed_ms"], System.Globalization.CultureInfo.InvariantCulture), 990, 20_000);
        Assert.InRange(double.Parse(failure.Info.Metadata["left_ms"], System.Globalization.CultureInfo.InvariantCulture), 0, 900);
        Assert.Equal(before, server.Served.Engine.Stats.PromptTokens);
        Assert.Equal(1, server.Served.Engine.Stats.Finished[(int)Inference.Runtime.Engine.FinishReason.DeadlineUnreachable]);
    }

    [Fact]
    public async Task A_tenant_has_one_name_of_some_length()
    {
        await using var server = await TestServer.StartAsync();
        var request = Rpc.Ids(1);
        foreach (var metadata in (Metadata[])[[new("x-tenant", new string('x', 65))], [new("x-tenant", "a"), new("x-tenant", "b")]])
        {
            var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(request, metadata).ResponseAsync);
            failure.Is(StatusCode.InvalidArgument, ErrorReason.InvalidField);
            Assert.Equal(["x-tenant"], failure.Fields);
        }
    }

    [Fact]
    public async Task More_prompt_tokens_than_the_queue_holds_are_refused_though_places_are_free()
    {
        using var stuck = new ManualResetEventSlim(true);
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["queue-tokens-max"] = "5000" }, Model(_ => stuck.Wait()));
        stuck.Reset();
        var running = server.Completions.CompleteAsync(Rpc.Ids(2)).ResponseAsync;
        await server.UntilAsync(() => server.Served.Engine.Queued == 0 && server.Served.Engine.Stats.Accepted == 1, "one runs");
        var request = Rpc.Ids(1, [.. Enumerable.Range(1, 4000).Select(i => (uint)(i % 1000))]);
        var waiting = server.Completions.CompleteAsync(request).ResponseAsync;
        await server.UntilAsync(() => server.Served.Engine.Queued == 1, "one waits");
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.ResourceExhausted, ErrorReason.Overloaded);
        Assert.True(failure.Retry!.RetryDelay.ToTimeSpan() > TimeSpan.Zero);
        Assert.Contains("4000 prompt tokens", failure.Message, StringComparison.Ordinal);
        stuck.Set();
        await Task.WhenAll(running, waiting);
    }

    [Fact]
    public async Task A_deadline_that_has_passed_reaches_no_engine()
    {
        await using var server = await TestServer.StartAsync();
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(Rpc.Ids(5), deadline: DateTime.UtcNow.AddMilliseconds(-1)).ResponseAsync);
        Assert.Equal(StatusCode.DeadlineExceeded, failure.Code);
        Assert.Equal(0, server.Served.Engine.Stats.OutputTokens);
    }

    [Fact]
    public async Task Cancelling_frees_the_blocks_within_a_step_or_two()
    {
        await using var server = await Slow(10);
        using var cancel = new CancellationTokenSource();
        using var call = server.Completions.Generate(Rpc.Ids(4000), cancellationToken: cancel.Token);
        for (int i = 0; i < 5; i++) Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        Assert.False(server.IsIdle);
        await cancel.CancelAsync();
        await server.UntilAsync(() => server.Log.Lines.Any(l => l.Contains("Cancelled", StringComparison.Ordinal)), "the handler has ended");
        int steps = server.Model.Steps;
        await server.UntilAsync(() => server.IsIdle, "the pages are free");
        Assert.InRange(server.Model.Steps - steps, 0, 2);
        await Assert.ThrowsAnyAsync<Exception>(() => Rpc.ReadAsync(call));
    }

    [Fact]
    public async Task A_client_that_vanishes_leaves_no_work()
    {
        await using var server = await Slow(5);
        var channel = server.Channel();
        var call = new V1.Completions.CompletionsClient(channel).Generate(Rpc.Ids(4000));
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        channel.Dispose();
        await server.UntilAsync(() => server.IsIdle, "the engine has let go");
    }

    [Fact]
    public async Task A_slow_reader_slows_only_itself_and_loses_nothing()
    {
        await using var server = await TestServer.StartAsync();
        var request = Rpc.Ids(2000);
        request.Output = new V1.OutputOptions { TopLogprobs = 20 };
        using var slow = server.Completions.Generate(request);
        Assert.True(await slow.ResponseStream.MoveNext(CancellationToken.None));
        // The transport's buffers fill in bursts: the stream is full when a while has brought nothing more.
        long before;
        do
        {
            await server.UntilAsync(() => server.Served.Engine.Stats.Stalled == 1, "the stream is full");
            before = server.Served.Engine.Stats.OutputTokens;
            await Task.Delay(300);
        }
        while (server.Served.Engine.Stats.OutputTokens != before);

        var other = await new V1.Completions.CompletionsClient(server.Channel()).CompleteAsync(Rpc.Ids(50));
        Assert.Equal(50, other.TokenIds.Count);
        Assert.Equal(before + 50, server.Served.Engine.Stats.OutputTokens);

        var rest = await Rpc.ReadAsync(slow);
        Assert.Equal(2000, rest.Where(e => e.Delta is not null).Sum(e => e.Delta.TokenIds.Count));
        Assert.Equal(V1.FinishReason.Length, rest[^1].Finished.Reason);
    }

    [Fact]
    public async Task A_reader_that_stops_loses_its_stream()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["write-stall-limit"] = "300ms" });
        var request = Rpc.Ids(2000);
        request.Output = new V1.OutputOptions { TopLogprobs = 20 };
        using var stopped = server.Completions.Generate(request);
        Assert.True(await stopped.ResponseStream.MoveNext(CancellationToken.None));
        await server.UntilAsync(() => server.Log.Lines.Any(l => l.Contains("took no bytes", StringComparison.Ordinal)), "the stall is noticed");
        await server.UntilAsync(() => server.IsIdle, "the engine has let go");
        await Rpc.FailureAsync(() => Rpc.ReadAsync(stopped));
        Assert.Equal(V1.FinishReason.Length, (await server.Completions.CompleteAsync(Rpc.Ids(3))).Finished.Reason);
    }

    [Fact]
    public async Task A_message_above_the_limit_is_refused_and_the_connection_lives_on()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["max-receive-bytes"] = "1MiB" });
        var client = server.Completions;
        var request = new V1.GenerateRequest { Text = new string('x', 2 << 20) };
        var failure = await Rpc.FailureAsync(() => client.CompleteAsync(request).ResponseAsync);
        Assert.Equal(StatusCode.ResourceExhausted, failure.Code);
        request.Text = new string('x', 1 << 19);
        (await Rpc.FailureAsync(() => client.CompleteAsync(request).ResponseAsync)).Is(StatusCode.InvalidArgument, ErrorReason.ContextExceeded);
    }

    [Fact]
    public async Task A_message_that_unpacks_above_the_limit_is_refused()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["max-receive-bytes"] = "1MiB" });
        var request = new V1.GenerateRequest { Text = new string('x', 64 << 20) };
        var packed = new Metadata { { "grpc-internal-encoding-request", "gzip" } };
        long before = GC.GetTotalAllocatedBytes();
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(request, packed).ResponseAsync);
        Assert.Equal(StatusCode.ResourceExhausted, failure.Code);
        // The client's own copies of 64 MiB are in this, the server's must not be.
        Assert.InRange(GC.GetTotalAllocatedBytes() - before, 0, 400L << 20);
    }

    [Fact]
    public async Task The_request_id_travels_in_metadata_both_ways()
    {
        await using var server = await TestServer.StartAsync();
        var metadata = new Metadata { { "x-request-id", "from-metadata" }, { "x-other-bin", new byte[] { 0, 255, 7 } } };
        using var call = server.Completions.Generate(Rpc.Ids(2), metadata);
        Assert.Equal("from-metadata", (await call.ResponseHeadersAsync).GetValue("x-request-id"));
        Assert.Equal("from-metadata", (await Rpc.ReadAsync(call))[0].Started.RequestId);

        var own = Rpc.Ids(2);
        own.RequestId = "own";
        using var unary = server.Completions.CompleteAsync(own, metadata);
        Assert.Equal("own", (await unary.ResponseHeadersAsync).GetValue("x-request-id"));

        using var bad = server.Completions.CompleteAsync(Rpc.Ids(2), new Metadata { { "x-request-id", new string('x', 200) } });
        Assert.Equal(32, (await bad.ResponseHeadersAsync).GetValue("x-request-id")!.Length);
    }

    [Fact]
    public async Task Headers_come_before_the_first_token()
    {
        using var stuck = new ManualResetEventSlim(true);
        await using var server = await TestServer.StartAsync(model: Model(_ => stuck.Wait()));
        stuck.Reset();
        using var call = server.Completions.Generate(Rpc.Ids(2));
        var headers = await call.ResponseHeadersAsync.WaitAsync(TimeSpan.FromSeconds(5));
        Assert.NotNull(headers.GetValue("x-request-id"));
        stuck.Set();
        Assert.NotEmpty(await Rpc.ReadAsync(call));
    }

    [Fact]
    public async Task More_requests_than_the_queue_holds_are_refused_at_once_with_a_time_to_come_back()
    {
        using var stuck = new ManualResetEventSlim(true);
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["queue-max"] = "2" }, Model(_ => stuck.Wait()));
        stuck.Reset();
        var calls = Enumerable.Range(0, 8).Select(_ => server.Completions.CompleteAsync(Rpc.Ids(2)).ResponseAsync).ToList();
        var refused = await Task.WhenAny(calls);
        var failure = await Rpc.FailureAsync(() => refused);
        failure.Is(StatusCode.ResourceExhausted, ErrorReason.Overloaded);
        Assert.True(failure.Retry!.RetryDelay.ToTimeSpan() > TimeSpan.Zero);
        // Before anything is read of it: this text would be refused for its length.
        await server.UntilAsync(() => server.Served.Engine.Queued == 2, "the queue is full");
        var unread = new V1.GenerateRequest { Text = new string('x', 1 << 19) };
        (await Rpc.FailureAsync(() => server.Completions.CompleteAsync(unread).ResponseAsync)).Is(StatusCode.ResourceExhausted, ErrorReason.Overloaded);
        stuck.Set();
        calls.Remove(refused);
        foreach (var call in calls)
        {
            try
            {
                Assert.Equal(2, (await call).TokenIds.Count);
            }
            catch (RpcException e)
            {
                Assert.Equal(StatusCode.ResourceExhausted, e.StatusCode);
            }
        }
    }

    [Theory]
    [InlineData("/inference.v1.Completions/Nope")]
    [InlineData("/inference.v1.Nope/Generate")]
    [InlineData("/inference.v1.completions/generate")]
    [InlineData("/inference.v1.Completions//Generate")]
    [InlineData("/metrics/x")]
    public async Task An_unknown_method_is_unimplemented(string path)
    {
        await using var server = await TestServer.StartAsync();
        int slash = path.LastIndexOf('/');
        var bytes = Marshallers.Create(b => b, b => b);
        var method = new Method<byte[], byte[]>(MethodType.Unary, path[1..slash], path[(slash + 1)..], bytes, bytes);
        var failure = await Rpc.FailureAsync(
            () => server.Channel().CreateCallInvoker().AsyncUnaryCall(method, null, new CallOptions(), []).ResponseAsync);
        Assert.Equal(StatusCode.Unimplemented, failure.Code);
    }

    [Theory]
    [InlineData("/x/../inference.v1.Models/ListModels")]
    [InlineData("/inference.v1.Models/%4cistModels")]
    [InlineData("/inference%2Ev1.Models/ListModels")]
    [InlineData("/inference.v1.Models/./ListModels")]
    public async Task Another_spelling_of_a_methods_path_is_unimplemented(string path)
    {
        await using var server = await TestServer.StartAsync();
        using var http = new HttpClient { DefaultRequestVersion = new Version(2, 0), DefaultVersionPolicy = HttpVersionPolicy.RequestVersionExact };
        var asIs = new UriCreationOptions { DangerousDisablePathAndQueryCanonicalization = true };
        Assert.Equal("0", await StatusAsync("/inference.v1.Models/ListModels"));
        Assert.Equal("12", await StatusAsync(path));

        async Task<string> StatusAsync(string target)
        {
            using var content = new ByteArrayContent([0, 0, 0, 0, 0]);
            content.Headers.ContentType = new("application/grpc");
            using var response = await http.PostAsync(new Uri($"http://{server.Host.Endpoint(ListenerKind.Grpc)}{target}", asIs), content);
            await response.Content.ReadAsByteArrayAsync();
            return (response.TrailingHeaders.Concat(response.Headers)).First(h => h.Key == "grpc-status").Value.First();
        }
    }

    [Fact]
    public async Task Bytes_that_are_no_message_and_text_that_is_no_UTF8_are_the_clients_fault()
    {
        await using var server = await TestServer.StartAsync();
        var bytes = Marshallers.Create(b => b, b => b);
        var method = new Method<byte[], byte[]>(MethodType.Unary, "inference.v1.Completions", "Complete", bytes, bytes);
        foreach (byte[] message in (byte[][])[[0xff, 0xff, 0xff], [0x1a, 2, 0xc3, 0x28], [0x1a, 200, 1, 65]])
        {
            var failure = await Rpc.FailureAsync(
                () => server.Channel().CreateCallInvoker().AsyncUnaryCall(method, null, new CallOptions(), message).ResponseAsync);
            failure.Is(StatusCode.InvalidArgument, ErrorReason.UnreadableMessage);
        }
        Assert.Equal(V1.FinishReason.Length, (await server.Completions.CompleteAsync(Rpc.Ids(2))).Finished.Reason);
    }

    [Fact]
    public async Task A_fault_of_the_server_is_told_without_its_text_and_logged_with_it()
    {
        await using var server = await TestServer.StartAsync(configure: services => ThrowingService.Add(services));
        var failure = await Rpc.FailureAsync(() => new V1.Models.ModelsClient(server.Channel()).GetModelAsync(new()).ResponseAsync);
        failure.Is(StatusCode.Internal, ErrorReason.Internal);
        Assert.DoesNotContain("secret", failure.Message, StringComparison.Ordinal);
        Assert.Contains(server.Log.Lines, l => l.Contains("secret", StringComparison.Ordinal));
    }

    [Fact]
    public async Task Calls_and_pages_stay_on_their_own_listeners()
    {
        await using var server = await TestServer.StartAsync();
        using var http2 = new HttpClient { DefaultRequestVersion = new Version(2, 0), DefaultVersionPolicy = HttpVersionPolicy.RequestVersionExact };
        foreach (string page in (string[])["/metrics", "/livez", "/readyz"])
        {
            using var response = await http2.GetAsync(new Uri($"http://{server.Host.Endpoint(ListenerKind.Grpc)}{page}"));
            Assert.Equal(System.Net.HttpStatusCode.NotFound, response.StatusCode);
        }
        using var http = new HttpClient();
        using var content = new ByteArrayContent([0, 0, 0, 0, 0]);
        content.Headers.ContentType = new("application/grpc");
        using var call = await http.PostAsync(new Uri(server.Http, "/inference.v1.Models/ListModels"), content);
        Assert.Equal(System.Net.HttpStatusCode.NotFound, call.StatusCode);
    }

    private static Inference.Testing.HashModel Model(Action<int> beforeStep) => new(vocab: 1024, contextMax: 4096, pageRows: 32) { BeforeStep = beforeStep };

    private static Task<TestServer> Slow(int milliseconds) => TestServer.StartAsync(model: Model(_ => Thread.Sleep(milliseconds)));
}

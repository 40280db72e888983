using Grpc.Core;
using Inference.Server.Errors;
using Inference.Server.Hosting;
using Xunit;

namespace Inference.Server.Tests.Hosting;

/// <summary>The server's way out: nothing accepted is lost, nothing new is taken, and everyone hears why.</summary>
public sealed class DrainTests
{
    [Fact]
    public async Task Sixteen_streams_end_well_and_new_calls_are_refused()
    {
        await using var server = await Slow(5);
        var client = server.Completions;
        var calls = Enumerable.Range(0, 16).Select(i => client.Generate(Rpc.Ids(150, (uint)i + 3))).ToList();
        foreach (var call in calls) Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));

        var stopped = server.Host.StopAsync();
        Assert.Equal(ServingState.Draining, server.Engine.State);
        (await Rpc.FailureAsync(() => client.CompleteAsync(Rpc.Ids(1)).ResponseAsync)).Is(StatusCode.Unavailable, ErrorReason.Draining);
        using var http = new HttpClient();
        using var ready = await http.GetAsync(new Uri(server.Http, "/readyz"));
        Assert.Equal("draining\n", await ready.Content.ReadAsStringAsync());
        Assert.Equal(V1.ModelState.Draining, (await new V1.Models.ModelsClient(server.Channel()).GetModelAsync(new())).State);

        foreach (var call in calls)
        {
            var events = await Rpc.ReadAsync(call);
            Assert.Equal(150, events.Where(e => e.Delta is not null).Sum(e => e.Delta.TokenIds.Count));
            Assert.Equal(V1.FinishReason.Length, events[^1].Finished.Reason);
        }
        await stopped.WaitAsync(TimeSpan.FromSeconds(10));
        Assert.Equal(ServingState.Stopped, server.Engine.State);
        Assert.Equal(StatusCode.Unavailable, (await Rpc.FailureAsync(() => client.CompleteAsync(Rpc.Ids(1)).ResponseAsync)).Code);
    }

    [Fact]
    public async Task What_runs_at_the_end_of_the_drain_time_is_told_to_go_elsewhere()
    {
        await using var server = await Slow(10, ("drain-limit", "300ms"));
        using var call = server.Completions.Generate(Rpc.Ids(4000));
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        var stopped = server.Host.StopAsync();
        var events = new List<V1.GenerateEvent>();
        var failure = await Rpc.FailureAsync(async () =>
        {
            await foreach (var e in call.ResponseStream.ReadAllAsync()) events.Add(e);
        });
        failure.Is(StatusCode.Unavailable, ErrorReason.DrainLimit);
        Assert.Equal((V1.FinishReason.Error, true), (events[^1].Finished.Reason, events[^1].Finished.Error.Retryable));
        await stopped.WaitAsync(TimeSpan.FromSeconds(10));
    }

    [Fact]
    public async Task A_server_stopped_while_loading_stops()
    {
        var load = new TaskCompletionSource();
        await using var server = await TestServer.StartAsync(beforeLoad: () => load.Task, waitUntilServing: false);
        var stopped = server.Host.StopAsync();
        (await Rpc.FailureAsync(() => server.Completions.CompleteAsync(Rpc.Ids(1)).ResponseAsync)).Is(StatusCode.Unavailable, ErrorReason.Draining);
        load.SetResult();
        await stopped.WaitAsync(TimeSpan.FromSeconds(10));
    }

    private static Task<TestServer> Slow(int milliseconds, params (string, string)[] settings) => TestServer.StartAsync(
        settings.ToDictionary(s => s.Item1, s => s.Item2),
        new(vocab: 1024, contextMax: 4096, pageRows: 32) { BeforeStep = _ => Thread.Sleep(milliseconds) });
}

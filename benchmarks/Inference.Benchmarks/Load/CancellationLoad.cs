using System.Diagnostics;
using Grpc.Core;
using Inference.Runtime.Engine;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Microsoft.Extensions.DependencyInjection;

namespace Inference.Benchmarks.Load;

/// <summary>
/// The time from a client's cancellation to free pages, with calls cancelled while they wait, read their prompt and decode. The server is in this
/// process, for only the engine itself says when pages are free: it counts a cancelled request after it has given its pages back. The calls are
/// real ones over loopback; cancelling is the client's reset of the stream. At the end every page must be free.
/// </summary>
internal static class CancellationLoad
{
    public static async Task RunAsync(LoadReport report, int trials)
    {
        var values = new Dictionary<string, string>
        {
            ["listen"] = "127.0.0.1:0",
            ["http-listen"] = "none",
            ["log-level"] = "warning",
            ["prefixes-max"] = "0",
            ["sequences-max"] = "3",
        };
        var options = new OptionsReader(values, new Dictionary<string, string>(), null).ReadServer();
        await using var host = ServerHost.Build(options, ModelHost.Loader(options.Model), catchSignals: false);
        await host.StartAsync();
        var engineHost = host.Services.GetRequiredService<EngineHost>();
        while (engineHost.State == ServingState.Loading) await Task.Delay(20);
        var engine = engineHost.Loaded!.Engine;
        var server = new Uri($"http://{host.Endpoint(ListenerKind.Grpc)}");
        using var channel = LoadServer.Channel(server);
        var client = new V1.Completions.CompletionsClient(channel);
        var requests = new Requests(client);

        // Two places always read and decode; the third is for the trials, and taken by a long answer when they are to wait.
        using var stop = new CancellationTokenSource();
        var busy = Enumerable.Range(0, 2).Select(i => Task.Run(async () =>
        {
            var (shape, random) = (new Shape("busy", 900, 60), new Random(i));
            while (!stop.IsCancellationRequested) await requests.SendAsync(shape, shape.Request(random), requests.Now, null, stop.Token);
        })).ToList();
        foreach (string phase in (string[])["waiting", "reading", "decoding"])
        {
            await using var yardstick = new Yardstick(server);
            var times = new List<(double Took, double Step)>();
            for (int i = 0; i < (trials + 2) / 3; i++) times.Add(await TrialAsync(engine, client, phase, new Random(i)));
            string machine = await yardstick.EndAsync();
            var beyond = times.Select(t => t.Took - t.Step).ToList();
            report.Goal(
                $"cancelled while {phase} ({times.Count} trials): from the cancellation to free pages, p50 and p99; beyond the step that ran, p99", "p99 at most one step + 50 ms",
                $"{LoadReport.Ms(Percentiles.Of(times.Select(t => t.Took), 50))} and {LoadReport.Ms(Percentiles.Of(times.Select(t => t.Took), 99))}; {LoadReport.Ms(Percentiles.Of(beyond, 99))}; {machine}",
                Percentiles.Of(beyond, 99) <= 0.05);
        }
        await stop.CancelAsync();
        await Task.WhenAll(busy);
        for (int i = 0; i < 500 && engine.Stats.Running + engine.Stats.Waiting > 0; i++) await Task.Delay(10);
        bool free = engine.Stats.Kv.All(p => p.FreePages == p.TotalPages);
        report.Goal("pages that are free when everyone is gone", "all", free ? "all" : "not all", free);
        await host.StopAsync();
    }

    private static async Task<(double Took, double Step)> TrialAsync(InferenceEngine engine, V1.Completions.CompletionsClient client, string phase, Random random)
    {
        using var cancel = new CancellationTokenSource();
        using var other = new CancellationTokenSource();
        Task? holder = null;
        if (phase == "waiting")
        {
            holder = EndAsync(client.Generate(new Shape("holder", 4, 4000).Request(random), cancellationToken: other.Token));
            while (engine.Stats.Running < 3) await Task.Delay(1);
        }
        var shape = phase == "reading" ? new Shape("trial", 20_000, 4) : new Shape("trial", 8, 4000);
        using var call = client.Generate(shape.Request(random), cancellationToken: cancel.Token);
        if (phase == "decoding")
            for (int i = random.Next(2, 20); i > 0; i--) await call.ResponseStream.MoveNext(CancellationToken.None);
        else
        {
            await call.ResponseHeadersAsync;
            await Task.Delay(random.Next(2, 60));
        }
        long cancelled = Cancelled(engine);
        var clock = Stopwatch.StartNew();
        double step = engine.Stats.LastStepDuration.TotalSeconds;
        await cancel.CancelAsync();
        while (Cancelled(engine) == cancelled)
        {
            step = Math.Max(step, engine.Stats.LastStepDuration.TotalSeconds);
            if (clock.Elapsed > TimeSpan.FromSeconds(20)) throw new InvalidOperationException("A cancelled request was not let go.");
            await Task.Delay(1);
        }
        double took = clock.Elapsed.TotalSeconds;
        step = Math.Max(step, engine.Stats.LastStepDuration.TotalSeconds);
        if (holder is not null)
        {
            cancelled = Cancelled(engine);
            await other.CancelAsync();
            await holder;
            while (Cancelled(engine) == cancelled) await Task.Delay(1);
        }
        return (took, step);
    }

    private static long Cancelled(InferenceEngine engine) => engine.Stats.Finished[(int)FinishReason.Cancelled];

    private static async Task EndAsync(AsyncServerStreamingCall<V1.GenerateEvent> call)
    {
        try
        {
            while (await call.ResponseStream.MoveNext(CancellationToken.None)) { }
        }
        catch (RpcException) { }
        finally
        {
            call.Dispose();
        }
    }
}

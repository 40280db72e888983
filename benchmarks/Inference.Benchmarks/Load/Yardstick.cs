using Grpc.Net.Client;

namespace Inference.Benchmarks.Load;

/// <summary>
/// What the machine itself does to times in the same seconds: every 25 ms a call to the same server that asks its engine for nothing
/// (Models.ListModels), on a connection of its own, timed from when it was due. No deadline, refusal or cancellation can be told faster than this.
/// </summary>
internal sealed class Yardstick : IAsyncDisposable
{
    private readonly GrpcChannel _channel;
    private readonly CancellationTokenSource _stop = new();
    private readonly List<double> _times = [];
    private readonly Task _calls;

    public Yardstick(Uri server)
    {
        _channel = LoadServer.Channel(server);
        _calls = Task.Run(CallAsync);
    }

    /// <summary>Ends it, and says what it measured.</summary>
    public async Task<string> EndAsync()
    {
        await _stop.CancelAsync();
        await _calls;
        return $"a call that asks nothing of the engine took {LoadReport.Ms(Percentiles.Of(_times, 50))} and {LoadReport.Ms(Percentiles.Of(_times, 99))} meanwhile";
    }

    private async Task CallAsync()
    {
        var client = new V1.Models.ModelsClient(_channel);
        await client.ListModelsAsync(new());
        var clock = System.Diagnostics.Stopwatch.StartNew();
        var calls = new List<Task>();
        for (double due = 0.025; !_stop.IsCancellationRequested; due += 0.025)
        {
            double wait = due - clock.Elapsed.TotalSeconds;
            if (wait > 0.001) await Task.Delay(TimeSpan.FromSeconds(wait));
            double at = due;
            calls.Add(Task.Run(async () =>
            {
                await client.ListModelsAsync(new());
                lock (_times) _times.Add(clock.Elapsed.TotalSeconds - at);
            }));
        }
        await Task.WhenAll(calls);
    }

    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _calls;
        _channel.Dispose();
        _stop.Dispose();
    }
}

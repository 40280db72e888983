using System.Diagnostics;
using Google.Rpc;
using Grpc.Core;

namespace Inference.Benchmarks.Load;

/// <summary>What a client asks for, over and over, with random prompts.</summary>
/// <param name="Tenant">Empty: none.</param>
internal sealed record Shape(string Tenant, int PromptTokens, int OutputTokens)
{
    public V1.GenerateRequest Request(Random random)
    {
        var ids = new uint[PromptTokens];
        for (int i = 0; i < ids.Length; i++) ids[i] = (uint)random.Next(20, 1000);
        return new()
        {
            TokenIds = new() { Ids = { ids } },
            Stopping = new() { MaxTokens = OutputTokens, IgnoreEos = true },
            Output = new() { OmitBytes = true },
        };
    }

    public int Tokens => PromptTokens + OutputTokens;
}

/// <summary>One call, from the time it was due.</summary>
/// <param name="Due">When it was to be sent, in seconds since the load began: lateness of the generator counts as the server's.</param>
/// <param name="FirstToken">Seconds from then to the first token; null = none came.</param>
/// <param name="End">Seconds from then to the status.</param>
/// <param name="HasRetryInfo">The status says when to come back.</param>
internal sealed record Call(Shape Shape, double Due, double? FirstToken, double End, StatusCode Status, bool HasRetryInfo)
{
    /// <summary>Seconds since the load began.</summary>
    public double EndsAt => Due + End;

    /// <summary>How much of the answer came between two times, taking its tokens as evenly spread from the first to the last: 0 to 1; 0 if it has no
    /// good end. Whole answers come in bunches, and would make a rate of them a matter of where the window lies.</summary>
    public double Within(double from, double to)
    {
        if (Status != StatusCode.OK || FirstToken is not { } first || End <= first) return 0;
        return Math.Max(0, Math.Min(to, EndsAt) - Math.Max(from, Due + first)) / (End - first);
    }
}

/// <summary>
/// Clients over real gRPC. Open loop: calls go out at drawn times whatever became of the ones before, and times are measured from when a call
/// was due, so a server that stands still is not spared the calls that it would have had. Closed loop: a number of clients that always have one
/// call under way.
/// </summary>
internal sealed class Requests(V1.Completions.CompletionsClient client)
{
    private readonly Stopwatch _clock = Stopwatch.StartNew();

    public double Now => _clock.Elapsed.TotalSeconds;

    /// <summary>Poisson arrivals for so many seconds; completes when all calls have ended.</summary>
    public async Task<List<Call>> OpenAsync(Shape shape, double perSecond, double seconds, int seed, TimeSpan? deadline = null)
    {
        var random = new Random(seed);
        var calls = new List<Task<Call>>();
        double due = Now, end = due + seconds;
        while ((due -= Math.Log(1 - random.NextDouble()) / perSecond) < end)
        {
            var request = shape.Request(random);
            double wait = due - Now;
            if (wait > 0.001) await Task.Delay(TimeSpan.FromSeconds(wait));
            double at = due;
            calls.Add(Task.Run(() => SendAsync(shape, request, at, deadline)));
        }
        return [.. await Task.WhenAll(calls)];
    }

    /// <summary>So many clients that begin calls for so many seconds, out of step from the start; completes when all calls have ended.</summary>
    public async Task<List<Call>> ClosedAsync(Shape shape, int clients, double seconds, int seed)
    {
        double end = Now + seconds;
        var all = await Task.WhenAll(Enumerable.Range(0, clients).Select(i => Task.Run(async () =>
        {
            var random = new Random(seed * 1000 + i);
            var calls = new List<Call>();
            await Task.Delay(TimeSpan.FromSeconds(random.NextDouble() * Math.Min(2, seconds / 5)));
            while (Now < end)
            {
                var call = await SendAsync(shape, shape.Request(random), Now);
                calls.Add(call);
                if (call.Status == StatusCode.ResourceExhausted) await Task.Delay(100);
            }
            return calls;
        })));
        return [.. all.SelectMany(c => c)];
    }

    public async Task<Call> SendAsync(Shape shape, V1.GenerateRequest request, double due, TimeSpan? deadline = null, CancellationToken cancel = default)
    {
        double? first = null;
        var metadata = shape.Tenant.Length > 0 ? new Metadata { { "x-tenant", shape.Tenant } } : null;
        try
        {
            using var call = client.Generate(request, metadata, deadline is { } d ? DateTime.UtcNow + d : null, cancel);
            while (await call.ResponseStream.MoveNext(CancellationToken.None))
                if (call.ResponseStream.Current.Delta is not null) first ??= Now - due;
            return new(shape, due, first, Now - due, StatusCode.OK, false);
        }
        catch (RpcException e)
        {
            return new(shape, due, first, Now - due, e.StatusCode, e.GetRpcStatus()?.GetDetail<RetryInfo>() is not null);
        }
    }
}

/// <summary>Order statistics of times.</summary>
internal static class Percentiles
{
    public static double Of(IEnumerable<double> values, double percent)
    {
        double[] sorted = [.. values.Order()];
        return sorted.Length == 0 ? double.NaN : sorted[Math.Clamp((int)Math.Ceiling(percent / 100 * sorted.Length) - 1, 0, sorted.Length - 1)];
    }
}

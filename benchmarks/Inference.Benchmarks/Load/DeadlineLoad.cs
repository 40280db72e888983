using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;

namespace Inference.Benchmarks.Load;

/// <summary>
/// How long after a deadline its status arrives, while steps run that read prompts and decode. The calls are plain HTTP/2 requests, because a gRPC
/// client would end them by its own clock: what is measured is the server's status. Half of the trials are in the middle of an answer when their
/// grpc-timeout runs out, half wait for a place when their first_token_timeout does.
/// </summary>
internal static class DeadlineLoad
{
    private const int Clients = 8;

    public static async Task RunAsync(LoadReport report, int trials)
    {
        await HalfAsync(report, trials / 2, firstToken: false, places: 4 + Clients);
        await HalfAsync(report, trials / 2, firstToken: true, places: 4);
    }

    private static async Task HalfAsync(LoadReport report, int trials, bool firstToken, int places)
    {
        // The trials that wait for a place are to wait.
        await using var server = await LoadServer.StartAsync(
            "--sequences-max", places.ToString(CultureInfo.InvariantCulture), "--tenant-weights", firstToken ? "trial=0.01" : "trial=1");
        var requests = new Requests(server.Client());
        using var stop = new CancellationTokenSource();
        // Three that decode and one that reads, and as many again that wait to take their places.
        var busy = Enumerable.Range(0, 8).Select(i => Task.Run(async () =>
        {
            var (shape, random) = (i % 4 == 0 ? new Shape("busy", 20_000, 1) : new Shape("busy", 8, 4000), new Random(i));
            while (!stop.IsCancellationRequested) await requests.SendAsync(shape, shape.Request(random), requests.Now, null, stop.Token);
        })).ToList();
        if (!firstToken) busy = [.. busy.Take(4)];
        using var http = new HttpClient(new SocketsHttpHandler { EnableMultipleHttp2Connections = true })
        {
            BaseAddress = server.Address,
            DefaultRequestVersion = HttpVersion.Version20,
            DefaultVersionPolicy = HttpVersionPolicy.RequestVersionExact,
        };
        await Task.Delay(1000);
        await TrialAsync(http, new Random(0), firstToken);
        await using var yardstick = new Yardstick(server.Address);
        var late = new List<double>();
        int served = 0;
        await Task.WhenAll(Enumerable.Range(0, Clients).Select(client => Task.Run(async () =>
        {
            var random = new Random(client + 1);
            while (Volatile.Read(ref served) < 10 * trials)
            {
                var (seconds, status) = await TrialAsync(http, random, firstToken);
                lock (late)
                {
                    if (late.Count == trials) return;
                    // One that got a place in time has nothing to tell.
                    if (status == "4") late.Add(seconds);
                    else served++;
                }
            }
        })));
        string machine = await yardstick.EndAsync();
        await stop.CancelAsync();
        await Task.WhenAll(busy);
        string name = firstToken ? "first_token_timeout, waiting for a place" : "grpc-timeout, in the middle of an answer";
        report.Goal(
            $"status after {name} ({late.Count} trials; {served} were answered in time), p50, p99, worst", "p99 at most 20 ms",
            $"{LoadReport.Ms(Percentiles.Of(late, 50))}, {LoadReport.Ms(Percentiles.Of(late, 99))}, {LoadReport.Ms(late.Max())}; {machine}", Percentiles.Of(late, 99) <= 0.02);
    }

    /// <summary>Seconds from the deadline to the status, and the status.</summary>
    private static async Task<(double Late, string Status)> TrialAsync(HttpClient http, Random random, bool firstToken)
    {
        var timeout = TimeSpan.FromMilliseconds(random.Next(50, 300));
        var request = new Shape("trial", 8, firstToken ? 1 : 4000).Request(random);
        if (firstToken) request.FirstTokenTimeout = Duration.FromTimeSpan(timeout);
        byte[] message = new byte[5 + request.CalculateSize()];
        BinaryPrimitives.WriteInt32BigEndian(message.AsSpan(1), message.Length - 5);
        request.WriteTo(message.AsSpan(5));
        using var post = new HttpRequestMessage(HttpMethod.Post, "/inference.v1.Completions/Generate") { Content = new ByteArrayContent(message) };
        (post.Version, post.VersionPolicy) = (HttpVersion.Version20, HttpVersionPolicy.RequestVersionExact);
        post.Content.Headers.ContentType = new("application/grpc");
        post.Headers.TE.Add(new("trailers"));
        post.Headers.Add("x-tenant", "trial");
        if (!firstToken) post.Headers.Add("grpc-timeout", ((long)timeout.TotalMilliseconds).ToString(CultureInfo.InvariantCulture) + "m");
        long start = Stopwatch.GetTimestamp();
        using var response = await http.SendAsync(post, HttpCompletionOption.ResponseHeadersRead);
        await using (var body = await response.Content.ReadAsStreamAsync())
            await body.CopyToAsync(Stream.Null);
        double elapsed = Stopwatch.GetElapsedTime(start).TotalSeconds;
        string? status = response.TrailingHeaders.Concat(response.Headers).FirstOrDefault(h => h.Key == "grpc-status").Value?.FirstOrDefault();
        return (elapsed - timeout.TotalSeconds, status ?? "none");
    }
}

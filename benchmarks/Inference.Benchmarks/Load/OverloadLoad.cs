using Grpc.Core;

namespace Inference.Benchmarks.Load;

/// <summary>Ten times as many requests as the server can answer: what it still answers, how soon it refuses the others, and how it is afterwards.</summary>
internal static class OverloadLoad
{
    private static readonly Shape Work = new("", 256, 64);
    private const int Rounds = 3;
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(30);

    /// <param name="threads">Of the engine: one less than there are cores leaves a core to the network and to the generator.</param>
    public static async Task RunAsync(LoadReport report, double seconds, int threads)
    {
        string with = $"{threads} of {Environment.ProcessorCount} cores to the engine";
        await using var server = await LoadServer.StartAsync("--queue-max", "64", "--threads", $"{threads}");
        var requests = new Requests(server.Client());
        await requests.ClosedAsync(Work, 4, 3, 1);
        double peak = 0;
        int best = 0;
        foreach (int clients in (int[])[16, 32, 64])
        {
            double goodput = await GoodputAsync(requests, clients, seconds);
            if (goodput > peak) (peak, best) = (goodput, clients);
        }
        // In turns, so that a change of the machine's mood meets both.
        var calls = new List<Call>();
        var (before, after) = (new List<List<Call>>(), new List<List<Call>>());
        var (peaks, goodputs) = (new List<double>(), new List<double>());
        Cost atPeak = new(), inOverload = new();
        await using var yardstick = new Yardstick(server.Address);
        for (int round = 0; round < Rounds; round++)
        {
            peaks.Add(await atPeak.AddAsync(server, () => GoodputAsync(requests, best, seconds)));
            before.Add(await requests.OpenAsync(Work, peaks[^1] * 0.5, seconds / 2, 2));
            double start = requests.Now;
            var some = await inOverload.AddAsync(server, () => requests.OpenAsync(Work, peaks[^1] * 10, seconds, 3 + round, Deadline));
            // The queue is full after a moment and is drained after the end: neither counts.
            double from = start + seconds / 3, to = start + seconds;
            goodputs.Add(some.Sum(c => c.Within(from, to)) / (to - from));
            calls.AddRange(some);
            after.Add(await requests.OpenAsync(Work, peaks[^1] * 0.5, seconds / 2, 2));
        }
        string machine = await yardstick.EndAsync();
        double offered = calls.Count / seconds / Rounds, ratio = Percentiles.Of(peaks.Zip(goodputs, (p, g) => g / p), 50);
        var refused = calls.Where(c => c.Status == StatusCode.ResourceExhausted).ToList();
        var others = calls.Where(c => c.Status is not (StatusCode.OK or StatusCode.ResourceExhausted)).ToList();

        report.Figure($"{with}: peak goodput, closed loop of {best} clients (the best of 16, 32, 64), 256 + 64 tokens, {Rounds} rounds",
            $"{string.Join(", ", peaks.Select(LoadReport.Number))} answers/s; {atPeak}");
        report.Figure(
            "offered in overload, open loop, in turns with it", $"{LoadReport.Number(offered)} requests/s; {inOverload}");
        report.Goal(
            $"{with}: goodput at 10x the load of the peak", "at least 95 % of peak",
            $"{string.Join(", ", goodputs.Select(LoadReport.Number))} answers/s: median ratio {LoadReport.Percent(ratio)}", ratio >= 0.95);
        double p99 = Percentiles.Of(refused.Select(c => c.End), 99);
        report.Goal($"refusals ({refused.Count}), p50 and p99 from when they were due", "p99 at most 50 ms", $"{LoadReport.Ms(Percentiles.Of(refused.Select(c => c.End), 50))} and {LoadReport.Ms(p99)}; {machine}", p99 <= 0.05);
        report.Goal("refusals that say when to come back (RetryInfo)", "all", $"{refused.Count(c => c.HasRetryInfo)} of {refused.Count}", refused.All(c => c.HasRetryInfo));
        report.Goal("calls that ended otherwise", "none", others.Count == 0 ? "none" : string.Join(", ", others.GroupBy(c => c.Status).Select(g => $"{g.Count()} {g.Key}")), others.Count == 0);

        double[] p = [.. before.Select(Median)], q = [.. after.Select(Median)];
        double slower = Percentiles.Of(p.Zip(q, (b, a) => a / b), 50);
        int notAnswered = after.Sum(r => r.Count(c => c.Status != StatusCode.OK));
        report.Goal(
            "answers at half load right after it against right before, p50 of each round", "at most 1.25x at the median, none refused",
            $"{string.Join(", ", p.Zip(q, (b, a) => $"{LoadReport.Ms(a)} against {LoadReport.Ms(b)}"))}: {slower:0.00}x; {notAnswered} refused", slower <= 1.25 && notAnswered == 0);
    }

    private static double Median(List<Call> calls) => Percentiles.Of(calls.Select(c => c.End), 50);

    /// <summary>Processor time of server and generator over some time.</summary>
    private sealed class Cost
    {
        private double _server, _generator, _seconds;

        public async Task<T> AddAsync<T>(LoadServer server, Func<Task<T>> what)
        {
            var clock = System.Diagnostics.Stopwatch.StartNew();
            var (s, g) = (server.ProcessorTime, Environment.CpuUsage.TotalTime);
            var result = await what();
            _server += (server.ProcessorTime - s).TotalSeconds;
            _generator += (Environment.CpuUsage.TotalTime - g).TotalSeconds;
            _seconds += clock.Elapsed.TotalSeconds;
            return result;
        }

        public override string ToString() => FormattableString.Invariant($"cores in use: server {_server / _seconds:0.00}, generator {_generator / _seconds:0.00}");
    }

    private static async Task<double> GoodputAsync(Requests requests, int clients, double seconds)
    {
        double start = requests.Now, from = start + seconds / 3;
        var calls = await requests.ClosedAsync(Work, clients, seconds, clients);
        return calls.Sum(c => c.Within(from, start + seconds)) / (start + seconds - from);
    }
}

using Grpc.Core;

namespace Inference.Benchmarks.Load;

/// <summary>Ten times as many requests as the server can answer: what it still answers, how soon it refuses the others, and how it is afterwards.</summary>
internal static class OverloadLoad
{
    private static readonly Shape Work = new("", 256, 64);
    private static readonly TimeSpan Deadline = TimeSpan.FromSeconds(30);

    public static async Task RunAsync(LoadReport report, double seconds)
    {
        await using var server = await LoadServer.StartAsync("--queue-max", "64");
        var requests = new Requests(server.Client());
        await requests.ClosedAsync(Work, 4, 3, 1);
        double peak = 0;
        foreach (int clients in (int[])[16, 32, 64]) peak = Math.Max(peak, await GoodputAsync(requests, clients, seconds));
        var before = await requests.OpenAsync(Work, peak * 0.5, seconds / 2, 2);

        var processor = server.ProcessorTime;
        var own = Environment.CpuUsage.TotalTime;
        await using var yardstick = new Yardstick(server.Address);
        double start = requests.Now;
        var calls = await requests.OpenAsync(Work, peak * 10, seconds, 3, Deadline);
        string machine = await yardstick.EndAsync();
        double offered = calls.Count / seconds;
        // The queue is full after a moment and is drained after the end: neither counts.
        double from = start + seconds / 5, to = start + seconds;
        double goodput = calls.Count(c => c.Status == StatusCode.OK && c.EndsAt > from && c.EndsAt <= to) / (to - from);
        double serverShare = (server.ProcessorTime - processor).TotalSeconds, ownShare = (Environment.CpuUsage.TotalTime - own).TotalSeconds;
        var refused = calls.Where(c => c.Status == StatusCode.ResourceExhausted).ToList();
        var others = calls.Where(c => c.Status is not (StatusCode.OK or StatusCode.ResourceExhausted)).ToList();

        report.Figure("peak goodput, closed loop of 16, 32, 64 clients (256 + 64 tokens)", $"{LoadReport.Number(peak)} answers/s");
        report.Figure("offered in overload, open loop", $"{LoadReport.Number(offered)} requests/s; processor time of the server {serverShare:0.0} s, of the generator {ownShare:0.0} s");
        report.Goal("goodput at 10x the offered load", "at least 95 % of peak", $"{LoadReport.Number(goodput)} answers/s: {LoadReport.Percent(goodput / peak)}", goodput >= 0.95 * peak);
        double p99 = Percentiles.Of(refused.Select(c => c.End), 99);
        report.Goal($"refusals ({refused.Count}), p50 and p99 from when they were due", "p99 at most 50 ms", $"{LoadReport.Ms(Percentiles.Of(refused.Select(c => c.End), 50))} and {LoadReport.Ms(p99)}; {machine}", p99 <= 0.05);
        report.Goal("refusals that say when to come back (RetryInfo)", "all", $"{refused.Count(c => c.HasRetryInfo)} of {refused.Count}", refused.All(c => c.HasRetryInfo));
        report.Goal("calls that ended otherwise", "none", others.Count == 0 ? "none" : string.Join(", ", others.GroupBy(c => c.Status).Select(g => $"{g.Count()} {g.Key}")), others.Count == 0);

        var after = await requests.OpenAsync(Work, peak * 0.5, seconds / 2, 2);
        double p = Percentiles.Of(before.Select(c => c.End), 50), q = Percentiles.Of(after.Select(c => c.End), 50);
        report.Goal(
            "answers at half load after it against before, p50", "at most 1.25x, none refused",
            $"{LoadReport.Ms(q)} against {LoadReport.Ms(p)}; {after.Count(c => c.Status != StatusCode.OK)} refused", q <= 1.25 * p && after.All(c => c.Status == StatusCode.OK));
    }

    private static async Task<double> GoodputAsync(Requests requests, int clients, double seconds)
    {
        double start = requests.Now, from = start + seconds / 5;
        var calls = await requests.ClosedAsync(Work, clients, seconds, clients);
        return calls.Count(c => c.Status == StatusCode.OK && c.EndsAt > from && c.EndsAt <= start + seconds) / (start + seconds - from);
    }
}

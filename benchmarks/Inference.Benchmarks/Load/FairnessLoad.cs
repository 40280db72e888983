namespace Inference.Benchmarks.Load;

/// <summary>Shares of tenants that flood, against their weights, and what a flood takes from a neighbour that asks for less than its share.</summary>
internal static class FairnessLoad
{
    public static async Task RunAsync(LoadReport report, double seconds)
    {
        await SharesAsync(report, seconds, ("equal", 1, new("a", 128, 32), 48), ("equal", 1, new("b", 32, 96), 48));
        await SharesAsync(report, seconds, ("1 to 3", 1, new("a", 128, 32), 48), ("1 to 3", 3, new("b", 128, 32), 48));
        await SharesAsync(
            report, seconds, ("1 to 2 to 4", 1, new("a", 128, 32), 48), ("1 to 2 to 4", 2, new("b", 32, 96), 48), ("1 to 2 to 4", 4, new("c", 256, 16), 48));
        await NeighbourAsync(report, seconds);
    }

    private static async Task SharesAsync(LoadReport report, double seconds, params (string Name, double Weight, Shape Shape, int Clients)[] tenants)
    {
        await using var server = await LoadServer.StartAsync(
            "--sequences-max", "8", "--tenant-weights", string.Join(',', tenants.Select(t => $"{t.Shape.Tenant}={t.Weight}")));
        var requests = new Requests(server.Client());
        double from = requests.Now + seconds / 5, to = requests.Now + seconds;
        var calls = (await Task.WhenAll(tenants.Select((t, i) => requests.ClosedAsync(t.Shape, t.Clients, seconds, i + 1)))).SelectMany(c => c).ToList();
        double all = calls.Sum(c => c.Within(from, to) * c.Shape.Tokens), weights = tenants.Sum(t => t.Weight);
        var shares = tenants.Select(t => calls.Where(c => c.Shape == t.Shape).Sum(c => c.Within(from, to) * c.Shape.Tokens) / all).ToList();
        double worst = tenants.Select((t, i) => Math.Abs(shares[i] / (t.Weight / weights) - 1)).Max();
        report.Goal(
            $"{tenants.Length} tenants flood, weights {tenants[0].Name}: shares of {LoadReport.Number(all)} tokens",
            "each within 10 % of its weight's share",
            $"{string.Join(" / ", shares.Select(LoadReport.Percent))}, furthest off by {LoadReport.Percent(worst)}", worst <= 0.10);
    }

    private static async Task NeighbourAsync(LoadReport report, double seconds)
    {
        await using var server = await LoadServer.StartAsync("--sequences-max", "8");
        Shape flood = new("flood", 128, 32), quiet = new("quiet", 128, 32);
        var requests = new Requests(server.Client());
        double start = requests.Now + seconds / 8, half = requests.Now + seconds / 2;
        var peak = await requests.ClosedAsync(flood, 16, seconds / 2, 1);
        double perSecond = peak.Sum(c => c.Within(start, half)) / (half - start) * 0.25;  // half of its fair share
        var alone = await requests.OpenAsync(quiet, perSecond, seconds, 2);
        var flooding = requests.ClosedAsync(flood, 64, seconds * 1.4, 3);
        await Task.Delay(TimeSpan.FromSeconds(seconds / 5));
        var beside = await requests.OpenAsync(quiet, perSecond, seconds, 2);
        await flooding;
        int ended = beside.Count(c => c.Status == Grpc.Core.StatusCode.OK);
        report.Goal(
            $"neighbour of a flood (64 clients), asking for half of its share ({LoadReport.Number(perSecond)} requests/s): answered",
            "all", $"{ended} of {beside.Count}", ended == beside.Count);
        double a = First(alone, 50), b = First(beside, 50), slot = Percentiles.Of(flooding.Result.Select(c => c.End - c.FirstToken ?? 0), 50);
        report.Figure(
            "neighbour's first token, alone and beside the flood, p50 and p99",
            $"{LoadReport.Ms(a)} and {LoadReport.Ms(b)}, {LoadReport.Ms(First(alone, 99))} and {LoadReport.Ms(First(beside, 99))}");
        report.Figure("the flood's own first token, p50", LoadReport.Ms(Percentiles.Of(flooding.Result.Where(c => c.FirstToken is not null).Select(c => c.FirstToken!.Value), 50)));
        report.Goal(
            "neighbour's added wait for its first token, p50", "at most one answer of the flood (all places are taken: one must become free)",
            $"{LoadReport.Ms(b - a)} of {LoadReport.Ms(slot)}", b - a <= slot);
    }

    private static double First(IEnumerable<Call> calls, double percent) =>
        Percentiles.Of(calls.Where(c => c.FirstToken is not null).Select(c => c.FirstToken!.Value), percent);
}

/// <summary>Short prompts beside a prompt of 100,000 tokens.</summary>
internal static class LongPromptLoad
{
    public static async Task RunAsync(LoadReport report, double seconds)
    {
        await using var server = await LoadServer.StartAsync("--context-max", "200000");
        var requests = new Requests(server.Client());
        Shape small = new("", 256, 8), big = new("", 100_000, 1);
        await requests.OpenAsync(small, 2, 3, 1);  // warm
        var alone = await requests.OpenAsync(small, 2, seconds, 2);
        var long1 = Task.Run(() => requests.SendAsync(big, big.Request(new Random(3)), requests.Now));
        await Task.Delay(300);
        double from = requests.Now;
        var beside = await requests.OpenAsync(small, 2, seconds, 2);
        if (long1.IsCompleted) beside = [.. beside.Where(c => c.EndsAt < long1.Result.EndsAt)];
        double read = (await long1).End;
        double a = P(alone, 50), b = P(beside, 50);
        report.Figure("a prompt of 100,000 tokens beside 2 short ones a second: read in", $"{read:0.0} s");
        report.Goal(
            $"first token of 256-token prompts beside it ({beside.Count}), p50 against alone", "at most 4x (half of each step is theirs: twice the steps, and each is full)",
            $"{LoadReport.Ms(b)} against {LoadReport.Ms(a)}: {b / a:0.0}x; p99 {LoadReport.Ms(P(beside, 99))} against {LoadReport.Ms(P(alone, 99))}", b <= 4 * a);
        report.Goal("all of them answered", "all", $"{beside.Count(c => c.Status == Grpc.Core.StatusCode.OK)} of {beside.Count}", beside.All(c => c.Status == Grpc.Core.StatusCode.OK));
    }

    private static double P(IEnumerable<Call> calls, double percent) =>
        Percentiles.Of(calls.Where(c => c.FirstToken is not null).Select(c => c.FirstToken!.Value), percent);
}

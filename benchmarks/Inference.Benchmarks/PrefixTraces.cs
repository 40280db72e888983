using System.Globalization;
using Inference.Runtime.KvCache;

namespace Inference.Benchmarks;

/// <summary>
/// What kept prefixes are worth on agent-like traffic: `prefix-traces` replays seeded traces (agents with tools that think, call and read results;
/// chats whose earlier reasoning is dropped; questions about one document; edits, retries, branches, compaction) against the prefix cache
/// itself, without a model, and prints hit tokens per policy and number of snapshots beside what unlimited memory would have found.
/// </summary>
internal static class PrefixTraces
{
    private static readonly (string Name, SnapshotPolicy Policy)[] Policies =
    [
        ("ends of prompts and answers, least recently used goes", new() { DenseTo = 0, MiddleTo = 0, LongSpacing = 1 << 30, BoundariesMax = 0, ThinBelow = 0 }),
        ("and every 4,096", new() { DenseTo = 0, MiddleTo = 0, BoundariesMax = 0, ThinBelow = 0 }),
        ("and every 256 to 4,096, every 1,024 to 16,384", new() { BoundariesMax = 0, ThinBelow = 0 }),
        ("and where the last 8 messages begin", new() { BoundariesMax = 8, ThinBelow = 0 }),
        ("the last 2 messages instead", new() { ThinBelow = 0 }),
        ("thinned below 1, messages as others", new() { MessageWorth = 1, ThinBelow = 1 }),
        ("thinned below 2, messages x 8 (the default)", new()),
        ("thinned below 4, messages x 8", new() { ThinBelow = 4 }),
        ("thinned below 8, messages x 16", new() { MessageWorth = 16, ThinBelow = 8 }),
        ("thinned whatever it costs", new() { ThinBelow = 1e9 }),
    ];

    private static readonly int[] Budgets = [16, 32, 64, 128, 256];

    public static int Run(string[] args)
    {
        int requests = args.Length > 0 ? int.Parse(args[0], CultureInfo.InvariantCulture) : 1500;
        foreach (string kind in (string[])["agents", "chats", "documents", "mixed"])
        {
            var trace = Trace.Make(kind, requests, seed: 20261125);
            long tokens = trace.Sum(r => (long)r.Prompt.Length);
            Console.WriteLine($"{kind}: {trace.Count} requests, {tokens:N0} prompt tokens, {Possible(trace) * 100.0 / tokens:F1} % found with unlimited memory");
            Console.WriteLine($"| hit tokens, share of what unlimited memory finds | {string.Join(" | ", Budgets.Select(b => $"{b} kept"))} |");
            Console.WriteLine($"|---|{string.Concat(Budgets.Select(_ => "---:|"))}");
            long possible = Possible(trace);
            foreach (var (name, policy) in Policies)
            {
                var shares = Budgets.Select(b => $"{Replay(trace, policy, b) * 100.0 / possible:F1} %");
                Console.WriteLine($"| {name} | {string.Join(" | ", shares)} |");
            }
            Console.WriteLine();
        }
        return 0;
    }

    // The longest beginning that any earlier request, with its answer, had in common.
    private static long Possible(List<TraceRequest> trace)
    {
        long sum = 0;
        var seen = new Dictionary<PrefixHash, List<int[]>>();  // by first block
        foreach (var request in trace)
        {
            var key = PrefixHash.Root("").Then(request.Prompt.AsSpan(0, Math.Min(request.Prompt.Length, KvStateSpec.BlockTokens)));
            if (!seen.TryGetValue(key, out var earlier)) seen.Add(key, earlier = []);
            int best = 0;
            foreach (int[] tokens in earlier) best = Math.Max(best, tokens.AsSpan().CommonPrefixLength(request.Prompt.AsSpan(0, request.Prompt.Length - 1)));
            sum += best;
            earlier.Add([.. request.Prompt, .. request.Answer]);
        }
        return sum;
    }

    private static long Replay(List<TraceRequest> trace, SnapshotPolicy policy, int snapshots)
    {
        const int chunk = 512;
        KvStateSpec[] specs = [KvStateSpec.All("rows", 1, 1, 4), KvStateSpec.Window("window", 1, 1, 128, 32), KvStateSpec.Chunk("state", 1, 1, 128, 0, 32)];
        using var cache = new KvCacheManager(specs, new(1 << 24, 2, chunk, snapshots), null);
        var prefixes = cache.Prefixes!;
        prefixes.Policy = policy;
        long hits = 0;
        foreach (var request in trace)
        {
            int[] all = [.. request.Prompt, .. request.Answer];
            var path = PrefixPath.Begin("", request.Boundaries);
            var table = cache.CreateTable();
            var hit = prefixes.Find(path, all, request.Prompt.Length - 1);
            int at = hit?.Length ?? 0;
            hits += at;
            if (hit is not null) prefixes.Resume(hit, table, path);
            while (at < all.Length - 1)
            {
                int end = Math.Min(at + chunk, at < request.Prompt.Length ? request.Prompt.Length : all.Length - 1);
                while (!cache.TryExtend(table, end))
                    if (!prefixes.Reclaim()) throw new InvalidOperationException("The traces need more pages.");
                prefixes.Enter(table, path, all, at, end, request.Prompt.Length);
                cache.Trim(table, end);
                at = end;
            }
            prefixes.EnterEnd(table, path, all, at);
            prefixes.Leave(path);
            cache.Free(table);
        }
        return hits;
    }

    /// <param name="Boundaries">Where messages begin.</param>
    private sealed record TraceRequest(int[] Prompt, int[] Answer, int[] Boundaries);

    private static class Trace
    {
        /// <summary>Conversations in flight at once, each taking its turn when its user or tool is done.</summary>
        public static List<TraceRequest> Make(string kind, int requests, int seed)
        {
            var random = new Random(seed);
            var systems = Enumerable.Range(0, 3).Select(_ => Words(random, random.Next(1500, 7000))).ToArray();
            var live = new List<IEnumerator<TraceRequest>>();
            var trace = new List<TraceRequest>();
            while (trace.Count < requests)
            {
                while (live.Count < 24) live.Add(Begin().GetEnumerator());
                int at = random.Next(live.Count);
                if (live[at].MoveNext()) trace.Add(live[at].Current);
                else live.RemoveAt(at);
            }
            return trace;

            IEnumerable<TraceRequest> Begin()
            {
                int draw = random.Next(10);
                string one = kind != "mixed" ? kind : draw < 5 ? "agents" : draw < 8 ? "chats" : "documents";
                return one switch
                {
                    "agents" => Agent(random, systems[random.Next(3)]),
                    "chats" => Chat(random, systems[random.Next(3)]),
                    _ => Document(random, systems[random.Next(3)]),
                };
            }
        }

        // Thinks, calls a tool, reads its result, and keeps all of it; now and then somebody edits the task, two calls branch, or the context is compacted.
        private static IEnumerable<TraceRequest> Agent(Random random, int[] system)
        {
            var log = new Log(system);
            log.Message(Words(random, random.Next(50, 1500)));
            for (int turns = random.Next(5, 40); turns > 0; turns--)
            {
                int[] answer = Words(random, random.Next(80, 900));
                yield return log.Ask(answer);
                if (random.Next(12) == 0) yield return log.Ask(Words(random, random.Next(80, 900)));     // tried again
                if (random.Next(25) == 0) log.CutTo(random.Next(log.Messages));                            // edited
                else log.Message(answer);
                log.Message(Words(random, (int)Math.Min(12000, 60 * Math.Exp(random.NextDouble() * 4.5))));
                if (log.Length < 60000) continue;
                log = new Log(system);
                log.Message(Words(random, 2000));
            }
        }

        // The reasoning of earlier turns is dropped: a prompt parts from the last one where the answer to that began.
        private static IEnumerable<TraceRequest> Chat(Random random, int[] system)
        {
            var log = new Log(system);
            for (int turns = random.Next(2, 15); turns > 0; turns--)
            {
                log.Message(Words(random, random.Next(10, 600)));
                int[] said = Words(random, random.Next(30, 700));
                yield return log.Ask([.. Words(random, random.Next(100, 1500)), .. said]);
                if (random.Next(10) == 0) yield return log.Ask([.. Words(random, random.Next(100, 1500)), .. said]);
                log.Message(said);
            }
        }

        // Several questions about one text, each for itself.
        private static IEnumerable<TraceRequest> Document(Random random, int[] system)
        {
            int[] text = Words(random, random.Next(8000, 60000));
            for (int questions = random.Next(2, 8); questions > 0; questions--)
            {
                var log = new Log(system);
                log.Message([.. text, .. Words(random, random.Next(10, 60))]);
                yield return log.Ask(Words(random, random.Next(30, 400)));
            }
        }

        private static int[] Words(Random random, int count) => [.. Enumerable.Range(0, count).Select(_ => random.Next(2, 120000))];

        // A conversation; each message begins with a token of its own.
        private sealed class Log(int[] system)
        {
            private readonly List<int> _tokens = [0, .. system];
            private readonly List<int> _starts = [];

            public int Length => _tokens.Count;
            public int Messages => _starts.Count;

            public void Message(int[] words)
            {
                _starts.Add(_tokens.Count);
                _tokens.Add(1);
                _tokens.AddRange(words);
            }

            public void CutTo(int message)
            {
                _tokens.RemoveRange(_starts[message], _tokens.Count - _starts[message]);
                _starts.RemoveRange(message, _starts.Count - message);
            }

            // The prompt ends with the opening of the answer.
            public TraceRequest Ask(int[] answer) => new([.. _tokens, 1], answer, [.. _starts, _tokens.Count]);
        }
    }
}

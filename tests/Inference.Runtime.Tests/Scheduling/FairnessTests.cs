using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Xunit;

namespace Inference.Runtime.Tests.Scheduling;

/// <summary>
/// Tenants that always wait get tokens in proportion to their weights, whatever the sizes of their requests, and one that asks for little is served
/// as if the flood were not there. Simulated over tens of thousands of tokens, where the random lives of the simulation
/// are too short to tell.
/// </summary>
public sealed class FairnessTests
{
    private static readonly KvStateSpec Kind = new("rows", 1, 1, 1, KvRetention.All, 0, 0, 16);

    /// <param name="Backlog">Requests that it always has in the line; 0: it asks for one when the one before has ended, and then rests.</param>
    private sealed record Load(string Tenant, double Weight, int Prompt, int Output, int Backlog);

    private sealed class Result
    {
        public readonly Dictionary<string, long> Tokens = [];
        public readonly Dictionary<string, List<int>> FirstToken = [];  // steps from submission
    }

    private static Result Run(int steps, int sequences, int stepTokens, int seed, params Load[] loads)
    {
        var random = new Random(seed);
        var cache = new KvCacheManager([Kind], new(200_000, sequences, stepTokens), null);
        var scheduler = new Scheduler(
            new(sequences, stepTokens) { TenantWeights = loads.ToDictionary(l => l.Tenant, l => l.Weight) }, cache);
        var result = new Result();
        var submitted = new Dictionary<Sequence, int>();
        var resting = new Dictionary<string, int>();
        long arrivals = 0;
        foreach (var load in loads) (result.Tokens[load.Tenant], result.FirstToken[load.Tenant], resting[load.Tenant]) = (0, [], 50);
        for (int step = 0; step < steps; step++)
        {
            var events = new List<SchedulerEvent>();
            foreach (var load in loads)
            {
                int waiting = scheduler.Waiting.Count(s => s.Tenant == load.Tenant), live = waiting + scheduler.Running.Count(s => s.Tenant == load.Tenant);
                bool rests = load.Backlog == 0 && (live > 0 || resting[load.Tenant]-- > 0);
                if (rests) continue;
                for (int i = waiting; i < Math.Max(1, load.Backlog); i++)
                {
                    var sequence = new Sequence(
                        ++arrivals, new int[random.Next(load.Prompt / 2, load.Prompt * 3 / 2)], random.Next(load.Output / 2, load.Output * 3 / 2), long.MaxValue,
                        cache.CreateTable())
                    { Tenant = load.Tenant };
                    submitted[sequence] = step;
                    events.Add(SchedulerEvent.Submitted(sequence));
                }
                resting[load.Tenant] = random.Next(50, 100);
            }
            var batch = scheduler.Step([.. events], step);
            if (batch.Chunks.Count == 0) continue;
            foreach (var chunk in batch.Chunks)
            {
                result.Tokens[chunk.Sequence.Tenant] += chunk.Count;
                if (chunk.Samples && chunk.Sequence.OutputCount == 0) result.FirstToken[chunk.Sequence.Tenant].Add(step - submitted[chunk.Sequence]);
            }
            scheduler.Retire([.. batch.Chunks.Where(c => c.Samples).Select(_ => new ChunkOutcome(1, false))]);
        }
        cache.Dispose();
        return result;
    }

    [Theory]
    [InlineData(1, 1, 1)]
    [InlineData(1, 2, 4)]
    [InlineData(0.5, 8, 1)]
    public void Tenants_that_flood_get_tokens_by_weight_whatever_the_sizes_of_their_requests(double a, double b, double c)
    {
        for (int seed = 0; seed < 4; seed++)
        {
            var result = Run(
                20_000, sequences: 8, stepTokens: 64, seed, new("a", a, 10, 200, 20), new Load("b", b, 400, 5, 20), new Load("c", c, 60, 60, 20));
            double all = result.Tokens.Values.Sum(), weights = a + b + c;
            foreach (var (tenant, weight) in new[] { ("a", a), ("b", b), ("c", c) })
                Assert.True(
                    Math.Abs(result.Tokens[tenant] / all - weight / weights) < 0.01,
                    $"seed {seed}: {tenant} has {result.Tokens[tenant] / all:P1} of {all} tokens and the weight {weight} of {weights}");
        }
    }

    [Fact]
    public void One_that_asks_for_little_gets_it_as_if_nobody_flooded_but_for_one_place_to_become_free()
    {
        var quiet = new Load("quiet", 1, 30, 20, 0);
        var alone = Run(20_000, 8, 64, 1, quiet);
        var beside = Run(20_000, 8, 64, 1, quiet, new Load("flood", 1, 60, 60, 200));
        Assert.True(beside.FirstToken["quiet"].Count > 100);
        // A flood's request runs for 30 to 90 steps; of eight, one ends soon.
        Assert.InRange(beside.FirstToken["quiet"].Average() - alone.FirstToken["quiet"].Average(), 0, 90 / 8.0 + 2);
        Assert.InRange(beside.FirstToken["quiet"].Max(), 0, 90);
    }

    [Fact]
    public void Short_prompts_beside_long_ones_get_their_first_token_within_twice_the_steps_of_their_own_tokens()
    {
        var result = Run(
            5_000, sequences: 16, stepTokens: 64, 2, new("long", 1, 20_000, 5, 3), new Load("short", 1, 100, 10, 0));
        Assert.True(result.FirstToken["short"].Count > 50);
        // At least 64 - 15 decodes, half of it: 24 tokens a step; the longest of them has 149.
        Assert.InRange(result.FirstToken["short"].Max(), 1, 149 / 24 + 1);
        Assert.True(result.Tokens["long"] > 5_000 * 32 * 0.9, "the long ones keep their half");
    }
}

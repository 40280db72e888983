using Inference.Backends.Operators;
using Inference.Runtime.KvCache;
using Xunit;

namespace Inference.Runtime.Tests.KvCache;

/// <summary>Kinds of state of other families, as declarations alone: what a cache holds for them follows.</summary>
public sealed class KvStateSpecTests
{
    private static int Held(KvCacheManager cache, int kind) => cache.Pools[kind].PageCount - cache.Pools[kind].FreeCount;

    [Fact]
    public void Latents_are_one_row_per_token_in_any_format()
    {
        // Multi-head latent attention: 512 latent and 64 rotary channels per token and layer.
        var latents = KvStateSpec.All("latents", layers: 61, RowFormat.BF16(576), ratio: 1);
        Assert.Equal(61L * 256 * 1152, latents.PageBytes);
        Assert.Equal(61L * 256 * 648, KvStateSpec.All("latents", 61, RowFormat.Fp8(576, 64), 1).PageBytes); // 512 + 128 + 8 scales
        using var cache = new KvCacheManager([latents], new KvCapacity(1024, 1, 256), null);
        var table = cache.CreateTable();
        for (int length = 1; length <= 1024; length++)
        {
            Assert.True(cache.TryExtend(table, length));
            cache.Trim(table, length);
            Assert.Equal((length + 255) / 256, Held(cache, 0));
        }
    }

    [Fact]
    public void A_recurrent_state_takes_one_page_between_steps_and_two_within_one()
    {
        // Gated delta networks: 32 heads with a state of 128 x 128 each, and the last inputs of a convolution; the steps are of any length.
        KvStateSpec[] kinds = [KvStateSpec.Slot("delta-state", layers: 36, 32 * 128 * 128), KvStateSpec.Slot("convolution", 36, 3 * 8192), KvStateSpec.All("rows", 12, 512, ratio: 1)];
        Assert.Equal(36L * 32 * 128 * 128 * sizeof(float), kinds[0].PageBytes);
        var capacity = new KvCapacity(4096, Sequences: 2, StepTokens: 700);
        using var cache = new KvCacheManager(kinds, capacity, null);
        var tables = new[] { cache.CreateTable(), cache.CreateTable() };
        int length = 0;
        foreach (int step in (int[])[1, 1, 2, 699, 700, 1, 3, 256])
        {
            foreach (var table in tables) Assert.True(cache.TryExtend(table, length + step));
            for (int kind = 0; kind < 2; kind++)
            {
                Assert.Equal(length == 0 ? 2 : 4, Held(cache, kind));
                foreach (var table in tables)
                {
                    // The state before the step, nothing on the way, and the state after it.
                    Assert.Equal((Math.Max(0, length - 1), step + Math.Min(length, 1)), (table.FirstPage(kind), table.Pages(kind).Count));
                    Assert.NotEqual(BlockTable.NoPage, table.Pages(kind)[^1]);
                    if (length > 0) Assert.NotEqual(BlockTable.NoPage, table.Pages(kind)[0]);
                    Assert.Equal(step - 1, table.Pages(kind).Count(p => p == BlockTable.NoPage));
                }
            }
            length += step;
            foreach (var table in tables) cache.Trim(table, length);
            Assert.Equal((2, 2), (Held(cache, 0), Held(cache, 1)));
        }
        foreach (var table in tables) cache.Free(table);
        Assert.All(cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
        Assert.Equal(2 * kinds[0].PageBytes, kinds[0].PageBytes * kinds[0].PagesHeld(1000, 1700));
        Assert.Equal((1, 0), (kinds[0].PagesHeld(0, 700), kinds[0].PagesBetween(5, 5)));
    }

    [Fact]
    public void Recurrent_states_are_kept_where_snapshots_are_taken_and_nowhere_else()
    {
        var slot = KvStateSpec.Slot("slot", 1, 8);
        using var cache = new KvCacheManager([slot, KvStateSpec.All("rows", 1, 4, 1)], new KvCapacity(4096, 2, 1000, Snapshots: 8), null);
        var prefixes = cache.Prefixes!;
        int[] tokens = [.. Enumerable.Range(0, 1000)];
        var (table, path) = (cache.CreateTable(), PrefixPath.Begin("", [300, 600]));
        int[] points = [256, 300, 512, 600, 768, 999, 1000];
        Assert.True(cache.TryExtend(table, 1000));
        prefixes.Prepare(table, path, 0, 1000, promptLength: 1000, spare: 1);
        Assert.Equal(points, table.Pages(0).Index().Where(p => p.Item != BlockTable.NoPage).Select(p => p.Index + 1));
        int[] states = [.. table.Pages(0).Where(p => p != BlockTable.NoPage)];
        prefixes.Enter(table, path, tokens, 0, 1000, promptLength: 1000);
        cache.Trim(table, 1000);
        Assert.Equal(points.Length, Held(cache, 0));
        foreach (var (i, point) in points.Index())
        {
            int[] other = [.. tokens[..point], -1];
            var hit = prefixes.Find(PrefixPath.Begin(""), other, point);
            Assert.Equal(point, hit?.Length);
            Assert.Equal(0, prefixes.CopiesNeeded(hit!, 0));
            var resumed = cache.CreateTable();
            prefixes.Resume(hit!, resumed, PrefixPath.Begin(""));
            // The state itself, which the next step reads and nobody writes.
            Assert.Equal(point - 1, resumed.FirstPage(0));
            Assert.Equal([states[i]], resumed.Pages(0));
            Assert.True(cache.TryExtend(resumed, point + 1));
            Assert.DoesNotContain(resumed.Pages(0)[1], states);
            cache.Free(resumed);
        }
    }

    [Fact]
    public void Snapshots_of_recurrent_states_leave_room_for_those_who_run()
    {
        using var cache = new KvCacheManager([KvStateSpec.Slot("slot", 1, 8), KvStateSpec.All("rows", 1, 4, 1)], new KvCapacity(8192, 2, 1000, Snapshots: 3), null);
        var prefixes = cache.Prefixes!;
        var tables = new[] { cache.CreateTable(), cache.CreateTable() };
        var paths = new[] { PrefixPath.Begin("a"), PrefixPath.Begin("b") };
        int[] tokens = [.. Enumerable.Range(0, 4000)];
        for (int length = 0; length < 4000; length += 1000)
        {
            for (int s = 0; s < 2; s++)
            {
                while (!cache.TryExtend(tables[s], length + 1000)) Assert.True(prefixes.Reclaim(), "a sequence lacks a page that no snapshot has");
                prefixes.Prepare(tables[s], paths[s], length, length + 1000, promptLength: 4000, spare: 2);
            }
            for (int s = 0; s < 2; s++)
            {
                prefixes.Enter(tables[s], paths[s], tokens, length, length + 1000, promptLength: 4000);
                cache.Trim(tables[s], length + 1000);
            }
            Assert.InRange(prefixes.SnapshotCount, 1, 3);
        }
    }

    [Fact]
    public void Rows_of_a_chunk_go_when_the_next_chunk_begins()
    {
        // Layers that attend within chunks of 8,192 tokens, beside layers that attend to everything.
        const int Chunk = 8192, Page = 256;
        KvStateSpec[] kinds = [KvStateSpec.Chunk("chunk-rows", layers: 36, 2048, Chunk, chunksBefore: 0, Page), KvStateSpec.All("rows", 12, 2048, ratio: 1)];
        using var cache = new KvCacheManager(kinds, new KvCapacity(4 * Chunk, 1, Page), null);
        var table = cache.CreateTable();
        for (int length = Page; length <= 4 * Chunk; length += Page)
        {
            Assert.True(cache.TryExtend(table, length), $"{length} tokens");
            cache.Trim(table, length);
            Assert.Equal(length % Chunk / Page, Held(cache, 0)); // none at a boundary: the next token sees itself only
            Assert.Equal(length / Page, Held(cache, 1));
        }
        cache.Free(table);
        Assert.All(cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
    }
}

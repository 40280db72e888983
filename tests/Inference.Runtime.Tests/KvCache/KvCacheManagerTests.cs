using CsCheck;
using Inference.Runtime.KvCache;
using Xunit;

namespace Inference.Runtime.Tests.KvCache;

public sealed class KvCacheManagerTests
{
    private static readonly KvStateSpec Rows = new("rows", 1, 4, 1, KvRetention.All, 0, 0, 4);
    private static readonly KvStateSpec Slow = new("slow", 1, 4, 4, KvRetention.All, 0, 0, 2);
    private static readonly KvStateSpec Window = KvStateSpec.Window("window", 1, 4, 6, 4);
    private static readonly KvStateSpec Chunk = KvStateSpec.Chunk("chunk", 1, 4, 8, 1, 4);
    private static readonly KvStateSpec[] AllKinds = [Rows, Slow, Window, Chunk];

    private static KvCacheManager Cache(int tokens, int sequences = 2, int stepTokens = 16) =>
        new(AllKinds, new(tokens, sequences, stepTokens), null);

    [Fact]
    public void A_table_grows_by_whole_pages_of_each_kind()
    {
        using var cache = Cache(64);
        var table = cache.CreateTable();
        Assert.True(cache.TryExtend(table, 9));
        Assert.Equal([3, 1, 3, 3], Enumerable.Range(0, 4).Select(k => table.Pages(k).Count));
        Assert.True(cache.TryExtend(table, 12));
        Assert.Equal([3, 2, 3, 3], Enumerable.Range(0, 4).Select(k => table.Pages(k).Count));
        Assert.Equal(12, table.Length);
    }

    [Fact]
    public void Growth_that_one_kind_cannot_give_takes_nothing_of_the_others()
    {
        // Too long for the kinds that keep everything; too long a step for those that keep a window or a chunk.
        foreach (var (tokens, step, tooLong) in new[] { (16, 64, 25), (1000, 16, 500) })
        {
            using var cache = Cache(tokens, stepTokens: step);
            var table = cache.CreateTable();
            var free = cache.Pools.Select(p => p.FreeCount).ToArray();
            Assert.False(cache.TryExtend(table, tooLong));
            Assert.Equal(free, cache.Pools.Select(p => p.FreeCount));
            Assert.Equal((0, 0, 0), (table.Length, table.Pages(0).Count, table.Pages(3).Count));
            Assert.True(cache.TryExtend(table, Math.Min(step, cache.SequenceTokensMax)));
        }
    }

    [Fact]
    public void Trim_gives_back_what_no_later_token_reads()
    {
        using var cache = Cache(64, stepTokens: 32);
        var table = cache.CreateTable();
        Assert.True(cache.TryExtend(table, 26));
        cache.Trim(table, 26);
        Assert.Equal(0, table.FirstPage(0));
        Assert.Equal(0, table.FirstPage(1));
        Assert.Equal(5, table.FirstPage(2));  // position 26 reads the 6 rows from 21 on: page 5
        Assert.Equal(4, table.FirstPage(3));  // the unfinished chunk starts at 24, the one before at 16: page 4
        Assert.Equal([7, 3, 2, 3], Enumerable.Range(0, 4).Select(k => table.Pages(k).Count));
    }

    [Fact]
    public void Free_makes_a_table_new_and_the_pools_full()
    {
        using var cache = Cache(64);
        var table = cache.CreateTable();
        cache.TryExtend(table, 30);
        cache.Trim(table, 30);
        cache.Free(table);
        Assert.All(cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
        Assert.Equal((0, 0, 0), (table.Length, table.FirstPage(2), table.Pages(0).Count));
        Assert.True(cache.TryExtend(table, 5));
    }

    [Fact]
    public void A_page_is_free_once_its_last_holder_lets_go_and_never_twice()
    {
        var pool = new KvPool(Rows, 2, null);
        int page = pool.Take();
        pool.Share(page);
        pool.Release(page);
        Assert.Equal(1, pool.FreeCount);
        pool.Release(page);
        Assert.Equal(2, pool.FreeCount);
        Assert.Throws<InvalidOperationException>(() => pool.Release(page));
        Assert.Throws<InvalidOperationException>(() => pool.Share(page));
        pool.Take();
        pool.Take();
        Assert.Throws<InvalidOperationException>(() => pool.Take());
    }

    [Fact]
    public void The_declared_rows_are_those_that_a_window_and_a_chunk_read()
    {
        for (int length = 0; length < 200; length++)
        {
            int window = Math.Max(0, length - 5), chunk = Math.Max(0, (length - length % 8) - 8);
            Assert.Equal((window, chunk, 0), (Window.FirstRowNeeded(length), Chunk.FirstRowNeeded(length), Slow.FirstRowNeeded(length)));
            Assert.Equal((length + 3) / 4, Rows.PagesFor(length));
            Assert.Equal((length / 4 + 1) / 2, Slow.PagesFor(length));
        }
    }

    /// <summary>Sequences that are together within the capacity, and step within its step, never lack a page of any kind.</summary>
    [Fact]
    public void A_capacity_is_kept_by_every_kind() =>
        Gen.Select(Gen.Int[1, 6], Gen.Int[1, 40], Gen.Int[8, 300], Gen.Int[1, 3], Gen.Int[0, int.MaxValue]).Sample((sequences, step, tokens, page, seed) =>
        {
            KvStateSpec[] kinds =
            [
                new("a", 1, 1, 1, KvRetention.All, 0, 0, 1 << page), new("b", 1, 1, 4, KvRetention.All, 0, 0, page == 3 ? 2 : 1),
                KvStateSpec.Window("w", 1, 1, 7, 1 << page), KvStateSpec.Chunk("c", 1, 1, 8, page, 4),
                KvStateSpec.Slot("s", 1, 1),
            ];
            using var cache = new KvCacheManager(kinds, new(tokens, sequences, step), null);
            var random = new Random(seed);
            var lengths = new int[sequences];
            var tables = lengths.Select(_ => cache.CreateTable()).ToArray();
            for (int round = 0; round < 40; round++)
            {
                int budget = step;
                var grown = new List<int>();
                for (int s = 0; s < sequences; s++)
                {
                    int by = Math.Min(random.Next(0, budget + 1), tokens - lengths.Sum());
                    if (!cache.TryExtend(tables[s], lengths[s] + by)) return false;
                    lengths[s] += by;
                    budget -= by;
                    grown.Add(s);
                }
                foreach (int s in grown) cache.Trim(tables[s], lengths[s]);
                int gone = random.Next(sequences * 3);
                if (gone >= sequences) continue;
                cache.Free(tables[gone]);
                lengths[gone] = 0;
            }
            return true;
        }, iter: 2000);

    [Fact]
    public void Capacity_from_bytes_fits_in_them_and_one_block_more_would_not()
    {
        KvStateSpec[] kinds = [KvStateSpec.All("a", 3, 64, 1), KvStateSpec.All("b", 2, 32, 4), KvStateSpec.Window("w", 4, 16, 128, 64)];
        for (long bytes = 1 << 20; bytes < 1L << 36; bytes = bytes * 3 + 12345)
        {
            int tokens = KvCapacity.TokensFor(bytes, 8, 256, kinds);
            if (tokens == 0)
            {
                Assert.True(new KvCapacity(KvStateSpec.BlockTokens, 8, 256).BytesOf(kinds) > bytes);
                continue;
            }
            Assert.True(new KvCapacity(tokens, 8, 256).BytesOf(kinds) <= bytes);
            Assert.True(new KvCapacity(tokens + 2 * KvStateSpec.BlockTokens, 8, 256).BytesOf(kinds) > bytes || tokens > int.MaxValue / 3);
        }
    }
}

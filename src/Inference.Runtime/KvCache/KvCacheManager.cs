using Inference.Backends;
using Inference.Runtime.KvCache.Disk;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.KvCache;

/// <summary>
/// Who holds which KV pages. A sequence's table grows before a step (<see cref="TryExtend"/>: all kinds or none), gives up what
/// retention lets go after it (<see cref="Trim"/>), and ends with <see cref="Free"/>. It never looks into a page and knows no model family:
/// everything follows from the declared <see cref="KvStateSpec"/>s. One thread.
/// With <see cref="KvCapacity.Snapshots"/> it also keeps prefixes (<see cref="PrefixCache"/>), which give way whenever a sequence needs pages.
/// Invariant: pages held by tables and by kept prefixes, and free pages, together are all pages.
/// </summary>
public sealed class KvCacheManager : IDisposable
{
    private readonly KvPool[] _pools;

    public KvCacheManager(IReadOnlyList<KvStateSpec> specs, KvCapacity capacity, IBackend? backend)
    {
        Capacity = capacity;
        _pools = [.. specs.Select(s => new KvPool(s, capacity.PagesOf(s), backend))];
        if (capacity.Snapshots > 0 && PrefixCache.Supports(specs)) Prefixes = new PrefixCache(_pools, capacity.Snapshots, backend);
        SequenceTokensMax = _pools.Where(p => p.Spec.Retention == KvRetention.All)
            .Select(p => (int)Math.Min((long)p.PageCount * p.Spec.PageTokens, int.MaxValue)).DefaultIfEmpty(int.MaxValue).Min();
    }

    /// <summary>Gives the kept prefixes a disk. The store is the cache's from here on.</summary>
    /// <exception cref="InvalidOperationException">No prefixes are kept, or there is no memory whose content could be.</exception>
    internal void OpenTier(KvStore store, IBackend backend, Action wake, TimeProvider time, ILogger log, bool threads)
    {
        if (Prefixes is null) throw new InvalidOperationException("A cache that keeps no prefixes has nothing to put on disk.");
        Prefixes.Tier = new PrefixTier(Prefixes, _pools, backend, store, wake, time, log, threads);
    }

    public KvCapacity Capacity { get; }

    /// <summary>Kept prefixes; null if none are to be kept or the declared kinds of state cannot be.</summary>
    internal PrefixCache? Prefixes { get; }

    public IReadOnlyList<KvPool> Pools => _pools;

    /// <summary>Most positions of one sequence that has the cache for itself.</summary>
    public int SequenceTokensMax { get; }

    public BlockTable CreateTable() => new(_pools.Length);

    /// <summary>Gives the table room for <paramref name="length"/> tokens; false, and nothing changed, if a pool has too few pages.</summary>
    public bool TryExtend(BlockTable table, int length)
    {
        for (int k = 0; k < _pools.Length; k++)
            if (PagesMissing(table, k, length) > _pools[k].FreeCount) return false;
        for (int k = 0; k < _pools.Length; k++)
        {
            if (_pools[k].Spec.Retention == KvRetention.Slot)
                for (int n = length - 1 - (table.FirstPage(k) + table.Pages(k).Count); n > 0; n--) table.PageList(k).Add(BlockTable.NoPage);
            for (int n = PagesMissing(table, k, length); n > 0; n--) table.PageList(k).Add(_pools[k].Take());
        }
        table.Length = Math.Max(table.Length, length);
        return true;
    }

    /// <summary>Gives back the pages that retention no longer needs once <paramref name="length"/> tokens were processed.</summary>
    public void Trim(BlockTable table, int length)
    {
        for (int k = 0; k < _pools.Length; k++)
        {
            var pages = table.PageList(k);
            int first = table.FirstPage(k);
            int drop = Math.Min(pages.Count, _pools[k].Spec.FirstPageNeeded(length) - first);
            if (drop <= 0) continue;
            for (int i = 0; i < drop; i++)
                if (pages[i] != BlockTable.NoPage) _pools[k].Release(pages[i]);
            pages.RemoveRange(0, drop);
            table.SetFirstPage(k, first + drop);
        }
    }

    /// <summary>Gives back everything; the table is as new.</summary>
    public void Free(BlockTable table)
    {
        for (int k = 0; k < _pools.Length; k++)
        {
            foreach (int page in table.PageList(k))
                if (page != BlockTable.NoPage) _pools[k].Release(page);
            table.PageList(k).Clear();
            table.SetFirstPage(k, 0);
        }
        table.Length = 0;
    }

    /// <summary>Pages of a kind that the table lacks for <paramref name="length"/> tokens.</summary>
    public int PagesMissing(BlockTable table, int kind, int length) => _pools[kind].Spec.PagesBetween(table.Length, length);

    /// <summary>Whether one more snapshot can be pinned, in exchange for another: pins take at most half of the pages and half of the snapshots,
    /// so that kept prefixes and requests always have the rest. What snapshots share counts for each.</summary>
    internal bool MayPin(PrefixCache.Snapshot snapshot, PrefixCache.Snapshot? insteadOf)
    {
        var prefixes = Prefixes!;
        bool frees = insteadOf is { Pins: 1 };
        long bytes = prefixes.PinnedBytes + prefixes.BytesOf(snapshot) - (frees ? prefixes.BytesOf(insteadOf!) : 0);
        int count = prefixes.PinnedCount + 1 - (frees ? 1 : 0);
        return count <= Math.Max(1, Capacity.Snapshots / 2) && bytes <= _pools.Sum(p => p.PageCount * p.Spec.PageBytes) / 2;
    }

    public void Dispose()
    {
        Prefixes?.Tier?.Dispose();
        foreach (var pool in _pools) pool.Dispose();
    }
}

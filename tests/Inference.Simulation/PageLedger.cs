using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Simulation;

/// <summary>
/// Recounts who holds which page and which node of the kept prefixes, and compares with what pools and nodes believe. Looks at tables, nodes and
/// snapshots, never at the free lists it checks. Its arrays are used again: it runs after every step.
/// </summary>
internal sealed class PageLedger(KvCacheManager cache, Laws laws)
{
    private readonly int[][] _tables = [.. cache.Pools.Select(p => new int[p.PageCount])];  // holders of each page: sequences
    private readonly int[][] _kept = [.. cache.Pools.Select(p => new int[p.PageCount])];    // kept prefixes
    private readonly int[] _seen = new int[cache.Pools.Max(p => p.PageCount)];              // table that held the page last
    private readonly Dictionary<PrefixCache.Node, int> _holders = [];
    private int _table;

    /// <param name="sequences">Every one that has not ended; ended ones may be among them.</param>
    public void Check(IReadOnlyList<Sequence> sequences)
    {
        for (int kind = 0; kind < cache.Pools.Count; kind++)
        {
            var pool = cache.Pools[kind];
            Array.Clear(_tables[kind]);
            Array.Clear(_kept[kind]);
            CountKept(kind);
            for (int i = 0; i < sequences.Count; i++) CountTable(sequences[i], kind, pool.Spec);
            CheckPool(pool, _tables[kind], _kept[kind]);
            for (int i = 0; i < sequences.Count; i++) CheckWriter(sequences[i], kind, pool.Spec);
        }
    }

    private void CountKept(int kind)
    {
        if (cache.Prefixes is not { } prefixes) return;
        var kept = _kept[kind];
        foreach (var node in prefixes.Nodes)
            if (node.Depth > 0)
                foreach (int page in node.Pages[kind]) kept[page]++;
        foreach (var snapshot in prefixes.Snapshots)
            foreach (int page in snapshot.Pages[kind]) kept[page]++;
    }

    private void CountTable(Sequence sequence, int kind, KvStateSpec spec)
    {
        var pages = sequence.Table.PageList(kind);
        int first = sequence.Table.FirstPage(kind), end = first + pages.Count;
        bool right = sequence.State is SequenceState.Waiting or SequenceState.Finished
            ? end == 0 && sequence.Processed == 0
            : end == spec.PagesFor(sequence.Table.Length) && first <= spec.FirstPageNeeded(sequence.Processed);
        laws.Check(sequence.State == SequenceState.Finished ? Law.CancelFrees : Law.TableCovers, right,
            $"{spec.Name}: the table of sequence {sequence.Arrival} ({sequence.State}, {sequence.Processed} processed) has pages {first} to {end}");
        _table++;
        for (int i = 0; i < pages.Count; i++)
        {
            int page = pages[i];
            if (page == BlockTable.NoPage)
            {
                laws.Check(Law.TableCovers, spec.Retention == KvRetention.Slot && first + i >= sequence.Processed,
                    $"{spec.Name}: the table of sequence {sequence.Arrival} ({sequence.Processed} processed) lacks row {first + i}");
                continue;
            }
            if (_seen[page] == _table) laws.Check(Law.TableCovers, false, $"{spec.Name}: page {page} is twice in the table of sequence {sequence.Arrival}");
            _seen[page] = _table;
            _tables[kind][page]++;
        }
    }

    private void CheckPool(KvPool pool, int[] tables, int[] kept)
    {
        int held = 0, keptOnly = 0, shared = 0, wrong = -1;
        for (int page = 0; page < tables.Length; page++)
        {
            int holders = tables[page] + kept[page];
            if (pool.References(page) != holders || pool.KeptReferences(page) != kept[page]) wrong = page;
            if (holders > 0) held++;
            if (holders > 1) shared++;
            if (kept[page] > 0 && tables[page] == 0) keptOnly++;
        }
        if (wrong >= 0)
            laws.Check(Law.ReferencesCounted, false,
                $"{pool.Spec.Name}: page {wrong} has {tables[wrong]} tables and {kept[wrong]} prefixes, and counts {pool.References(wrong)} references, {pool.KeptReferences(wrong)} of them kept");
        laws.Check(Law.ReferencesCounted, shared > 0, keptOnly == pool.KeptCount, "pages that only prefixes hold are miscounted");
        laws.Check(Law.PagesConserved, held > 0, held + pool.FreeCount == pool.PageCount, "pages held and free pages are not all pages");
        _table++;
        foreach (int page in pool.Free)
            if (tables[page] + kept[page] > 0 || _seen[page] == -1 - _table)
                laws.Check(Law.FreePagesUntouched, false, $"{pool.Spec.Name}: page {page} is free and held, or free twice");
            else _seen[page] = -1 - _table;
        laws.Note(Law.FreePagesUntouched, pool.FreeCount > 0);
    }

    // Rows that come next lie on pages that no other sequence reads.
    private void CheckWriter(Sequence sequence, int kind, KvStateSpec spec)
    {
        if (sequence.State is SequenceState.Waiting or SequenceState.Finished) return;
        int at = sequence.Processed / spec.Ratio / spec.RowsPerPage - sequence.Table.FirstPage(kind);
        var pages = sequence.Table.PageList(kind);
        for (; at < pages.Count; at++)
        {
            if (at < 0 || pages[at] == BlockTable.NoPage) continue;
            laws.Check(Law.OneWriter, _tables[kind][pages[at]] == 1, $"{spec.Name}: page {pages[at]}, that sequence {sequence.Arrival} is to write, has {_tables[kind][pages[at]]} tables");
        }
    }

    /// <summary>Nodes and snapshots of the kept prefixes: linked both ways, held as often as they say, none held that is not there.</summary>
    public void CheckPrefixes(IReadOnlyList<Sequence> sequences)
    {
        if (cache.Prefixes is not { } prefixes) return;
        _holders.Clear();
        int pinned = 0;
        long pinnedBytes = 0;
        foreach (var node in prefixes.Nodes) Hold(node.Parent);
        foreach (var snapshot in prefixes.Snapshots)
        {
            Hold(snapshot.Node);
            laws.Check(Law.PrefixEviction, snapshot.Entry is not null && snapshot.Node.Snapshots.Contains(snapshot), $"a snapshot of {snapshot.Length} tokens is kept and cannot be found");
            if (snapshot.Pins == 0) continue;
            pinned++;
            pinnedBytes += prefixes.BytesOf(snapshot);
        }
        foreach (var sequence in sequences) Hold(sequence.Prefix?.Node);
        foreach (var node in prefixes.Nodes)
            laws.Check(Law.PrefixEviction, node.Holders == _holders.GetValueOrDefault(node), $"a node at depth {node.Depth} has {_holders.GetValueOrDefault(node)} holders and counts {node.Holders}");
        foreach (var (node, _) in _holders)
            laws.Check(Law.PrefixEviction, prefixes.IsKept(node), $"a node at depth {node.Depth} is held and was given up");
        laws.Check(Law.MemoryBounded, prefixes.SnapshotCount <= cache.Capacity.Snapshots, $"{prefixes.SnapshotCount} snapshots are more than {cache.Capacity.Snapshots}");
        laws.Check(Law.CountersAgree, pinned > 0, pinned == prefixes.PinnedCount && pinnedBytes == prefixes.PinnedBytes, "pins are miscounted");
    }

    private void Hold(PrefixCache.Node? node)
    {
        if (node is not null) _holders[node] = _holders.GetValueOrDefault(node) + 1;
    }
}

using Inference.Runtime.KvCache;
using Inference.Runtime.Scheduling;
using Xunit;
using SequenceState = Inference.Runtime.Scheduling.SequenceState;

namespace Inference.Runtime.Tests.Scheduling;

/// <summary>Recounts who holds which page, and compares with what the pools believe.</summary>
internal static class PageLedger
{
    public static void Check(KvCacheManager cache, IReadOnlyList<Sequence> sequences)
    {
        for (int kind = 0; kind < cache.Pools.Count; kind++)
        {
            var pool = cache.Pools[kind];
            var holders = new int[pool.PageCount];
            foreach (int page in cache.Prefixes?.PagesHeld(kind) ?? []) holders[page]++;
            foreach (var sequence in sequences)
            {
                foreach (int page in sequence.Table.PageList(kind)) holders[page]++;
                if (!TableIsRight(sequence, kind, pool.Spec))
                    Assert.Fail($"{pool.Spec.Name}: the table of sequence {sequence.Arrival} ({sequence.State}, {sequence.Processed} processed) is wrong");
            }
            for (int page = 0; page < holders.Length; page++)
                if (holders[page] != pool.References(page))
                    Assert.Fail($"{pool.Spec.Name}: page {page} has {holders[page]} holders and counts {pool.References(page)}");
            int held = holders.Count(h => h > 0);
            if (pool.FreeCount + held != pool.PageCount)
                Assert.Fail($"{pool.Spec.Name}: {held} held and {pool.FreeCount} free are not {pool.PageCount}");
        }
    }

    private static bool TableIsRight(Sequence sequence, int kind, KvStateSpec spec)
    {
        int first = sequence.Table.FirstPage(kind), end = first + sequence.Table.PageList(kind).Count;
        return sequence.State is SequenceState.Waiting or SequenceState.Finished
            ? end == 0 && sequence.Processed == 0
            : end == spec.PagesFor(sequence.Table.Length) && first <= spec.FirstPageNeeded(sequence.Processed);
    }
}

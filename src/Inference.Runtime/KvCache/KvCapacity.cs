namespace Inference.Runtime.KvCache;

/// <summary>
/// How much the cache holds: <see cref="Tokens"/> positions in all, spread over at most <see cref="Sequences"/> sequences of which one step
/// processes at most <see cref="StepTokens"/> tokens. Page counts per kind follow, so that a set of sequences within these three
/// numbers never lacks a page of one kind while another kind has plenty.
/// </summary>
/// <param name="Snapshots">Most prefixes kept for reuse (0 = none): each needs the constant state of a sequence.</param>
public sealed record KvCapacity(int Tokens, int Sequences, int StepTokens, int Snapshots = 0)
{
    public int PagesOf(KvStateSpec spec)
    {
        long pages = spec.Retention switch
        {
            KvRetention.All => Tokens / spec.PageTokens + Sequences,
            KvRetention.Slot => 2L * Sequences + Snapshots,  // a step reads one and writes another
            _ => ((long)Sequences + Snapshots) * PagesPerSequence(spec) + (StepTokens + spec.RowsPerPage - 1) / spec.RowsPerPage + Sequences,
        };
        return checked((int)pages);
    }

    public long BytesOf(IEnumerable<KvStateSpec> specs) => specs.Sum(s => s.PageBytes * PagesOf(s));

    /// <summary>The most positions whose pages fit in <paramref name="bytes"/>; 0 if not even the constant state of the sequences fits.</summary>
    public static int TokensFor(long bytes, int sequences, int stepTokens, IReadOnlyList<KvStateSpec> specs, int snapshots = 0)
    {
        long left = bytes - new KvCapacity(0, sequences, stepTokens, snapshots).BytesOf(specs);
        double perToken = specs.Where(s => s.Retention == KvRetention.All).Sum(s => (double)s.PageBytes / s.PageTokens);
        if (left <= 0) return 0;
        double tokens = perToken == 0 ? int.MaxValue : left / perToken;
        return (int)Math.Min(tokens, int.MaxValue / 2) / KvStateSpec.BlockTokens * KvStateSpec.BlockTokens;
    }

    // Rows that retention keeps between two steps, in pages; they may start and end inside a page.
    internal static int PagesPerSequence(KvStateSpec spec)
    {
        if (spec.Retention == KvRetention.Slot) return 1;
        int rows = spec.Retention == KvRetention.Window ? spec.RetentionTokens : spec.RetentionTokens * (spec.ChunksBefore + 1);
        return (rows + spec.RowsPerPage - 1) / spec.RowsPerPage + 1;
    }
}

namespace Inference.Runtime.KvCache;

/// <summary>
/// Where a sequence leaves snapshots on its way, and which goes first when there are too many. Chosen by measuring agent-like traces: hit tokens
/// against bytes (benchmarks, <c>prefix-traces</c>; docs/adr/0004).
///
/// Taken: every block up to <see cref="DenseTo"/> (short prompts are edited anywhere), every <see cref="MiddleSpacing"/> to
/// <see cref="MiddleTo"/>, every <see cref="LongSpacing"/> from there on; where the prompt's last messages begin; one token before the end of the
/// prompt (the same prompt again computes one token) and at its end. The end of the answer is entered when it is reached.
///
/// Given up: of the least recently used <see cref="Considered"/>, the one that a shorter snapshot of the same prefix replaces best: least is what its
/// loss would cost, in tokens, for each token that it stands behind the longest one of the same prefix. A conversation is thinned
/// geometrically from its end; if all are worth <see cref="ThinBelow"/> or more, the least recently used goes.
/// </summary>
internal sealed record SnapshotPolicy
{
    private const int Block = KvStateSpec.BlockTokens;

    public int DenseTo { get; init; } = 4096;
    public int MiddleTo { get; init; } = 16384;
    public int MiddleSpacing { get; init; } = 1024;
    public int LongSpacing { get; init; } = 4096;

    /// <summary>Snapshots where messages begin, at most, counted from the prompt's end.</summary>
    public int BoundariesMax { get; init; } = 2;

    /// <summary>How much more a snapshot is worth where a message begins: conversations part there.</summary>
    public double MessageWorth { get; init; } = 8;

    public int Considered { get; init; } = 256;
    public double ThinBelow { get; init; } = 2;

    /// <summary>Adds the points in (from, to], each once, in no order.</summary>
    public void Between(int from, int to, int promptLength, IReadOnlyList<int> boundaries, List<int> points)
    {
        for (int n = (from / Block + 1) * Block; n <= to; n += Block)
            if (n % Spacing(n) == 0) points.Add(n);
        Add(promptLength - 1);
        Add(promptLength);
        if (boundaries is [.., var last] && from < last)
            for (int i = Math.Max(0, boundaries.Count - BoundariesMax); i < boundaries.Count; i++) Add(boundaries[i]);

        void Add(int n)
        {
            if (n > from && n <= to && !points.Contains(n)) points.Add(n);
        }
    }

    /// <summary>
    /// Whether a snapshot goes to disk, if there is one, when it is taken: one token before the end of the prompt, where messages begin, and now and
    /// then on the way of a long prompt. (The end of an answer does too.) The others serve edits while they are in memory.
    /// </summary>
    public bool OutlivesMemory(int length, int promptLength, IReadOnlyList<int> boundaries) =>
        length == promptLength - 1 || length % LongSpacing == 0 || boundaries.Contains(length);

    private int Spacing(int length) => length <= DenseTo ? Block : length <= MiddleTo ? MiddleSpacing : LongSpacing;
}

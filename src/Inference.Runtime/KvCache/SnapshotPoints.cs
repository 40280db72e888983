namespace Inference.Runtime.KvCache;

/// <summary>
/// Where a sequence leaves snapshots on its way: every block within the first 4,096 tokens (short prompts are edited anywhere), every 1,024 to
/// 16,384, every 4,096 from there on, one token before the end of the prompt (the same prompt again computes one token) and at its
/// end. The end of the answer is entered when it is reached.
/// </summary>
internal static class SnapshotPoints
{
    private const int Block = KvStateSpec.BlockTokens, LongSpacing = 4096;

    /// <summary>Adds the points in (from, to], ascending but for the last two.</summary>
    public static void Between(int from, int to, int promptLength, List<int> points)
    {
        for (int n = (from / Block + 1) * Block; n <= to; n += Block)
            if (n % Spacing(n) == 0) points.Add(n);
        Add(promptLength - 1);
        Add(promptLength);

        void Add(int n)
        {
            if (n > from && n <= to && !points.Contains(n)) points.Add(n);
        }
    }

    /// <summary>
    /// Whether a snapshot goes to disk, if there is one, when it is taken: one token before the end of the prompt, where messages begin, and now and
    /// then on the way of a long prompt. (The end of an answer does too.) The others serve edits while they are in memory.
    /// </summary>
    public static bool OutlivesMemory(int length, int promptLength, IReadOnlyList<int> boundaries) =>
        length == promptLength - 1 || length % LongSpacing == 0 || boundaries.Contains(length);

    private static int Spacing(int length) => length <= 4096 ? Block : length <= 16384 ? 1024 : LongSpacing;
}

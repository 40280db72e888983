namespace Inference.Runtime.KvCache;

/// <summary>
/// The pages that one sequence holds, per kind of state: page index (row div rows per page) to page id, pages before
/// <see cref="FirstPage"/> dropped. Changed by <see cref="KvCacheManager"/> only.
/// </summary>
public sealed class BlockTable(int kinds)
{
    public const int NoPage = -1;

    private readonly List<int>[] _pages = [.. Enumerable.Range(0, kinds).Select(_ => new List<int>())];
    private readonly int[] _firstPage = new int[kinds];

    /// <summary>Token positions that the pages have room for.</summary>
    public int Length { get; internal set; }

    public int FirstPage(int kind) => _firstPage[kind];

    /// <summary>Ids of the pages from <see cref="FirstPage"/> on; <see cref="NoPage"/> for rows that are not stored (<see cref="KvRetention.Slot"/>).</summary>
    public IReadOnlyList<int> Pages(int kind) => _pages[kind];

    internal List<int> PageList(int kind) => _pages[kind];

    internal void SetFirstPage(int kind, int value) => _firstPage[kind] = value;
}

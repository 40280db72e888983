namespace Inference.Runtime.KvCache;

/// <summary>Where a sequence stands in the <see cref="PrefixCache"/>, and the names of its blocks. Belongs to the sequence.</summary>
internal sealed class PrefixPath(PrefixHash root)
{
    /// <summary>The place of a tenant's sequence that has computed nothing.</summary>
    public static PrefixPath Begin(string tenant, IReadOnlyList<int>? boundaries = null) => new(PrefixHash.Root(tenant)) { Boundaries = boundaries ?? [] };

    public PrefixHash Root { get; } = root;
    public List<PrefixHash> Names { get; } = [];
    public PrefixCache.Node? Node { get; set; }

    /// <summary>What was or is being read from disk for it; null if nothing was looked for.</summary>
    public PrefixRestore? Restore { get; set; }

    /// <summary>Another prefix has the name of one of its blocks: nothing of it is entered.</summary>
    public bool Lost { get; set; }

    /// <summary>It stands on blocks that another computed as well: its own pages of them are others, and as long as it stands there both are taken.</summary>
    public bool Apart { get; set; }

    /// <summary>Lengths at which a later prompt is likely to part from this one: its chat messages begin there.</summary>
    public IReadOnlyList<int> Boundaries { get; private init; } = [];

    /// <summary>Lengths at which others wait for a snapshot of it.</summary>
    public List<int> Wanted { get; } = [];
}

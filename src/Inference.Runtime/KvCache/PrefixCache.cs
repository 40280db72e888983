using Inference.Backends;

namespace Inference.Runtime.KvCache;

/// <summary>
/// Keeps the state of prefixes that sequences have computed, so that a later one with the same beginning resumes instead of computing.
///
/// Every row is addressed by its absolute position and never changes once written, so the state after n tokens is simply "the rows below
/// n that retention still needs at n". A <see cref="Snapshot"/> at n holds references to the pages of these rows: those of whole blocks through
/// a chain of <see cref="Node"/>s (shared between all prefixes that contain the block), the rest itself. It may hold a page that its
/// sequence goes on writing: those writes are to rows of n and above. Who resumes at n takes the pages as they are, but a copy of a page that
/// has room for rows of n and above.
///
/// Snapshots are taken where a sequence has been, from what its table still holds: wherever a step ended, any n it passed. (Of recurrent state
/// it holds what was made room for before the step: <see cref="Prepare"/>.) They go when room is needed, least recently used first; a node goes with the last snapshot, child or sequence that stands on it. Owned by the engine's
/// thread, through the <see cref="Scheduling.Scheduler"/>.
/// Invariant: each page of a node or snapshot has one reference of the pool's for it.
/// </summary>
internal sealed class PrefixCache(IReadOnlyList<KvPool> pools, int snapshotsMax, IBackend? backend)
{
    private readonly Dictionary<PrefixHash, Node> _nodes = [];
    private readonly LinkedList<Snapshot> _byUse = [];  // least recently used first
    private readonly List<int> _points = [];
    private readonly int[] _slots = [.. Enumerable.Range(0, pools.Count).Where(k => pools[k].Spec.Retention == KvRetention.Slot)];

    /// <summary>Where snapshots are taken, and which goes first.</summary>
    public SnapshotPolicy Policy { get; set; } = new();

    /// <summary>Where snapshots go that memory has no room for; null = nowhere.</summary>
    public PrefixTier? Tier { get; set; }

    /// <summary>Names a prefix by its parent's name and a block; replaced in tests that force collisions.</summary>
    internal Func<PrefixHash, ReadOnlyMemory<int>, PrefixHash> Chain { get; set; } = static (parent, block) => parent.Then(block.Span);

    /// <summary>Tokens of a block: what the largest page of any kind that is kept for ever covers (256 for the families here).</summary>
    public int BlockTokens { get; } = BlockOf(pools.Select(p => p.Spec));

    /// <summary>True if the declared kinds of state can be cached: pages of what is kept for ever must fill blocks.</summary>
    public static bool Supports(IReadOnlyCollection<KvStateSpec> specs) =>
        specs.Where(s => s.Retention == KvRetention.All).All(s => BlockOf(specs) % s.PageTokens == 0);

    internal static int BlockOf(IEnumerable<KvStateSpec> specs) =>
        specs.Where(s => s.Retention == KvRetention.All).Select(s => s.PageTokens).DefaultIfEmpty(KvStateSpec.BlockTokens).Max();

    public int SnapshotCount => _byUse.Count;
    public int NodeCount => _nodes.Count;

    /// <summary>Everything that is kept, for tests.</summary>
    internal Dictionary<PrefixHash, Node>.ValueCollection Nodes => _nodes.Values;

    internal LinkedList<Snapshot> Snapshots => _byUse;

    internal bool IsKept(Node node) => _nodes.GetValueOrDefault(node.Name) == node;

    /// <summary>
    /// The longest prefix of at most <paramref name="lengthMax"/> tokens that is kept; null if none. Good until the next <see cref="Reclaim"/>.
    /// </summary>
    public Snapshot? Find(PrefixPath path, ReadOnlyMemory<int> tokens, int lengthMax)
    {
        Snapshot? best = null;
        var node = _nodes.GetValueOrDefault(path.Root);
        for (int depth = 0; node is not null; depth++)
        {
            foreach (var snapshot in node.Snapshots)
                if (snapshot.Length <= lengthMax && snapshot.Length > (best?.Length ?? 0) && Continues(tokens, depth * BlockTokens, snapshot.Tail))
                    best = snapshot;
            if ((depth + 1) * BlockTokens > lengthMax) break;
            node = Child(path, depth, tokens);
        }
        return best;
    }

    /// <summary>Pages of a kind that resuming takes from the free list, for copies.</summary>
    public int CopiesNeeded(Snapshot snapshot, int kind) => OpenPage(snapshot, kind) ? 1 : 0;

    /// <summary>
    /// Makes an empty table hold the state after the snapshot's tokens. The caller has checked that <see cref="CopiesNeeded"/> pages are free.
    /// </summary>
    public void Resume(Snapshot snapshot, BlockTable table, PrefixPath path)
    {
        Touch(snapshot);
        snapshot.Uses++;
        var chain = snapshot.Node.FromRoot();
        for (int k = 0; k < pools.Count; k++)
        {
            var pages = table.PageList(k);
            if (pools[k].Spec.Retention == KvRetention.All)
                foreach (int page in chain.SelectMany(n => n.Pages[k])) pages.Add(Shared(k, page));
            else
                table.SetFirstPage(k, pools[k].Spec.FirstPageNeeded(snapshot.Length));
            for (int i = 0; i < snapshot.Pages[k].Length; i++)
            {
                bool open = i == snapshot.Pages[k].Length - 1 && OpenPage(snapshot, k);
                pages.Add(open ? Copied(k, snapshot.Pages[k][i]) : Shared(k, snapshot.Pages[k][i]));
            }
        }
        table.Length = snapshot.Length;
        Stand(path, snapshot.Node);
    }

    /// <summary>
    /// Before a step takes a sequence from one length to another: makes room for the recurrent states where <see cref="Enter"/> will take snapshots.
    /// Each takes at most one other snapshot's place, as it would when it is taken; where there is no room, none is taken.
    /// </summary>
    /// <param name="spare">Pages of each kind that stay free for the step's other sequences.</param>
    public void Prepare(BlockTable table, PrefixPath path, int from, int to, int promptLength, int spare)
    {
        if (_slots.Length == 0 || path.Lost) return;
        FindPoints(path, from, to, promptLength);
        foreach (int point in _points)
        {
            if (HoldsSlots(table, point)) continue;
            if (!HasSlots(spare + 1) && !(Reclaim() && HasSlots(spare + 1))) continue;
            foreach (int k in _slots) table.PageList(k)[point - 1 - table.FirstPage(k)] = pools[k].Take();
        }
    }

    private bool HasSlots(int pages)
    {
        foreach (int k in _slots)
            if (pools[k].FreeCount < pages) return false;
        return true;
    }

    // Whether the table has the recurrent state after so many tokens.
    private bool HoldsSlots(BlockTable table, int length)
    {
        foreach (int k in _slots)
            if (table.Pages(k)[length - 1 - table.FirstPage(k)] == BlockTable.NoPage) return false;
        return true;
    }

    // In ascending order.
    private void FindPoints(PrefixPath path, int from, int to, int promptLength)
    {
        _points.Clear();
        Policy.Between(from, to, promptLength, path.Boundaries, _points);
        foreach (int wanted in path.Wanted)
            if (wanted > from && wanted <= to && !_points.Contains(wanted)) _points.Add(wanted);
        _points.Sort();
    }

    /// <summary>
    /// Enters what a sequence has computed between two lengths: its whole blocks, and snapshots at the points of the policy and at
    /// <see cref="PrefixPath.Wanted"/>. The table still holds what the step needed, so this comes before <see cref="KvCacheManager.Trim"/>.
    /// </summary>
    public void Enter(BlockTable table, PrefixPath path, ReadOnlyMemory<int> tokens, int from, int to, int promptLength)
    {
        if (path.Lost) return;
        Place(path);
        FindPoints(path, from, to, promptLength);
        path.Wanted.RemoveAll(w => w <= to);
        foreach (int point in _points)
        {
            if (!HoldsSlots(table, point)) continue;
            if (!Advance(table, path, tokens, point / BlockTokens)) return;
            var snapshot = Take(table, path.Node!, tokens, point);
            if (snapshot is not null) snapshot.AtMessage |= path.Boundaries.Contains(point);
            if (snapshot is not null && Policy.OutlivesMemory(point, promptLength, path.Boundaries)) Tier?.Write(snapshot);
        }
        Advance(table, path, tokens, (SeededBug.Is(9) ? to + BlockTokens - 1 : to) / BlockTokens);
    }

    /// <summary>A snapshot where a sequence stands, as long as its table holds that state; it goes to disk too, if there is one.</summary>
    public void EnterEnd(BlockTable table, PrefixPath path, ReadOnlyMemory<int> tokens, int length)
    {
        if (path.Lost || length == 0) return;
        Place(path);
        if (Advance(table, path, tokens, length / BlockTokens) && Take(table, path.Node!, tokens, length) is { } snapshot) Tier?.Write(snapshot);
    }

    /// <summary>The sequence no longer stands anywhere; what it entered stays as long as a snapshot needs it.</summary>
    public void Leave(PrefixPath path)
    {
        Tier?.Abort(path);
        StandNowhere(path);
        path.Restore = null;
        path.Lost = false;
        path.Wanted.Clear();
    }

    /// <summary>Gives up a snapshot, but not <paramref name="except"/>; false if there is no other. Which one: <see cref="SnapshotPolicy"/>.</summary>
    /// <param name="pinned">Pinned ones too: for a sequence that has the cache for itself and would not fit otherwise.</param>
    public bool Reclaim(Snapshot? except = null, bool pinned = false)
    {
        Snapshot? victim = null;
        double least = Policy.ThinBelow;
        int considered = 0;
        for (var entry = _byUse.First; entry is not null && considered < Policy.Considered; entry = entry.Next)
        {
            var snapshot = entry.Value;
            if (snapshot == except || (snapshot.Pins > 0 && !pinned && !SeededBug.Is(10))) continue;
            victim ??= snapshot;
            considered++;
            if (Worth(snapshot) is not { } worth || worth >= least) continue;
            (victim, least) = (snapshot, worth);
        }
        if (victim is null) return false;
        Tier?.GivingUp(victim);
        Drop(victim);
        return true;
    }

    // Tokens that would be computed again without the snapshot, in proportion to its distance to the longest that goes on from it; null if none
    // does, or none comes before it.
    private double? Worth(Snapshot snapshot)
    {
        // Of the same block others may part from it: near enough.
        int reach = snapshot.Node.Reach;
        if (reach <= snapshot.Length) return null;
        int before = 0;
        for (Node? n = snapshot.Node; n is not null && before == 0; n = n.Parent)
            foreach (var other in n.Snapshots)
                if (other.Length < snapshot.Length && snapshot.Continues(other)) before = Math.Max(before, other.Length);
        return (double)(snapshot.Length - before) / (reach - snapshot.Length) * (snapshot.AtMessage ? Policy.MessageWorth : 1);
    }

    /// <summary>Protects a snapshot from being given up for others; each pin is undone by one <see cref="Unpin"/>.</summary>
    public void Pin(Snapshot snapshot)
    {
        if (snapshot.Pins++ > 0) return;
        PinnedCount++;
        PinnedBytes += BytesOf(snapshot);
    }

    public void Unpin(Snapshot snapshot)
    {
        if (--snapshot.Pins == 0 && snapshot.Entry is not null) Unpinned(snapshot);
    }

    /// <summary>Snapshots that are pinned, and the bytes of each added up.</summary>
    public int PinnedCount { get; private set; }

    public long PinnedBytes { get; private set; }

    private void Unpinned(Snapshot snapshot)
    {
        PinnedCount--;
        PinnedBytes -= BytesOf(snapshot);
    }

    /// <summary>Bytes of the pages that a snapshot needs, those that it shares with others among them.</summary>
    public long BytesOf(Snapshot snapshot)
    {
        long bytes = 0;
        for (int k = 0; k < pools.Count; k++)
        {
            long pages = snapshot.Pages[k].Length;
            for (Node? n = snapshot.Node; n is { Depth: > 0 }; n = n.Parent) pages += n.Pages[k].Length;
            bytes += pages * pools[k].Spec.PageBytes;
        }
        return bytes;
    }

    // ---- what comes from disk ----

    /// <summary>Moves a path to the deepest of its blocks that are here, up to a depth.</summary>
    public Node StandDeepest(PrefixPath path, ReadOnlyMemory<int> tokens, int depthMax)
    {
        var node = Place(path);
        while (node.Depth < depthMax && Child(path, node.Depth, tokens) is { } child) Stand(path, node = child);
        return node;
    }

    /// <summary>The path stands nowhere; what it stood on stays as long as another holds it.</summary>
    public void StandNowhere(PrefixPath path)
    {
        if (path.Node is { } node) Release(node);
        path.Node = null;
        path.Apart = false;
    }

    /// <summary>Enters the path's next block with pages that hold it, and moves there. The pages are the cache's afterwards, also when this says
    /// false: the block's name is taken by another prefix.</summary>
    public bool EnterRestored(PrefixPath path, ReadOnlyMemory<int> tokens, int block, int[][] pages)
    {
        var name = Name(path, block, tokens);
        var content = tokens.Slice(block * BlockTokens, BlockTokens);
        var known = _nodes.GetValueOrDefault(name);
        bool same = known is not null && known.Parent == path.Node && known.Tokens.AsSpan().SequenceEqual(content.Span);
        if (known is null)
        {
            known = NewNode(path.Node!, name, content, pages);
            same = true;
            Adopt(pages, kept: true);
        }
        else
        {
            Adopt(pages, kept: false);
        }
        if (same) Stand(path, known);
        return same;
    }

    /// <summary>Enters a snapshot where the path stands, with pages that hold its state. The pages are the cache's afterwards; false if there is no
    /// room for another snapshot.</summary>
    public bool EnterRestored(PrefixPath path, ReadOnlyMemory<int> tokens, int[][] pages, int length)
    {
        var node = path.Node!;
        var tail = tokens.Span[(node.Depth * BlockTokens)..length];
        bool known = Known(node, tail) is not null;
        bool kept = !known && (_byUse.Count < snapshotsMax || Reclaim());
        Adopt(pages, kept);
        if (kept) Add(new Snapshot { Node = node, Length = length, Tail = tail.ToArray(), Pages = pages });
        return known || kept;
    }

    /// <summary>Pages of a kind that a snapshot holds besides those of its whole blocks.</summary>
    public int StatePageCount(int kind, int length) => Math.Max(0, pools[kind].Spec.PagesFor(length) - FirstStatePage(kind, length));

    // Pages that were taken for what they now hold.
    private void Adopt(int[][] pages, bool kept)
    {
        for (int k = 0; k < pages.Length; k++)
            foreach (int page in pages[k])
            {
                if (kept) pools[k].Keep(page);
                pools[k].Release(page);
            }
    }

    // ---- nodes ----

    // The node that the path stands on; a path that stands nowhere stands on its root.
    private Node Place(PrefixPath path)
    {
        if (path.Node is not null) return path.Node;
        if (!_nodes.TryGetValue(path.Root, out var root))
            _nodes.Add(path.Root, root = new Node { Name = path.Root, Parent = null, Depth = 0, Tokens = [], Pages = [] });
        Stand(path, root);
        return root;
    }

    private void Stand(PrefixPath path, Node node)
    {
        if (path.Node == node) return;
        node.Holders++;
        if (path.Node is { } before) Release(before);
        path.Node = node;
    }

    // Moves the path down to a depth, entering the blocks on the way. False if another prefix has one of their names.
    private bool Advance(BlockTable table, PrefixPath path, ReadOnlyMemory<int> tokens, int depth)
    {
        while (path.Node!.Depth < depth)
        {
            int at = path.Node.Depth;
            var name = Name(path, at, tokens);
            var block = tokens.Slice(at * BlockTokens, BlockTokens);
            if (!_nodes.TryGetValue(name, out var child))
            {
                child = NewNode(path.Node, name, block, BlockPages(table, at));
            }
            else if (child.Parent != path.Node || !child.Tokens.AsSpan().SequenceEqual(block.Span))
            {
                path.Lost = true;
                return false;
            }
            else
            {
                path.Apart |= !HasPagesOf(child, table, at);
            }
            Stand(path, child);
        }
        return true;
    }

    private Node NewNode(Node parent, PrefixHash name, ReadOnlyMemory<int> block, int[][] pages)
    {
        var node = new Node { Name = name, Parent = parent, Depth = parent.Depth + 1, Tokens = block.ToArray(), Pages = pages };
        parent.Holders++;
        parent.Children.Add(node);
        _nodes.Add(name, node);
        return node;
    }

    private int[][] BlockPages(BlockTable table, int block)
    {
        var pages = new int[pools.Count][];
        for (int k = 0; k < pools.Count; k++)
        {
            pages[k] = new int[pools[k].Spec.Retention == KvRetention.All ? BlockTokens / pools[k].Spec.PageTokens : 0];
            for (int i = 0; i < pages[k].Length; i++) pages[k][i] = Kept(k, table.Pages(k)[block * pages[k].Length + i]);
        }
        return pages;
    }

    private static bool HasPagesOf(Node node, BlockTable table, int block)
    {
        for (int k = 0; k < node.Pages.Length; k++)
            if (node.Pages[k] is [var first, ..] && table.Pages(k)[block * node.Pages[k].Length] != first) return false;
        return true;
    }

    private Node? Child(PrefixPath path, int depth, ReadOnlyMemory<int> tokens)
    {
        var child = _nodes.GetValueOrDefault(Name(path, depth, tokens));
        return child is not null && child.Depth == depth + 1 && Continues(tokens, depth * BlockTokens, child.Tokens) ? child : null;
    }

    // Name of the first depth + 1 blocks.
    internal PrefixHash Name(PrefixPath path, int depth, ReadOnlyMemory<int> tokens)
    {
        while (path.Names.Count <= depth)
        {
            int at = path.Names.Count;
            path.Names.Add(Chain(at == 0 ? path.Root : path.Names[at - 1], tokens.Slice(at * BlockTokens, BlockTokens)));
        }
        return path.Names[depth];
    }

    private void Release(Node node)
    {
        for (Node? n = node; n is not null && --n.Holders == 0; n = n.Parent)
        {
            _nodes.Remove(n.Name);
            n.Parent?.Children.Remove(n);
            for (int k = 0; k < n.Pages.Length; k++)
                foreach (int page in n.Pages[k]) pools[k].GiveUp(page);
        }
    }

    private static bool Continues(ReadOnlyMemory<int> tokens, int at, int[] block) =>
        at + block.Length <= tokens.Length && tokens.Span.Slice(at, block.Length).SequenceEqual(block);

    // ---- snapshots ----

    // Null if there is no room for it.
    private Snapshot? Take(BlockTable table, Node node, ReadOnlyMemory<int> tokens, int length)
    {
        var tail = tokens.Span[(node.Depth * BlockTokens)..length];
        if (Known(node, tail) is { } known) return known;
        if (_byUse.Count >= snapshotsMax && !Reclaim()) return null;
        var snapshot = new Snapshot { Node = node, Length = length, Tail = tail.ToArray(), Pages = new int[pools.Count][] };
        for (int k = 0; k < pools.Count; k++) snapshot.Pages[k] = StatePages(table, k, length);
        Add(snapshot);
        return snapshot;
    }

    private Snapshot? Known(Node node, ReadOnlySpan<int> tail)
    {
        foreach (var known in node.Snapshots)
        {
            if (!tail.SequenceEqual(known.Tail)) continue;
            Touch(known);
            return known;
        }
        return null;
    }

    private void Add(Snapshot snapshot)
    {
        snapshot.Node.Holders++;
        snapshot.Node.Snapshots.Add(snapshot);
        snapshot.Entry = _byUse.AddLast(snapshot);
        snapshot.Node.UpdateReach();
    }

    // Pages of the rows below a length that are needed at that length and belong to no whole block.
    private int[] StatePages(BlockTable table, int kind, int length)
    {
        int first = FirstStatePage(kind, length);
        var pages = new int[StatePageCount(kind, length)];
        for (int i = 0; i < pages.Length; i++) pages[i] = Kept(kind, table.Pages(kind)[first + i - table.FirstPage(kind)]);
        return pages;
    }

    private int FirstStatePage(int kind, int length)
    {
        var spec = pools[kind].Spec;
        return spec.Retention == KvRetention.All ? length / BlockTokens * (BlockTokens / spec.PageTokens) : spec.FirstPageNeeded(length);
    }

    // The last page of the snapshot has room for rows that come after it.
    private bool OpenPage(Snapshot snapshot, int kind)
    {
        var spec = pools[kind].Spec;
        return snapshot.Pages[kind].Length > 0 && snapshot.Length / spec.Ratio % spec.RowsPerPage != 0;
    }

    private void Touch(Snapshot snapshot)
    {
        _byUse.Remove(snapshot.Entry!);
        _byUse.AddLast(snapshot.Entry!);
    }

    private void Drop(Snapshot snapshot)
    {
        _byUse.Remove(snapshot.Entry!);
        snapshot.Entry = null;
        if (snapshot.Pins > 0) Unpinned(snapshot);
        snapshot.Node.Snapshots.Remove(snapshot);
        snapshot.Node.UpdateReach();
        for (int k = 0; k < pools.Count; k++)
            foreach (int page in snapshot.Pages[k]) pools[k].GiveUp(page);
        Release(snapshot.Node);
    }

    private int Kept(int kind, int page)
    {
        pools[kind].Keep(page);
        return page;
    }

    private int Shared(int kind, int page)
    {
        pools[kind].Share(page);
        return page;
    }

    private int Copied(int kind, int page)
    {
        int copy = pools[kind].Take();
        if (!SeededBug.Is(21)) backend?.Copy(pools[kind].Tensor.Slice(page, 1), pools[kind].Tensor.Slice(copy, 1));
        return copy;
    }

    /// <summary>One block of tokens after a prefix, with the pages of the rows that are kept for ever.</summary>
    internal sealed class Node
    {
        public required PrefixHash Name { get; init; }
        public required Node? Parent { get; init; }
        /// <summary>Blocks from the root to here; the root has none.</summary>
        public required int Depth { get; init; }
        /// <summary>The block; empty for the root.</summary>
        public required int[] Tokens { get; init; }
        /// <summary>Per kind, none for kinds of limited retention; the root has none at all.</summary>
        public required int[][] Pages { get; init; }
        /// <summary>Children, snapshots and sequences that stand here.</summary>
        public int Holders { get; set; }
        public List<Snapshot> Snapshots { get; } = [];
        public List<Node> Children { get; } = [];
        /// <summary>Tokens of the longest snapshot here or beyond.</summary>
        public int Reach { get; private set; }

        /// <summary>After a snapshot came or went here.</summary>
        public void UpdateReach()
        {
            for (Node? n = this; n is not null; n = n.Parent)
            {
                int reach = 0;
                foreach (var snapshot in n.Snapshots) reach = Math.Max(reach, snapshot.Length);
                foreach (var child in n.Children) reach = Math.Max(reach, child.Reach);
                if (reach == n.Reach) return;
                n.Reach = reach;
            }
        }

        /// <summary>The nodes from the first block to this one.</summary>
        public Node[] FromRoot()
        {
            var chain = new Node[Depth];
            for (Node? n = this; n is { Depth: > 0 }; n = n.Parent) chain[n.Depth - 1] = n;
            return chain;
        }
    }

    /// <summary>The state after some tokens.</summary>
    internal sealed class Snapshot
    {
        public required Node Node { get; init; }
        /// <summary>Tokens in all.</summary>
        public required int Length { get; init; }
        /// <summary>Tokens after the node's blocks.</summary>
        public required int[] Tail { get; init; }
        /// <summary>Whether a shorter one on the way from the root is a prefix of this one.</summary>
        public bool Continues(Snapshot other) => other.Node != Node || Tail.AsSpan().StartsWith(other.Tail);
        /// <summary>Per kind: of an unfinished block what is kept for ever, and what limited retention still needs.</summary>
        public required int[][] Pages { get; init; }
        /// <summary>Place in the order of use; null once it was given up.</summary>
        public LinkedListNode<Snapshot>? Entry { get; set; }
        public int Pins { get; set; }
        /// <summary>A message begins here.</summary>
        public bool AtMessage { get; set; }
        /// <summary>Sequences that resumed from it.</summary>
        public int Uses { get; set; }
        /// <summary>It waits to be written to disk.</summary>
        public bool Offered { get; set; }
    }
}

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

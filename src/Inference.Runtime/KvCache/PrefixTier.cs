using System.Diagnostics;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache.Disk;

namespace Inference.Runtime.KvCache;

/// <summary>
/// Moves kept prefixes between memory and disk, a little in each step and never waiting. Out: snapshots that are offered are written behind, block
/// by block, until the disk holds all that they stand on; one that must go before it is written is written at once if the staging memory has
/// room, else it is lost, which costs time and nothing else. In: a chain that is longer than what memory holds is read into pages of the
/// prefix cache, where the sequence that waits for it then finds it like any other.
///
/// Owned by the engine's thread. Invariant: what a restore has entered so far is held by the path it is for.
/// </summary>
internal sealed class PrefixTier : IDisposable
{
    private const long ExtentBytesMax = 32L << 20, PumpBytesMax = 32L << 20;
    private const int OffersMax = 256, RestoresMax = 4;

    private readonly PrefixCache _prefixes;
    private readonly IReadOnlyList<KvPool> _pools;
    private readonly IBackend _backend;
    private readonly KvTier _tier;
    private readonly Action _wake;
    private readonly LinkedList<Offer> _offers = [];     // to be written, oldest first
    private readonly List<(KvTicket Ticket, TaskCompletionSource<bool> Done)> _awaited = [];
    private readonly List<PrefixRestore> _restores = [];  // that are being read
    private readonly bool _threads;

    /// <param name="store">Of the layout <see cref="LayoutOf"/> says; owned from here on.</param>
    /// <param name="wake">Called, on any thread, when a pump has something to do.</param>
    /// <param name="threads">False: simulations run the disk by <see cref="RunDisk"/>.</param>
    public PrefixTier(
        PrefixCache prefixes, IReadOnlyList<KvPool> pools, IBackend backend, KvStore store, Action wake, TimeProvider time,
        Microsoft.Extensions.Logging.ILogger log, bool threads)
    {
        (_prefixes, _pools, _backend, _wake, _threads) = (prefixes, pools, backend, wake, threads);
        var layout = store.Layout;
        _tier = new KvTier(store, new KvTierOptions
        {
            WriteStagingBytes = Math.Max(128L << 20, 4 * (layout.BlockBytes + layout.SnapshotBytesMax)),
            ReadStagingBytes = Math.Max(64L << 20, 8 * Math.Max(layout.BlockBytes, layout.SnapshotBytesMax)),
        }, wake, time, log);
        if (threads) _tier.Start();
    }

    /// <summary>Tokens that a chain must have beyond what memory has to be worth reading.</summary>
    public int WorthTokens { get; set; } = KvStateSpec.BlockTokens;

    /// <summary>How states of these kinds lie on the disk.</summary>
    public static KvLayout LayoutOf(IReadOnlyList<KvStateSpec> specs, ReadOnlyMemory<byte> fingerprint)
    {
        int block = PrefixCache.BlockOf(specs);
        return new KvLayout
        {
            Fingerprint = fingerprint,
            BlockTokens = block,
            BlockBytes = specs.Where(s => s.Retention == KvRetention.All).Sum(s => block / s.PageTokens * s.PageBytes),
            SnapshotBytesMax = specs.Sum(s => s.PageBytes * (s.Retention == KvRetention.All ? block / s.PageTokens : KvCapacity.PagesPerSequence(s))),
        };
    }

    /// <summary>Any thread.</summary>
    public KvDiskStats Stats()
    {
        var c = _tier.Counts();
        long unusable = c.Store.Drops.Where((_, why) => (KvDrop)why is not (KvDrop.Evicted or KvDrop.Duplicate)).Sum();
        return new(
            c.Store.Extents, c.Store.Bytes, c.Store.BytesMax, c.Store.SavedBytes, _offers.Count + c.WritesQueued, _restores.Count, c.Written, c.BytesWritten,
            c.WriteFailures, c.ReadsDone, c.ReadsFailed, c.BytesRead, unusable, c.Paused);
    }

    /// <summary>Does the disk's next operation on this thread; for simulations.</summary>
    internal bool RunDisk() => _tier.RunOne();

    /// <summary>For simulations.</summary>
    internal KvTierCounts Counts => _tier.Counts();

    // ---- out ----

    /// <summary>This snapshot is worth a place on the disk: it is written as time and staging memory allow, unless it is given up before.</summary>
    public void Write(PrefixCache.Snapshot snapshot)
    {
        if (snapshot.Offered || snapshot.Length < WorthTokens || OnDisk(snapshot)) return;
        if (_offers.Count >= OffersMax)
        {
            var oldest = _offers.First;
            while (oldest is { Value.Saved: not null }) oldest = oldest.Next;
            if (oldest is null) return;
            Withdraw(oldest);
        }
        snapshot.Offered = true;
        _offers.AddLast(new Offer(snapshot));
    }

    /// <summary>
    /// Writes a snapshot so that the disk keeps it until it is released. True once that is durable; false if the disk has no room or fails.
    /// The caller has pinned it.
    /// </summary>
    /// <param name="copied">Called when the snapshot is no longer needed for it.</param>
    public Task<bool> SaveAsync(PrefixCache.Snapshot snapshot, Action copied)
    {
        var done = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
        _offers.AddLast(new Offer(snapshot) { Saved = done, Copied = copied });
        Pump();
        return done.Task;
    }

    /// <summary>A snapshot that is about to be given up. If it was of use or was to be written, and what the disk lacks of it fits the staging memory, it is written now.</summary>
    public void GivingUp(PrefixCache.Snapshot snapshot)
    {
        if ((!snapshot.Offered && snapshot.Uses == 0) || OnDisk(snapshot)) return;
        var offer = new Offer(snapshot);
        if (offer.Rest(_tier) * _tier.Layout.BlockBytes <= 2 * ExtentBytesMax) Advance(offer);
    }

    /// <summary>Continues what is under way.</summary>
    public void Pump()
    {
        while (_offers.First is { } first)
        {
            var offer = first.Value;
            if (offer.Snapshot.Entry is null) Withdraw(first);
            else if (!Advance(offer)) break;
            else Withdraw(first, done: true);
        }
        for (int i = _awaited.Count - 1; i >= 0; i--)
        {
            var (ticket, done) = _awaited[i];
            if (!ticket.IsDone) continue;
            done.SetResult(ticket.Result == KvWriteResult.Written);
            _awaited.RemoveAt(i);
        }
        long budget = PumpBytesMax;
        for (int i = _restores.Count - 1; i >= 0; i--)
        {
            if (!Continue(_restores[i], ref budget)) _restores.RemoveAt(i);
            else if (budget <= 0) _wake();
        }
    }

    /// <summary>Writes what was offered, before an engine ends; what is not on disk by the limit is lost, as is all if the disk fails. Waits.</summary>
    public void Flush(TimeSpan limit)
    {
        for (var clock = Stopwatch.StartNew(); _threads && clock.Elapsed < limit && !_tier.Paused; Thread.Sleep(2))
        {
            Pump();
            if (_offers.Count == 0 && _tier.Counts().WritesQueued == 0) return;
        }
    }

    private void Withdraw(LinkedListNode<Offer> node, bool done = false)
    {
        _offers.Remove(node);
        node.Value.Copied?.Invoke();
        if (node.Value.Saved is null) node.Value.Snapshot.Offered = false;
        if (!done) node.Value.Saved?.SetResult(false);
    }

    // Queues what is missing on disk. False if the staging memory has no room for more now.
    private bool Advance(Offer offer)
    {
        var (snapshot, layout) = (offer.Snapshot, _tier.Layout);
        if (OnDisk(snapshot)) return offer.Saved is null || Save(offer);
        int blocksMax = (int)Math.Clamp(ExtentBytesMax / Math.Max(1, layout.BlockBytes), 1, KvExtentFormat.BlocksMax);
        for (offer.Next = offer.FirstMissing(_tier); ;)
        {
            int from = offer.Next, count = Math.Min(blocksMax, offer.Chain.Length - from);
            bool last = from + count == offer.Chain.Length;
            var blocks = offer.Chain.AsSpan(from, count).ToArray();
            var header = new KvExtentHeader
            {
                Root = offer.Root,
                Parent = from == 0 ? offer.Root : offer.Chain[from - 1].Name,
                FirstBlock = from,
                Names = [.. blocks.Select(b => b.Name)],
                Tokens = [.. blocks.SelectMany(b => b.Tokens), .. last ? snapshot.Tail : []],
                HasSnapshot = last,
                SnapshotBytes = last ? PagesBytes(snapshot.Pages) : 0,
            };
            var ticket = _tier.TryWrite(header, saved: last && offer.Saved is not null, payload => Fill(payload, blocks, last ? snapshot : null));
            if (ticket is null)
            {
                if (offer.Saved is null || !_tier.Paused) return false;
                offer.Saved.SetResult(false);
                return true;
            }
            offer.Next += count;
            if (!last) continue;
            if (offer.Saved is not null) _awaited.Add((ticket, offer.Saved));
            return true;
        }
    }

    private bool Save(Offer offer)
    {
        if (offer.Find(_tier) is not { } chain) return false;  // still on its way
        if (_tier.TrySave(chain, saved: true) is not { } ticket) return false;
        _awaited.Add((ticket, offer.Saved!));
        return true;
    }

    private bool OnDisk(PrefixCache.Snapshot snapshot) => _tier.ContainsSnapshot(snapshot.Node.Name, snapshot.Tail);

    private void Fill(Span<byte> payload, PrefixCache.Node[] blocks, PrefixCache.Snapshot? snapshot)
    {
        foreach (var block in blocks) payload = Download(block.Pages, payload);
        if (snapshot is not null) payload = Download(snapshot.Pages, payload);
        if (payload.Length > 0) throw new InvalidOperationException($"{payload.Length} bytes of an extent were not filled.");
    }

    private Span<byte> Download(int[][] pages, Span<byte> to)
    {
        for (int k = 0; k < pages.Length; k++)
        {
            int bytes = (int)_pools[k].Spec.PageBytes;
            foreach (int page in pages[k])
            {
                _backend.Download(_pools[k].Tensor.Slice(page, 1), to[..bytes]);
                to = to[bytes..];
            }
        }
        return to;
    }

    private long PagesBytes(int[][] pages)
    {
        long bytes = 0;
        for (int k = 0; k < pages.Length; k++) bytes += pages[k].Length * _pools[k].Spec.PageBytes;
        return bytes;
    }

    // ---- in ----

    /// <summary>The longest snapshot on disk that is a prefix of the tokens.</summary>
    public KvChain? Find(PrefixPath path, ReadOnlyMemory<int> tokens, int lengthMax)
    {
        int blocks = Math.Min(lengthMax, tokens.Length) / _tier.Layout.BlockTokens;
        if (blocks > 0) _prefixes.Name(path, blocks - 1, tokens);
        return _tier.Find(path.Root, path.Names, tokens.Span, lengthMax);
    }

    /// <summary>Payload bytes of a chain.</summary>
    public long BytesOf(KvChain chain) => chain.BlockCount * _tier.Layout.BlockBytes + chain.Snapshot.Header.SnapshotBytes;

    /// <summary>Snapshots that the disk keeps until they are released.</summary>
    public IReadOnlyList<KvChain> Saved() => _tier.Saved();

    /// <summary>The disk need not keep a snapshot any longer.</summary>
    public void Release(KvChain chain) => _tier.TrySave(chain, saved: false);

    /// <summary>True if no further chain can be read now, or this one is being read for another.</summary>
    public bool MustWaitFor(KvChain chain) => _restores.Count >= RestoresMax || _restores.Any(r => r.Chain.Snapshot == chain.Snapshot);

    /// <summary>Begins to bring a chain into memory, for the sequence of this path; ends by itself (<see cref="PrefixPath.Restore"/>).</summary>
    /// <param name="have">Tokens whose state memory has.</param>
    public void Begin(PrefixPath path, ReadOnlyMemory<int> tokens, KvChain chain, int have)
    {
        var at = _prefixes.StandDeepest(path, tokens, chain.BlockCount);
        var restore = new PrefixRestore(path, tokens, chain, _tier.BeginRead(chain, at.Depth)) { NextBlock = at.Depth, Had = have };
        path.Restore = restore;
        _restores.Add(restore);
    }

    /// <summary>Gives up the restore that began last: its pages are needed by those who run. False if there is none.</summary>
    public bool AbortOne()
    {
        if (_restores.Count == 0) return false;
        Abort(_restores[^1].Path);
        return true;
    }

    /// <summary>Ends the path's restore, if there is one; what it has brought so far goes.</summary>
    public void Abort(PrefixPath path)
    {
        if (path.Restore is not { IsReading: true } restore || SeededBug.Is(3)) return;
        restore.Read.Cancel();
        _restores.Remove(restore);
        End(restore, 0);
    }

    // False once it has ended.
    private bool Continue(PrefixRestore restore, ref long budget)
    {
        while (budget > 0)
        {
            if (!MakeRoom(restore))
            {
                restore.Read.Cancel();
                End(restore, 0);
                return false;
            }
            if (!restore.Read.TryTake(out var part)) break;
            budget -= part.Bytes.Length;
            bool good = part.IsSnapshot ? Enter(restore, part.Bytes) : part.Block == restore.NextBlock && EnterBlock(restore, part.Bytes);
            if (good && !part.IsSnapshot) continue;
            if (!good) restore.Read.Cancel();
            else if (restore.Read.TryTake(out _)) throw new InvalidOperationException("A chain goes on behind its snapshot.");
            End(restore, good ? restore.Chain.Length : 0);
            return false;
        }
        if (restore.Read.State == KvReadState.Reading) return true;
        End(restore, 0);
        return false;
    }

    private bool MakeRoom(PrefixRestore restore)
    {
        bool snapshot = restore.NextBlock == restore.Chain.BlockCount;
        for (int k = 0; k < _pools.Count; k++)
        {
            var spec = _pools[k].Spec;
            int pages = snapshot ? _prefixes.StatePageCount(k, restore.Chain.Length)
                : spec.Retention == KvRetention.All ? _prefixes.BlockTokens / spec.PageTokens : 0;
            while (_pools[k].FreeCount < pages)
                if (!_prefixes.Reclaim()) return false;
        }
        return true;
    }

    private bool EnterBlock(PrefixRestore restore, ReadOnlySpan<byte> bytes)
    {
        var pages = new int[_pools.Count][];
        for (int k = 0; k < pages.Length; k++)
            pages[k] = new int[_pools[k].Spec.Retention == KvRetention.All ? _prefixes.BlockTokens / _pools[k].Spec.PageTokens : 0];
        Upload(pages, bytes);
        return _prefixes.EnterRestored(restore.Path, restore.Tokens, restore.NextBlock++, pages);
    }

    private bool Enter(PrefixRestore restore, ReadOnlySpan<byte> bytes)
    {
        var pages = new int[_pools.Count][];
        for (int k = 0; k < pages.Length; k++) pages[k] = new int[_prefixes.StatePageCount(k, restore.Chain.Length)];
        if (PagesBytes(pages) != bytes.Length) return false;
        Upload(pages, bytes);
        return _prefixes.EnterRestored(restore.Path, restore.Tokens, pages, restore.Chain.Length);
    }

    // Takes the pages, and fills them.
    private void Upload(int[][] pages, ReadOnlySpan<byte> from)
    {
        for (int k = 0; k < pages.Length; k++)
        {
            int bytes = (int)_pools[k].Spec.PageBytes;
            for (int i = 0; i < pages[k].Length; i++)
            {
                pages[k][i] = _pools[k].Take();
                _backend.Upload(from[..bytes], _pools[k].Tensor.Slice(pages[k][i], 1));
                from = from[bytes..];
            }
        }
    }

    // The snapshot, if there is one, holds the blocks from here on.
    private void End(PrefixRestore restore, int length)
    {
        (restore.IsReading, restore.Length) = (false, length);
        if (!SeededBug.Is(5)) _prefixes.StandNowhere(restore.Path);
    }

    public void Dispose()
    {
        foreach (var restore in _restores) restore.Read.Cancel();
        foreach (var offer in _offers) offer.Saved?.TrySetResult(false);
        foreach (var (_, done) in _awaited) done.TrySetResult(false);
        _tier.Dispose();
    }

    // A snapshot on its way to the disk.
    private sealed class Offer(PrefixCache.Snapshot snapshot)
    {
        private PrefixCache.Node[]? _chain;

        public PrefixCache.Snapshot Snapshot => snapshot;
        public PrefixCache.Node[] Chain => _chain ??= snapshot.Node.FromRoot();
        public PrefixHash Root => Chain.Length > 0 ? Chain[0].Parent!.Name : snapshot.Node.Name;

        /// <summary>First block that was not queued.</summary>
        public int Next { get; set; }

        /// <summary>Set if the disk is to keep it.</summary>
        public TaskCompletionSource<bool>? Saved { get; init; }

        public Action? Copied { get; init; }

        public int FirstMissing(KvTier tier)
        {
            // A block is on disk with all before it.
            int at = Math.Max(Next, 0);
            while (at < Chain.Length && tier.Contains(Chain[at].Name)) at++;
            return at;
        }

        public int Rest(KvTier tier) => Chain.Length - FirstMissing(tier);

        public KvChain? Find(KvTier tier)
        {
            int[] tokens = [.. Chain.SelectMany(n => n.Tokens), .. snapshot.Tail];
            return tier.Find(Root, [.. Chain.Select(n => n.Name)], tokens, snapshot.Length) is { } chain && chain.Length == snapshot.Length ? chain : null;
        }
    }
}

/// <summary>A chain on its way from the disk into the prefix cache.</summary>
internal sealed class PrefixRestore(PrefixPath path, ReadOnlyMemory<int> tokens, KvChain chain, KvRead read)
{
    public PrefixPath Path => path;
    public ReadOnlyMemory<int> Tokens => tokens;
    public KvChain Chain => chain;
    public KvRead Read => read;
    public int NextBlock { get; set; }
    /// <summary>Tokens whose state was in memory when it began.</summary>
    public int Had { get; init; }
    public bool IsReading { get; set; } = true;

    /// <summary>Tokens whose state it brought; 0 if it failed or was given up.</summary>
    public int Length { get; set; }
}

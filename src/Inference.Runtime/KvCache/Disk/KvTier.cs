using Microsoft.Extensions.Logging;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>How a <see cref="KvTier"/> works.</summary>
internal sealed record KvTierOptions
{
    /// <summary>Memory for payload on its way to the disk; an extent is as large as this at most.</summary>
    public long WriteStagingBytes { get; init; } = 128L << 20;

    /// <summary>Memory for payload read ahead; holds the largest part at least, and should hold several pieces.</summary>
    public long ReadStagingBytes { get; init; } = 64L << 20;

    /// <summary>Bytes that one operation reads, in whole parts: larger only where one part is.</summary>
    public long PieceBytes { get; init; } = 4L << 20;

    /// <summary>Threads that read; each has one operation in flight, or checks what it read: with three, the disk has two nearly always.</summary>
    public int Readers { get; init; } = 3;

    /// <summary>Writes and saves that wait at most.</summary>
    public int WriteQueueMax { get; init; } = 64;

    /// <summary>Failed writes in a row after which writing pauses: <see cref="PauseMin"/>, doubled with each further failure up to <see cref="PauseMax"/>.</summary>
    public int FailuresMax { get; init; } = 3;

    public TimeSpan PauseMin { get; init; } = TimeSpan.FromSeconds(1);
    public TimeSpan PauseMax { get; init; } = TimeSpan.FromMinutes(1);
}

/// <summary>Counts since the tier began, and what it holds now.</summary>
internal readonly record struct KvTierCounts(
    KvStoreCounts Store, long Written, long BytesWritten, long WritesRefused, long WriteFailures, long ReadsBegun, long ReadsDone, long ReadsFailed,
    long ReadsCancelled, long BytesRead, int WritesQueued, long StagingBytes, bool Paused);

/// <summary>A write or save on its way. It is done exactly once.</summary>
internal sealed class KvTicket
{
    private volatile int _result = -1;

    public bool IsDone => _result >= 0;

    /// <summary>What became of it; good once it is done. <see cref="KvWriteResult.Written"/>: it is durable.</summary>
    public KvWriteResult Result
    {
        get => (KvWriteResult)_result;
        internal set => _result = (int)value;
    }
}

/// <summary>
/// The disk as the engine's thread sees it: nothing here waits for it. A write is copied into staging memory and queued, or refused at once; a
/// read gives verified parts as they arrive. Both kinds of memory are bounded. Disk errors never come out of it: a read fails and its
/// extent is dropped, a write is given up, both are counted and logged; failures in a row pause writing for a while.
///
/// <see cref="Start"/> gives it threads: one that writes, some that read. Without them, for simulations, <see cref="RunOne"/> does the next
/// operation on the caller's thread; both are the same code. One thread begins, takes and cancels; no lock is held during disk operations,
/// nor while <c>fill</c> and <c>wake</c> run; the store's lock is taken inside the tier's. Owns the store.
/// Invariant: staging in use = queued writes + pieces read and not taken + operations in flight.
/// </summary>
internal sealed class KvTier : IDisposable
{
    private readonly object _gate = new();
    private readonly KvStore _store;
    private readonly KvTierOptions _options;
    private readonly Action _wake;
    private readonly TimeProvider _time;
    private readonly ILogger _log;
    private readonly StagingMemory _writeStaging, _readStaging;
    private readonly Queue<WriteOperation> _writes = [];
    private readonly HashSet<PrefixHash> _pendingBlocks = [];
    private readonly List<KvRead> _reads = [];  // that have not ended, or have operations in flight
    private readonly List<Thread> _threads = [];
    private WriteOperation? _writing;
    private int _turn;             // the read whose turn it is
    private bool _writeFirst, _cleanWanted, _stopping;
    private long _changes;
    private int _failuresInRow;
    private long _pausedUntil = long.MinValue;
    private long _written, _bytesWritten, _refused, _writeFailures, _begun, _done, _failed, _cancelled, _bytesRead;

    private sealed record WriteOperation(KvTicket Ticket, KvExtentHeader? Header, StagingMemory.Buffer? Payload, KvChain? Chain, bool Saved);

    /// <param name="wake">Called, on any thread, when a part that is waited for has arrived or something has ended.</param>
    /// <exception cref="ArgumentException">The staging memory does not hold what the layout allows.</exception>
    public KvTier(KvStore store, KvTierOptions options, Action wake, TimeProvider time, ILogger log)
    {
        var layout = store.Layout;
        // A piece reaches into the aligned units at its ends.
        long piece = StagingMemory.Capacity(Math.Max(Math.Max(layout.BlockBytes, layout.SnapshotBytesMax), options.PieceBytes)) + KvExtentFormat.Alignment;
        long extent = StagingMemory.Capacity(layout.BlockBytes + layout.SnapshotBytesMax);
        if (options.ReadStagingBytes < piece)
            throw new ArgumentException($"{options.ReadStagingBytes} bytes to read ahead hold no whole piece; {piece} are needed.");
        if (options.WriteStagingBytes < extent)
            throw new ArgumentException($"{options.WriteStagingBytes} bytes to write from hold no block with a snapshot; {extent} are needed.");
        (_store, _options, _wake, _time, _log) = (store, options, wake, time, log);
        (_writeStaging, _readStaging) = (new StagingMemory(options.WriteStagingBytes), new StagingMemory(options.ReadStagingBytes));
    }

    public KvLayout Layout => _store.Layout;

    // ---- looking up ----

    /// <summary>Whether a block is on disk or queued to be.</summary>
    public bool Contains(PrefixHash block)
    {
        lock (_gate)
            if (_pendingBlocks.Contains(block)) return true;
        return _store.Contains(block);
    }

    /// <summary>Whether the snapshot that stands <paramref name="tail"/> tokens after a block (or root) is on disk or queued to be.</summary>
    public bool ContainsSnapshot(PrefixHash last, ReadOnlySpan<int> tail)
    {
        lock (_gate)
        {
            if (_writing is { } current && Is(current, last, tail)) return true;
            foreach (var write in _writes)
                if (Is(write, last, tail)) return true;
        }
        return _store.ContainsSnapshot(last, tail);
    }

    private bool Is(WriteOperation write, PrefixHash last, ReadOnlySpan<int> tail) =>
        write.Header is { HasSnapshot: true } h && h.Last == last && h.Tail(Layout).SequenceEqual(tail);

    /// <inheritdoc cref="KvStore.Find"/>
    public KvChain? Find(PrefixHash root, IReadOnlyList<PrefixHash> names, ReadOnlySpan<int> tokens, int lengthMax) =>
        _store.Find(root, names, tokens, lengthMax);

    /// <inheritdoc cref="KvStore.Saved"/>
    public IReadOnlyList<KvChain> Saved() => _store.Saved();

    public KvTierCounts Counts()
    {
        var store = _store.Counts();
        lock (_gate)
            return new KvTierCounts(store, _written, _bytesWritten, _refused, _writeFailures, _begun, _done, _failed, _cancelled, _bytesRead,
                _writes.Count + (_writing is null ? 0 : 1), _writeStaging.Rented + _readStaging.Rented, Paused);
    }

    /// <summary>Writing rests after failures in a row.</summary>
    public bool Paused => _time.GetTimestamp() < _pausedUntil;

    // ---- writing ----

    /// <summary>Writes a payload into the span it is given, whole; runs on the thread that called <see cref="TryWrite"/>.</summary>
    public delegate void Fill(Span<byte> payload);

    /// <summary>
    /// Queues an extent to be written; null, and nothing called, if there is no staging memory, the queue is long or writing is paused. What it
    /// stands on is on disk or queued before it.
    /// </summary>
    /// <exception cref="ArgumentException">The header contradicts itself or the layout.</exception>
    public KvTicket? TryWrite(KvExtentHeader header, bool saved, Fill fill)
    {
        if (header.Fault(Layout) is { } fault) throw new ArgumentException($"This is no KV extent: {fault}.", nameof(header));
        StagingMemory.Buffer? payload = null;
        lock (_gate)
        {
            if (!_stopping && !Paused && _writes.Count < _options.WriteQueueMax) payload = _writeStaging.TryRent(header.PayloadBytes(Layout));
            if (payload is null)
            {
                _refused++;
                return null;
            }
        }
        bool filled = false;
        try
        {
            fill(payload.Span);
            filled = true;
        }
        finally
        {
            if (!filled) payload.Dispose();
        }
        return Enqueue(new WriteOperation(new KvTicket(), header, payload, null, saved));
    }

    /// <summary>
    /// Queues that a snapshot and what it stands on are kept until released, or released. Null if the queue is long; the ticket says
    /// <see cref="KvWriteResult.ParentMissing"/> if they are gone.
    /// </summary>
    public KvTicket? TrySave(KvChain chain, bool saved)
    {
        var ticket = new KvTicket();
        lock (_gate)
        {
            if (_stopping || _writes.Count >= _options.WriteQueueMax) return null;
        }
        if (_store.TryPin(chain)) return Enqueue(new WriteOperation(ticket, null, null, chain, saved));
        ticket.Result = KvWriteResult.ParentMissing;
        return ticket;
    }

    private KvTicket Enqueue(WriteOperation write)
    {
        lock (_gate)
        {
            _writes.Enqueue(write);
            foreach (var name in write.Header?.Names ?? []) _pendingBlocks.Add(name);
            Signal();
        }
        return write.Ticket;
    }

    private bool RunWrite()
    {
        bool clean;
        lock (_gate)
        {
            if (_writing is not null) return false;
            clean = _cleanWanted;
            _cleanWanted = false;
            if (!clean && !_writes.TryDequeue(out _writing)) return false;
        }
        if (clean) _store.Clean();
        else Perform(_writing!);
        return true;
    }

    private void Perform(WriteOperation write)
    {
        var result = KvWriteResult.Failed;
        string? error = null;
        try
        {
            result = write.Header is { } header ? _store.Write(header, write.Payload!.Span, write.Saved)
                : _store.Save(write.Chain!.Snapshot, write.Saved) ? KvWriteResult.Written : KvWriteResult.ParentMissing;
        }
        catch (Exception e) when (IsOfDisk(e))
        {
            error = e.Message;
        }
        if (error is not null) KvDiskLog.WriteFailed(_log, error);
        var ended = new List<WriteOperation> { write };
        lock (_gate)
        {
            Note(result, write, ended);
            _writing = null;
            foreach (var name in write.Header?.Names ?? []) _pendingBlocks.Remove(name);
        }
        foreach (var operation in ended) End(operation, operation == write ? result : KvWriteResult.Failed);
        _wake();
    }

    // Counts, and pauses after failures; what was queued is given up then.
    private void Note(KvWriteResult result, WriteOperation write, List<WriteOperation> ended)
    {
        if (result == KvWriteResult.Written)
        {
            _failuresInRow = 0;
            if (write.Header is null) return;
            _written++;
            _bytesWritten += write.Payload!.Bytes;
        }
        if (result != KvWriteResult.Failed) return;
        _writeFailures++;
        if (++_failuresInRow < _options.FailuresMax) return;
        var pause = _options.PauseMin * Math.Pow(2, Math.Min(_failuresInRow - _options.FailuresMax, 30));
        if (pause > _options.PauseMax) pause = _options.PauseMax;
        _pausedUntil = _time.GetTimestamp() + (long)(pause.TotalSeconds * _time.TimestampFrequency);
        KvDiskLog.Paused(_log, pause.TotalSeconds, _failuresInRow);
        ended.AddRange(GiveUpQueue());
    }

    private List<WriteOperation> GiveUpQueue()
    {
        var given = _writes.ToList();
        _writes.Clear();
        _pendingBlocks.Clear();
        return given;
    }

    private void End(WriteOperation write, KvWriteResult result)
    {
        write.Payload?.Dispose();
        if (write.Chain is { } chain) _store.Unpin(chain);
        write.Ticket.Result = result;
    }

    // ---- reading ----

    /// <summary>
    /// Begins to read the blocks of a chain from an index on, and its snapshot. Always gives a read; it has failed already if the chain is gone.
    /// </summary>
    public KvRead BeginRead(KvChain chain, int fromBlock)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(fromBlock);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(fromBlock, chain.BlockCount);
        var read = new KvRead(this, chain, PiecesOf(chain, fromBlock));
        lock (_gate)
        {
            _begun++;
            if (_stopping || !_store.TryPin(chain))
            {
                (read.State, read.Failure) = (KvReadState.Failed, KvDrop.Evicted);
                _failed++;
                return read;
            }
            _reads.Add(read);
            Signal();
        }
        return read;
    }

    private List<KvRead.Piece> PiecesOf(KvChain chain, int fromBlock)
    {
        var pieces = new List<KvRead.Piece>();
        foreach (var range in chain.Ranges)
        {
            var header = range.Extent.Header;
            int part = Math.Max(0, fromBlock - range.FirstBlock);
            int end = range.BlockCount + (range.Extent == chain.Snapshot ? 1 : 0);
            while (part < end)
            {
                int first = part;
                long bytes = header.PartBytes(Layout, part++);
                while (part < end && bytes + header.PartBytes(Layout, part) <= _options.PieceBytes) bytes += header.PartBytes(Layout, part++);
                var reach = KvExtentFormat.Reach(header, Layout, first, part - first);
                pieces.Add(new KvRead.Piece(pieces.Count, range.Extent, first, part - first, reach.Length, reach.Skip, reach.Bytes));
            }
        }
        return pieces;
    }

    private bool RunRead()
    {
        KvRead? read;
        KvRead.Piece? piece;
        lock (_gate)
            if (!NextPiece(out read, out piece)) return false;
        KvDrop? fault;
        try
        {
            fault = _store.Read(piece!.Extent, piece.Part, piece.PartCount, piece.Buffer!.Span);
        }
        catch (Exception e) when (IsOfDisk(e))
        {
            KvDiskLog.ReadFailed(_log, piece!.Extent.Id, e.Message);
            fault = KvDrop.Unreadable;
        }
        // What someone saved is not given up for an error that may pass.
        bool drop = fault is { } why && !(why == KvDrop.Unreadable && piece.Extent.Saved);
        if (drop) _store.Drop(piece.Extent, fault!.Value);
        lock (_gate) Arrived(read!, piece, fault, drop);
        _wake();
        return true;
    }

    // The next piece of the read whose turn it is, with memory for it. A read that holds none may always have some; beyond that each has
    // an equal share.
    private bool NextPiece(out KvRead? read, out KvRead.Piece? piece)
    {
        (read, piece) = (null, null);
        int reading = _reads.Count(r => r.State == KvReadState.Reading);
        for (int i = 0; i < _reads.Count; i++)
        {
            int at = (_turn + i) % _reads.Count;
            var candidate = _reads[at];
            if (candidate.State != KvReadState.Reading || candidate.Next == candidate.Pieces.Count) continue;
            var next = candidate.Pieces[candidate.Next];
            if (candidate.BytesHeld > 0 && candidate.BytesHeld + next.BufferBytes > _options.ReadStagingBytes / reading) continue;
            next.Buffer = _readStaging.TryRent(next.BufferBytes);
            if (next.Buffer is null) continue;
            candidate.BytesHeld += next.Buffer.Capacity;
            candidate.Next++;
            candidate.InFlight++;
            _turn = at + 1;
            (read, piece) = (candidate, next);
            return true;
        }
        return false;
    }

    private void Arrived(KvRead read, KvRead.Piece piece, KvDrop? fault, bool dropped)
    {
        read.InFlight--;
        _cleanWanted |= dropped;
        if (fault is null) _bytesRead += piece.Bytes;
        if (read.State != KvReadState.Reading || fault is not null) Return(read, piece);
        else piece.Ready = true;
        if (read.State == KvReadState.Reading && fault is not null)
        {
            (read.State, read.Failure) = (KvReadState.Failed, fault);
            _failed++;
            // Parts of the head may be in use by the thread that takes; they go with its next call.
            for (int i = read.Head + 1; i < read.Next; i++)
                if (read.Pieces[i].Ready) Return(read, read.Pieces[i]);
        }
        Forget(read);
        Signal();
    }

    internal bool TryTake(KvRead read, out KvPart part)
    {
        part = default;
        lock (_gate)
        {
            if (read.State != KvReadState.Reading)
            {
                ReturnAll(read);
                return false;
            }
            if (read.Head < read.Pieces.Count && read.Taken == read.Pieces[read.Head].PartCount) Advance(read);
            if (read.Head == read.Pieces.Count)
            {
                read.State = KvReadState.Done;
                _done++;
                Forget(read);
                return false;
            }
            var piece = read.Pieces[read.Head];
            if (!piece.Ready) return false;
            var header = piece.Extent.Header;
            int index = piece.Part + read.Taken++;
            int bytes = (int)header.PartBytes(Layout, index);
            part = new KvPart(index == header.Names.Length, header.FirstBlock + index, piece.Buffer!.Span.Slice(piece.Skip + read.TakenBytes, bytes));
            read.TakenBytes += bytes;
            return true;
        }
    }

    private void Advance(KvRead read)
    {
        Return(read, read.Pieces[read.Head]);
        read.Head++;
        read.Taken = read.TakenBytes = 0;
        Signal();
    }

    internal void Cancel(KvRead read)
    {
        lock (_gate)
        {
            if (read.State == KvReadState.Reading)
            {
                read.State = KvReadState.Cancelled;
                _cancelled++;
            }
            ReturnAll(read);
            Forget(read);
            Signal();
        }
    }

    private static void ReturnAll(KvRead read)
    {
        for (int i = read.Head; i < read.Next; i++)
            if (read.Pieces[i].Ready) Return(read, read.Pieces[i]);
    }

    private static void Return(KvRead read, KvRead.Piece piece)
    {
        read.BytesHeld -= piece.Buffer!.Capacity;
        piece.Ready = false;
        piece.Buffer.Dispose();
        piece.Buffer = null;
    }

    // A read that has ended is let go with its last operation in flight.
    private void Forget(KvRead read)
    {
        if (read.State != KvReadState.Reading && read.InFlight == 0 && _reads.Remove(read)) _store.Unpin(read.Chain);
    }

    private static bool IsOfDisk(Exception e) => e is IOException or UnauthorizedAccessException;

    // ---- running ----

    /// <summary>Does the next operation on this thread, writing and reading in turn; false if there is none.</summary>
    public bool RunOne()
    {
        _writeFirst = !_writeFirst;
        return _writeFirst ? RunWrite() || RunRead() : RunRead() || RunWrite();
    }

    /// <summary>Gives it threads of its own.</summary>
    public void Start()
    {
        Run("kv write", RunWrite);
        for (int i = 0; i < _options.Readers; i++) Run($"kv read {i}", RunRead);
    }

    // An operation may have become possible.
    private void Signal()
    {
        _changes++;
        Monitor.PulseAll(_gate);
    }

    private void Run(string name, Func<bool> runOne)
    {
        var thread = new Thread(() =>
        {
            for (long seen = -1; ;)
            {
                while (runOne()) { }
                lock (_gate)
                {
                    if (_stopping) return;
                    while (seen == _changes) Monitor.Wait(_gate);
                    seen = _changes;
                }
            }
        })
        { IsBackground = true, Name = name };
        _threads.Add(thread);
        thread.Start();
    }

    /// <summary>Cancels reads, gives up queued writes, waits for the operations in flight and closes the store.</summary>
    public void Dispose()
    {
        List<WriteOperation> given;
        lock (_gate)
        {
            if (_stopping) return;
            _stopping = true;
            given = GiveUpQueue();
            foreach (var read in _reads.ToArray()) Cancel(read);
            Signal();
        }
        foreach (var write in given) End(write, KvWriteResult.Cancelled);
        foreach (var thread in _threads) thread.Join();
        _store.Dispose();
        _writeStaging.Dispose();
        _readStaging.Dispose();
    }
}

namespace Inference.Runtime.KvCache.Disk;

/// <summary>Where a read stands.</summary>
internal enum KvReadState
{
    Reading,
    /// <summary>Every part was taken.</summary>
    Done,
    /// <summary>A part could not be read, or is not what was written; what was taken before is good but leads nowhere.</summary>
    Failed,
    Cancelled,
}

/// <summary>A verified part of a chain: a block's payload, or the snapshot's, which is the last.</summary>
internal readonly ref struct KvPart(bool isSnapshot, int block, ReadOnlySpan<byte> bytes)
{
    public bool IsSnapshot { get; } = isSnapshot;

    /// <summary>Index of the block in its prefix; meaningless for the snapshot.</summary>
    public int Block { get; } = block;

    /// <summary>Good until the next call on the read.</summary>
    public ReadOnlySpan<byte> Bytes { get; } = bytes;
}

/// <summary>
/// A chain on its way from the disk. One thread takes the parts, in order, as they arrive; the <see cref="KvTier"/> reads ahead of it. It ends
/// exactly once, Done, Failed or Cancelled, and nothing that arrives later changes that. Who began it takes its parts until it ends, or
/// disposes it: it holds memory that other reads wait for. The tier's lock guards its state.
/// </summary>
internal sealed class KvRead : IDisposable
{
    private readonly KvTier _tier;

    internal KvRead(KvTier tier, KvChain chain, List<Piece> pieces) => (_tier, Chain, Pieces) = (tier, chain, pieces);

    public KvChain Chain { get; }

    public KvReadState State { get; internal set; }

    /// <summary>Why it failed; <see cref="KvDrop.Evicted"/> if the chain was gone before it began.</summary>
    public KvDrop? Failure { get; internal set; }

    /// <summary>The next part, if it has arrived. False at the end too: then <see cref="State"/> is no longer Reading.</summary>
    public bool TryTake(out KvPart part) => _tier.TryTake(this, out part);

    /// <summary>Ends it if it has not ended, at any time; no part of it may be used any more.</summary>
    public void Cancel() => _tier.Cancel(this);

    public void Dispose() => Cancel();

    internal List<Piece> Pieces { get; }
    internal int Head { get; set; }        // the piece that parts are taken from
    internal int Taken { get; set; }       // parts of it
    internal int TakenBytes { get; set; }
    internal int Next { get; set; }        // the first piece that nobody has begun to read
    internal int InFlight { get; set; }
    internal long BytesHeld { get; set; }

    // What one disk operation reads: consecutive parts of one extent, Bytes in all. The buffer holds them after Skip bytes.
    internal sealed class Piece(int index, KvExtent extent, int part, int partCount, int bufferBytes, int skip, int bytes)
    {
        public int Index { get; } = index;
        public KvExtent Extent { get; } = extent;
        public int Part { get; } = part;
        public int PartCount { get; } = partCount;
        public int BufferBytes { get; } = bufferBytes;
        public int Skip { get; } = skip;
        public int Bytes { get; } = bytes;
        public StagingMemory.Buffer? Buffer { get; set; }
        public bool Ready { get; set; }
    }
}

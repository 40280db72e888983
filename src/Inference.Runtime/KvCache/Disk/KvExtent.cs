namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// What an extent holds: whole blocks that follow each other in one prefix, and optionally, at its end, the snapshot of the state after
/// <see cref="Length"/> tokens. The arrays belong to the header from then on.
/// </summary>
internal sealed record KvExtentHeader
{
    /// <summary>The tenant's empty prefix.</summary>
    public required PrefixHash Root { get; init; }

    /// <summary>Name of the block before the first; <see cref="Root"/> if there is none.</summary>
    public required PrefixHash Parent { get; init; }

    /// <summary>Index of the first block in its prefix.</summary>
    public required int FirstBlock { get; init; }

    /// <summary>Names of the blocks, in order; none if only a snapshot is added.</summary>
    public required PrefixHash[] Names { get; init; }

    /// <summary>The tokens of the blocks, then those after the last whole block that the snapshot stands behind.</summary>
    public required int[] Tokens { get; init; }

    public bool HasSnapshot { get; init; }

    /// <summary>Payload bytes of the snapshot; may be 0.</summary>
    public long SnapshotBytes { get; init; }

    public int EndBlock => FirstBlock + Names.Length;

    /// <summary>Name of the last block, or what stands for it: where a snapshot hangs.</summary>
    public PrefixHash Last => Names.Length > 0 ? Names[^1] : Parent;

    /// <summary>Tokens from the beginning of the prefix to the end of the extent.</summary>
    public int Length(KvLayout layout) => FirstBlock * layout.BlockTokens + Tokens.Length;

    public ReadOnlySpan<int> BlockTokens(KvLayout layout, int block) =>
        Tokens.AsSpan((block - FirstBlock) * layout.BlockTokens, layout.BlockTokens);

    /// <summary>Tokens after the last whole block.</summary>
    public ReadOnlySpan<int> Tail(KvLayout layout) => Tokens.AsSpan(Names.Length * layout.BlockTokens);

    /// <summary>Parts of the payload that have a checksum each: the blocks, then the snapshot.</summary>
    public int PartCount => Names.Length + (HasSnapshot ? 1 : 0);

    public long PartBytes(KvLayout layout, int part) => part < Names.Length ? layout.BlockBytes : SnapshotBytes;

    public long PayloadBytes(KvLayout layout) => Names.Length * layout.BlockBytes + SnapshotBytes;

    /// <summary>What is wrong with it; null if nothing is.</summary>
    public string? Fault(KvLayout layout)
    {
        long tail = Tokens.Length - (long)Names.Length * layout.BlockTokens;
        return
            Names.Length > KvExtentFormat.BlocksMax ? $"{Names.Length} blocks, {KvExtentFormat.BlocksMax} at most"
            : FirstBlock < 0 || (long)FirstBlock * layout.BlockTokens + Tokens.Length > int.MaxValue ? $"first block {FirstBlock} is out of range"
            : FirstBlock == 0 != (Parent == Root) ? "the root is the parent of a first block and of no other"
            : tail < 0 || tail >= layout.BlockTokens ? $"{Tokens.Length} tokens in {Names.Length} blocks of {layout.BlockTokens}"
            : PartCount == 0 ? "neither blocks nor a snapshot"
            : !HasSnapshot && (tail > 0 || SnapshotBytes > 0) ? "a tail without a snapshot"
            : FirstBlock + Tokens.Length == 0 ? "a snapshot of no tokens"
            : SnapshotBytes < 0 || SnapshotBytes > layout.SnapshotBytesMax ? $"a snapshot of {SnapshotBytes} bytes, {layout.SnapshotBytesMax} at most"
            : PayloadBytes(layout) > KvLayout.PayloadBytesMax ? $"{PayloadBytes(layout)} bytes, {KvLayout.PayloadBytesMax} at most"
            : null;
    }
}

/// <summary>An extent on disk, as the index of a <see cref="KvStore"/> knows it. Changed by the store under its lock.</summary>
internal sealed class KvExtent(ulong id, KvExtentHeader header, UInt128[] checksums, long fileBytes)
{
    public ulong Id { get; } = id;
    public KvExtentHeader Header { get; } = header;

    /// <summary>Of the parts of the payload.</summary>
    public UInt128[] Checksums { get; } = checksums;

    /// <summary>Bytes that it takes on the disk.</summary>
    public long FileBytes { get; } = fileBytes;

    /// <summary>Never dropped to make room; nor are those it stands on.</summary>
    public bool Saved { get; set; }

    /// <summary>The extent with the block before its first.</summary>
    public KvExtent? Parent { get; set; }

    /// <summary>Extents that continue one of its blocks, the one that is being written among them.</summary>
    public HashSet<KvExtent> Children { get; } = [];

    public int Readers { get; set; }
    public bool Dropped { get; set; }
    public LinkedListNode<KvExtent>? Entry { get; set; }
}

/// <summary>Blocks of one extent, by their index in the prefix.</summary>
internal readonly record struct KvExtentRange(KvExtent Extent, int FirstBlock, int BlockCount);

/// <summary>A snapshot on disk with the blocks before it: all that a sequence needs to resume after <see cref="Length"/> tokens.</summary>
/// <param name="Ranges">From block 0 on without a gap; the last one's extent ends with the snapshot.</param>
internal sealed record KvChain(int Length, IReadOnlyList<KvExtentRange> Ranges)
{
    public KvExtent Snapshot => Ranges[^1].Extent;
    public int BlockCount => Snapshot.Header.EndBlock;
}

/// <summary>Why an extent is no longer there.</summary>
internal enum KvDrop
{
    /// <summary>To make room.</summary>
    Evicted,
    /// <summary>Shorter or longer than its header says.</summary>
    Torn,
    /// <summary>Not our format, or another version of it.</summary>
    Foreign,
    /// <summary>A checksum does not agree.</summary>
    Flipped,
    /// <summary>The header of another file.</summary>
    Misplaced,
    /// <summary>Of another model, numerics or geometry.</summary>
    Stale,
    /// <summary>Well written, but it contradicts itself.</summary>
    Malformed,
    /// <summary>What it holds is there already.</summary>
    Duplicate,
    /// <summary>What it stands on is not there.</summary>
    Orphan,
    /// <summary>The disk reports an error.</summary>
    Unreadable,
}

namespace Inference.Runtime.KvCache.Disk;

/// <summary>What all extents of a <see cref="KvStore"/> have in common.</summary>
internal sealed record KvLayout
{
    /// <summary>Most payload bytes of one extent: it is written from one buffer.</summary>
    public const int PayloadBytesMax = 1 << 30;

    /// <summary>32 bytes that name everything the bytes of a state depend on: model, numerics, page geometry. Extents of another are dropped.</summary>
    public required ReadOnlyMemory<byte> Fingerprint { get; init; }

    /// <summary>Token positions of a block, 1 to 65,536.</summary>
    public int BlockTokens { get; init; } = KvStateSpec.BlockTokens;

    /// <summary>Payload bytes of a block: the pages of all kinds that are kept for ever. May be 0.</summary>
    public required long BlockBytes { get; init; }

    /// <summary>Most payload bytes of a snapshot.</summary>
    public required long SnapshotBytesMax { get; init; }

    /// <exception cref="ArgumentException">A number is out of its range.</exception>
    public void Check()
    {
        if (Fingerprint.Length != 32) throw new ArgumentException($"A KV fingerprint has 32 bytes, not {Fingerprint.Length}.");
        if (BlockTokens is < 1 or > 65536) throw new ArgumentException($"Blocks of {BlockTokens} tokens cannot be kept on disk: 1 to 65536.");
        if (BlockBytes < 0 || SnapshotBytesMax < 0 || BlockBytes > PayloadBytesMax || SnapshotBytesMax > PayloadBytesMax - BlockBytes)
            throw new ArgumentException(
                $"A block of {BlockBytes} bytes with a snapshot of {SnapshotBytesMax} bytes cannot be kept on disk: {PayloadBytesMax} together at most.");
    }
}

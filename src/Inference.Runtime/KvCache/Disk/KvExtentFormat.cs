using System.Buffers.Binary;
using System.IO.Hashing;
using System.Runtime.InteropServices;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// The bytes of an extent's file: a header, padded with zeros to a multiple of 4,096, then the payload. Numbers are little endian.
/// <code>
///   0  magic (8)          8  version (4)       12  flags: 1 = snapshot (4)   16  id (8), also the file's name
///  24  fingerprint (32)  56  root (32)         88  parent (32)
/// 120  first block (4)  124  blocks (4)       128  tail tokens (4)          132  tokens of a block (4)
/// 136  bytes of a block (8)                   144  bytes of the snapshot (8)
/// 152  XxHash128 of the header, padding included, with zeros here (16)
/// 168  names (32 each), tokens (4 each), XxHash128 of each part of the payload (16 each)
/// </code>
/// The header holds the checksums of the payload, so a part is only ever taken for the one that it was written as: a part that was
/// misdirected, stale or swapped fails like a flipped one. Files are hostile input: nothing is allocated from a number that the
/// file's real length does not bear out.
/// </summary>
internal static class KvExtentFormat
{
    public const int FixedBytes = 168, BlocksMax = 4096, Alignment = 4096;
    private const ulong Magic = 0x31_4B_4C_42_54_58_45_56;
    private const uint Version = 1;
    private const int ChecksumAt = 152;

    /// <summary>Bytes of the header of an extent.</summary>
    public static int HeaderBytes(KvExtentHeader header) => (int)HeaderBytes(header.Names.Length, header.Tokens.Length, header.PartCount);

    private static long HeaderBytes(long blocks, long tokens, long parts) =>
        (FixedBytes + blocks * 32 + tokens * 4 + parts * 16 + Alignment - 1) / Alignment * Alignment;

    /// <summary>Bytes of the whole file.</summary>
    public static long FileBytes(KvExtentHeader header, KvLayout layout) => HeaderBytes(header) + header.PayloadBytes(layout);

    /// <summary>Where a part of the payload begins.</summary>
    public static long PartOffset(KvExtentHeader header, KvLayout layout, int part) => HeaderBytes(header) + part * layout.BlockBytes;

    /// <summary>
    /// What to read for some parts of the payload: whole units of <see cref="Alignment"/>, so that a disk can put them into memory without a
    /// copy of its own; the parts begin after <c>Skip</c> bytes of it and have <c>Bytes</c>. The last unit may reach beyond the file.
    /// </summary>
    public static (long Offset, int Length, int Skip, int Bytes) Reach(KvExtentHeader header, KvLayout layout, int part, int partCount)
    {
        long from = PartOffset(header, layout, part), bytes = 0;
        for (int i = part; i < part + partCount; i++) bytes += header.PartBytes(layout, i);
        long first = from / Alignment * Alignment, end = (from + bytes + Alignment - 1) / Alignment * Alignment;
        return (first, checked((int)(end - first)), (int)(from - first), (int)bytes);
    }

    public static UInt128 Checksum(ReadOnlySpan<byte> part) => XxHash128.HashToUInt128(part);

    private static UInt128 HeaderChecksum(ReadOnlySpan<byte> header) => Checksum(SeededBug.Is(19) ? header[..FixedBytes] : header);

    public static byte[] Encode(ulong id, KvExtentHeader header, UInt128[] checksums, KvLayout layout)
    {
        var bytes = new byte[HeaderBytes(header)];
        var s = bytes.AsSpan();
        BinaryPrimitives.WriteUInt64LittleEndian(s, Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(s[8..], Version);
        BinaryPrimitives.WriteUInt32LittleEndian(s[12..], header.HasSnapshot ? 1u : 0u);
        BinaryPrimitives.WriteUInt64LittleEndian(s[16..], id);
        layout.Fingerprint.Span.CopyTo(s[24..]);
        MemoryMarshal.Write(s[56..], header.Root);
        MemoryMarshal.Write(s[88..], header.Parent);
        BinaryPrimitives.WriteInt32LittleEndian(s[120..], header.FirstBlock);
        BinaryPrimitives.WriteInt32LittleEndian(s[124..], header.Names.Length);
        BinaryPrimitives.WriteInt32LittleEndian(s[128..], header.Tail(layout).Length);
        BinaryPrimitives.WriteInt32LittleEndian(s[132..], layout.BlockTokens);
        BinaryPrimitives.WriteInt64LittleEndian(s[136..], layout.BlockBytes);
        BinaryPrimitives.WriteInt64LittleEndian(s[144..], header.SnapshotBytes);
        var rest = s[FixedBytes..];
        Append(ref rest, header.Names.AsSpan());
        Append(ref rest, header.Tokens.AsSpan());
        Append(ref rest, checksums.AsSpan());
        BinaryPrimitives.WriteUInt128LittleEndian(s[ChecksumAt..], HeaderChecksum(s));
        return bytes;
    }

    /// <summary>
    /// How long the header is that begins with <paramref name="start"/>; null, and why, if this is none or does not fit the file.
    /// Nothing is verified yet.
    /// </summary>
    public static int? Measure(ReadOnlySpan<byte> start, long fileBytes, out KvDrop why)
    {
        why = KvDrop.Torn;
        if (start.Length < FixedBytes) return null;
        why = KvDrop.Foreign;
        if (BinaryPrimitives.ReadUInt64LittleEndian(start) != Magic || BinaryPrimitives.ReadUInt32LittleEndian(start[8..]) != Version) return null;
        var f = new Fields(start);
        why = KvDrop.Flipped;
        if (f.Flags > 1 || f.Blocks is < 0 or > BlocksMax || f.BlockTokens is < 1 or > 65536 || f.Tail < 0 || f.Tail >= f.BlockTokens) return null;
        if (f.BlockBytes is < 0 or > KvLayout.PayloadBytesMax || f.SnapshotBytes is < 0 or > KvLayout.PayloadBytesMax) return null;
        long header = HeaderBytes(f.Blocks, (long)f.Blocks * f.BlockTokens + f.Tail, f.Blocks + f.Flags);
        why = KvDrop.Torn;
        return header + f.Blocks * f.BlockBytes + f.SnapshotBytes == fileBytes ? checked((int)header) : null;
    }

    /// <summary>Reads a whole header that <see cref="Measure"/> let through; null, and why, if it may not be used. Changes the bytes.</summary>
    public static KvExtent? Decode(Span<byte> bytes, ulong id, KvLayout layout, out KvDrop why)
    {
        why = KvDrop.Flipped;
        var checksum = BinaryPrimitives.ReadUInt128LittleEndian(bytes[ChecksumAt..]);
        bytes.Slice(ChecksumAt, 16).Clear();
        if (HeaderChecksum(bytes) != checksum) return null;
        why = KvDrop.Misplaced;
        if (BinaryPrimitives.ReadUInt64LittleEndian(bytes[16..]) != id) return null;
        var f = new Fields(bytes);
        why = KvDrop.Stale;
        if (!bytes.Slice(24, 32).SequenceEqual(layout.Fingerprint.Span)) return null;
        if (f.BlockTokens != layout.BlockTokens || f.BlockBytes != layout.BlockBytes) return null;
        ReadOnlySpan<byte> rest = bytes[FixedBytes..];
        var header = new KvExtentHeader
        {
            Root = MemoryMarshal.Read<PrefixHash>(bytes[56..]),
            Parent = MemoryMarshal.Read<PrefixHash>(bytes[88..]),
            FirstBlock = f.FirstBlock,
            Names = Take<PrefixHash>(ref rest, f.Blocks),
            Tokens = Take<int>(ref rest, f.Blocks * f.BlockTokens + f.Tail),
            HasSnapshot = f.Flags == 1,
            SnapshotBytes = f.SnapshotBytes,
        };
        why = KvDrop.Malformed;
        if (header.Fault(layout) is not null) return null;
        return new KvExtent(id, header, Take<UInt128>(ref rest, header.PartCount), FileBytes(header, layout));
    }

    private static void Append<T>(ref Span<byte> to, ReadOnlySpan<T> values) where T : unmanaged
    {
        var bytes = MemoryMarshal.AsBytes(values);
        bytes.CopyTo(to);
        to = to[bytes.Length..];
    }

    private static T[] Take<T>(ref ReadOnlySpan<byte> from, int count) where T : unmanaged
    {
        var values = new T[count];
        var bytes = MemoryMarshal.AsBytes(values.AsSpan());
        from[..bytes.Length].CopyTo(bytes);
        from = from[bytes.Length..];
        return values;
    }

    private readonly struct Fields(ReadOnlySpan<byte> s)
    {
        public readonly uint Flags = BinaryPrimitives.ReadUInt32LittleEndian(s[12..]);
        public readonly int FirstBlock = BinaryPrimitives.ReadInt32LittleEndian(s[120..]);
        public readonly int Blocks = BinaryPrimitives.ReadInt32LittleEndian(s[124..]);
        public readonly int Tail = BinaryPrimitives.ReadInt32LittleEndian(s[128..]);
        public readonly int BlockTokens = BinaryPrimitives.ReadInt32LittleEndian(s[132..]);
        public readonly long BlockBytes = BinaryPrimitives.ReadInt64LittleEndian(s[136..]);
        public readonly long SnapshotBytes = BinaryPrimitives.ReadInt64LittleEndian(s[144..]);
    }
}

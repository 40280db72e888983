using System.Runtime.InteropServices;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;

namespace Inference.Simulation;

/// <summary>
/// Small extents whose contents follow from their tokens, so that whatever a store gives can be checked without remembering what it was given:
/// names are the hash chain of the tokens, the payload of a block is generated from its name, that of a snapshot from its name and tail.
/// </summary>
internal static class KvExtents
{
    public const int Block = 4;

    public static readonly KvLayout Layout = new()
    {
        Fingerprint = Enumerable.Range(1, 32).Select(i => (byte)i).ToArray(),
        BlockTokens = Block,
        BlockBytes = 700,
        SnapshotBytesMax = 900,
    };

    /// <summary>Names of the whole blocks.</summary>
    public static PrefixHash[] Names(PrefixHash root, ReadOnlySpan<int> tokens)
    {
        var names = new PrefixHash[tokens.Length / Block];
        for (int i = 0; i < names.Length; i++) names[i] = (i == 0 ? root : names[i - 1]).Then(tokens.Slice(i * Block, Block));
        return names;
    }

    /// <summary>The blocks from an index on, and, if asked for, a snapshot at the end of the tokens.</summary>
    public static KvExtentHeader Header(PrefixHash root, int[] tokens, int fromBlock, bool snapshot)
    {
        var names = Names(root, tokens);
        return new KvExtentHeader
        {
            Root = root,
            Parent = fromBlock == 0 ? root : names[fromBlock - 1],
            FirstBlock = fromBlock,
            Names = names[fromBlock..],
            Tokens = tokens[(fromBlock * Block)..(snapshot ? tokens.Length : names.Length * Block)],
            HasSnapshot = snapshot,
            SnapshotBytes = snapshot ? SnapshotBytes(tokens.Length) : 0,
        };
    }

    // Several sizes, none among them.
    private static long SnapshotBytes(int length) => length % 5 * 200;

    public static byte[] Payload(KvExtentHeader header)
    {
        var payload = new byte[header.PayloadBytes(Layout)];
        Fill(header, payload);
        return payload;
    }

    public static void Fill(KvExtentHeader header, Span<byte> payload, KvLayout? layout = null)
    {
        for (int i = 0; i < header.PartCount; i++)
        {
            int bytes = (int)header.PartBytes(layout ?? Layout, i);
            Generate(header, i, payload[..bytes]);
            payload = payload[bytes..];
        }
    }

    private static void Generate(KvExtentHeader header, int part, Span<byte> bytes)
    {
        ulong state = part < header.Names.Length ? (ulong)header.Names[part].Low : (ulong)header.Last.High;
        if (part == header.Names.Length)
            foreach (int token in header.Tail(Layout)) state = state * 6364136223846793005 + (ulong)token + 1;
        Span<byte> word = stackalloc byte[8];
        for (int i = 0; i < bytes.Length; i += 8)
        {
            state = state * 6364136223846793005 + 1442695040888963407;
            ulong value = state ^ state >> 29;
            MemoryMarshal.Write(word, value);
            word[..Math.Min(8, bytes.Length - i)].CopyTo(bytes[i..]);
        }
    }

    /// <summary>Whether a part is what <see cref="Fill"/> wrote.</summary>
    public static bool Agrees(KvExtentHeader header, int part, ReadOnlySpan<byte> bytes)
    {
        var expected = new byte[bytes.Length];
        Generate(header, part, expected);
        return bytes.SequenceEqual(expected);
    }

    /// <summary>Checks names against tokens, and every byte that the store gives for the extent; false if the store itself says that it may not be used.</summary>
    public static bool Check(KvStore store, KvExtent extent, KvLayout? layout = null)
    {
        layout ??= Layout;
        var header = extent.Header;
        for (int i = 0; i < header.Names.Length; i++)
            Must((i == 0 ? header.Parent : header.Names[i - 1]).Then(header.Tokens.AsSpan(i * Block, Block)) == header.Names[i], extent, $"has a block {i} that is not named by its tokens");
        var (_, length, skip, bytes) = KvExtentFormat.Reach(header, layout, 0, header.PartCount);
        Span<byte> payload = new byte[length];
        if (store.Read(extent, 0, header.PartCount, payload) is not null) return false;
        payload = payload.Slice(skip, bytes);
        for (int i = 0; i < header.PartCount; i++)
        {
            int partBytes = (int)header.PartBytes(layout, i);
            Must(Agrees(header, i, payload[..partBytes]), extent, $"has a part {i} that is not what was written");
            payload = payload[partBytes..];
        }
        return true;
    }

    /// <summary>Every extent stands on others in the index, down to block 0, and no block is there twice.</summary>
    public static void CheckTree(KvStore store)
    {
        var extents = store.Extents();
        var blocks = new Dictionary<PrefixHash, (KvExtent Extent, int Block)>();
        foreach (var e in extents)
            for (int i = 0; i < e.Header.Names.Length; i++) Must(blocks.TryAdd(e.Header.Names[i], (e, e.Header.FirstBlock + i)), e, "has a block that is there twice");
        foreach (var e in extents)
        {
            Must(!e.Dropped, e, "was dropped and is found");
            if (e.Header.FirstBlock == 0)
            {
                Must(e.Header.Root == e.Header.Parent, e, "has a first block that stands on another");
                continue;
            }
            Must(blocks.TryGetValue(e.Header.Parent, out var parent), e, "stands on nothing");
            Must(e.Header.FirstBlock - 1 == parent.Block && e.Header.Root == parent.Extent.Header.Root && parent.Extent.Children.Contains(e), e, "does not stand on its parent");
        }
    }

    private static void Must(bool holds, KvExtent extent, string otherwise)
    {
        if (!holds) throw new LawBrokenException(Law.DiskVerified, $"extent {extent.Id} {otherwise}");
    }
}

/// <summary>Random prefixes that branch and continue, and the extents that keep them: the load of the tests.</summary>
internal sealed class KvLoad(int seed)
{
    private readonly Random _random = new(seed);
    private readonly List<(PrefixHash Root, int[] Tokens)> _prompts = [];
    private static readonly PrefixHash[] Roots = [PrefixHash.Root("a"), PrefixHash.Root("b")];

    public Random Random => _random;

    /// <summary>A prompt that continues or branches an earlier one, or begins anew.</summary>
    public (PrefixHash Root, int[] Tokens) Prompt(int lengthMax = 40)
    {
        var root = Roots[_random.Next(2)];
        int[] start = [];
        if (_prompts.Count > 0 && _random.Next(4) > 0)
        {
            (root, start) = _prompts[_random.Next(_prompts.Count)];
            start = start[.._random.Next(start.Length + 1)];
        }
        var tokens = new int[Math.Max(1, Math.Min(lengthMax, start.Length + _random.Next(16)))];
        for (int i = 0; i < tokens.Length; i++) tokens[i] = i < start.Length ? start[i] : _random.Next(1000);
        _prompts.Add((root, tokens));
        if (_prompts.Count > 50) _prompts.RemoveAt(_random.Next(_prompts.Count));
        return (root, tokens);
    }

    /// <summary>The extents of a prompt whose blocks are not there yet, as an engine would write them: in one or several, a snapshot at the end.</summary>
    public IEnumerable<KvExtentHeader> Missing((PrefixHash Root, int[] Tokens) prompt, Func<PrefixHash, bool> there)
    {
        var names = KvExtents.Names(prompt.Root, prompt.Tokens);
        int have = 0;
        while (have < names.Length && there(names[have])) have++;
        while (names.Length - have > 2 && _random.Next(2) == 0)
        {
            int until = _random.Next(have + 1, names.Length);
            bool snapshot = _random.Next(3) == 0;
            yield return KvExtents.Header(prompt.Root, prompt.Tokens[..(until * KvExtents.Block)], have, snapshot);
            have = until;
        }
        if (_random.Next(5) > 0) yield return KvExtents.Header(prompt.Root, prompt.Tokens, have, snapshot: true);
        else if (have < names.Length) yield return KvExtents.Header(prompt.Root, prompt.Tokens, have, snapshot: false);
    }
}

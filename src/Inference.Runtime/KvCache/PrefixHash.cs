using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;

namespace Inference.Runtime.KvCache;

/// <summary>
/// Names of token prefixes: a chain of SHA-256 over whole blocks, rooted in the tenant, so that a name says everything that the state of a
/// prefix depends on. Names find candidates; on a hit the tokens themselves are compared.
/// </summary>
internal readonly record struct PrefixHash(UInt128 High, UInt128 Low)
{
    /// <summary>The empty prefix of a tenant. Tenants never share state.</summary>
    public static PrefixHash Root(string tenant) => Of(Encoding.UTF8.GetBytes("root\0" + (SeededBug.Is(7) ? "" : tenant)));

    /// <summary>This prefix and one more block.</summary>
    public PrefixHash Then(ReadOnlySpan<int> block)
    {
        Span<byte> input = new byte[32 + block.Length * sizeof(int)];
        MemoryMarshal.Write(input, this);
        MemoryMarshal.AsBytes(block).CopyTo(input[32..]);
        return Of(input);
    }

    private static PrefixHash Of(ReadOnlySpan<byte> input)
    {
        Span<byte> hash = stackalloc byte[SHA256.HashSizeInBytes];
        SHA256.HashData(input, hash);
        if (SeededBug.Is(8)) hash[2..].Clear();
        return MemoryMarshal.Read<PrefixHash>(hash);
    }
}

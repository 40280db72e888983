namespace Inference.Runtime.Sampling;

/// <summary>
/// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw ("Parallel random numbers: as easy as 1, 2, 3", SC 2011):
/// a block cipher of a counter under a key, so that the number at any index needs no number before it.
/// </summary>
internal static class Philox
{
    private const uint M0 = 0xD2511F53, M1 = 0xCD9E8D57, W0 = 0x9E3779B9, W1 = 0xBB67AE85;
    private const int Rounds = 10;

    /// <summary>A number in [0, 1), a multiple of 2^-53, for output index <paramref name="index"/> of a seed.</summary>
    public static double Uniform(ulong seed, long index)
    {
        var (x0, x1, _, _) = Block((uint)index, (uint)(index >>> 32), 0, 0, (uint)seed, (uint)(seed >> 32));
        return (((ulong)x0 << 32 | x1) >> 11) * (1.0 / (1UL << 53));
    }

    public static (uint X0, uint X1, uint X2, uint X3) Block(uint x0, uint x1, uint x2, uint x3, uint k0, uint k1)
    {
        for (int round = 0; round < Rounds; round++)
        {
            ulong a = (ulong)M0 * x0, b = (ulong)M1 * x2;
            (x0, x1, x2, x3) = ((uint)(b >> 32) ^ x1 ^ k0, (uint)b, (uint)(a >> 32) ^ x3 ^ k1, (uint)a);
            k0 += W0;
            k1 += W1;
        }
        return (x0, x1, x2, x3);
    }
}

// Thirty-two rows side by side, so that lanes are rows: element d of all of them in two vectors. Transposing moves numbers of 32 bits, whatever they mean.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

internal static unsafe class RowTile
{
    public const int Rows = 32;

    /// <summary>tile[d, r] = number d of row r, for thirty-two rows.</summary>
    public static void Transpose(float** rows, int width, float* tile)
    {
        if (Avx512F.IsSupported)
        {
            TransposeSixteen(rows, width, tile);
            TransposeSixteen(rows + 16, width, tile + 16);
            return;
        }
        for (var r = 0; r < Rows; r++)
        {
            for (var d = 0; d < width; d++)
                tile[d * Rows + r] = rows[r][d];
        }
    }

    /// <summary>Sixteen rows into sixteen columns of the tile: squares of 16 x 16, by exchanging halves of growing size.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void TransposeSixteen(float** rows, int width, float* tile)
    {
        var square = stackalloc Vector512<float>[16];
        var d = 0;
        for (; d + 16 <= width; d += 16, tile += 16 * Rows)
        {
            // Squares of 4 x 4 within each quarter of four rows, then the quarters.
            for (var r = 0; r < 4; r++)
            {
                Vector512<float> a = Vector512.Load(rows[4 * r] + d), b = Vector512.Load(rows[4 * r + 1] + d), c = Vector512.Load(rows[4 * r + 2] + d), e = Vector512.Load(rows[4 * r + 3] + d);
                Vector512<double> ab = Avx512F.UnpackLow(a, b).AsDouble(), ce = Avx512F.UnpackLow(c, e).AsDouble();
                Vector512<double> ab2 = Avx512F.UnpackHigh(a, b).AsDouble(), ce2 = Avx512F.UnpackHigh(c, e).AsDouble();
                square[r] = Avx512F.UnpackLow(ab, ce).AsSingle(); // columns 0, 4, 8, 12 of the four rows
                square[4 + r] = Avx512F.UnpackHigh(ab, ce).AsSingle(); // columns 1, 5, 9, 13
                square[8 + r] = Avx512F.UnpackLow(ab2, ce2).AsSingle();
                square[12 + r] = Avx512F.UnpackHigh(ab2, ce2).AsSingle();
            }
            for (var c = 0; c < 4; c++)
            {
                var s = square + 4 * c;
                Vector512<float> low01 = Avx512F.Shuffle4x128(s[0], s[1], 0b01_00_01_00), high01 = Avx512F.Shuffle4x128(s[0], s[1], 0b11_10_11_10);
                Vector512<float> low23 = Avx512F.Shuffle4x128(s[2], s[3], 0b01_00_01_00), high23 = Avx512F.Shuffle4x128(s[2], s[3], 0b11_10_11_10);
                Avx512F.Shuffle4x128(low01, low23, 0b10_00_10_00).Store(tile + c * Rows);
                Avx512F.Shuffle4x128(low01, low23, 0b11_01_11_01).Store(tile + (4 + c) * Rows);
                Avx512F.Shuffle4x128(high01, high23, 0b10_00_10_00).Store(tile + (8 + c) * Rows);
                Avx512F.Shuffle4x128(high01, high23, 0b11_01_11_01).Store(tile + (12 + c) * Rows);
            }
        }
        for (; d < width; d++, tile += Rows)
        {
            for (var r = 0; r < 16; r++)
                tile[r] = rows[r][d];
        }
    }

    /// <summary>score += weight * relu(dot), for thirty-two rows.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void AddHead(float weight, Vector512<float> a, Vector512<float> b, ref Vector512<float> low, ref Vector512<float> high)
    {
        var w = Vector512.Create(weight);
        low = Vector512.FusedMultiplyAdd(w, Vector512.Max(a, Vector512<float>.Zero), low);
        high = Vector512.FusedMultiplyAdd(w, Vector512.Max(b, Vector512<float>.Zero), high);
    }
}

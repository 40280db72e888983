namespace Inference.Backends.Operators;

/// <summary>
/// The rows that one layer keeps for many sequences, on pages of a pool: KV rows, index keys, compressor inputs. Row r of sequence s
/// is slot r mod <see cref="RowsPerPage"/> of page <c>PageTable[s, r div RowsPerPage - FirstPage[s]]</c>. Rows are addressed by what they
/// mean (a token position, a compressed row's index), never by where they lie, so a page can be shared between sequences.
/// </summary>
/// <param name="Pool">[pages, layers, RowsPerPage, <see cref="RowFormat.StoredElements"/>] of <see cref="RowFormat.DType"/>; each layer that keeps
/// this kind of row has an ordinal in it.</param>
/// <param name="Format">How a row is stored.</param>
/// <param name="Layer">Ordinal of the layer in the pool.</param>
/// <param name="PageTable">I32 [sequences, entries]: page ids; -1 behind a sequence's last, and for states of a recurrence on their way through a step that
/// nobody will read: a kernel passes them and stores nothing.</param>
/// <param name="FirstPage">I32 [sequences]: the page index (r div RowsPerPage) that entry 0 stands for; pages before it were dropped.</param>
public readonly record struct PagedRows(Tensor Pool, RowFormat Format, int Layer, Tensor PageTable, Tensor FirstPage)
{
    public bool IsPresent => Pool.IsPresent;
    public int LayerCount => Pool.D1;
    public int RowsPerPage => Pool.D2;
    /// <summary>Elements per row.</summary>
    public int Width => Format.Width;
}

/// <summary>
/// Which sequence and position each of the T tokens of a step has. A sequence's tokens stand together in ascending positions.
/// </summary>
/// <param name="Sequence">I32 [T]: row of the page tables.</param>
/// <param name="Position">I32 [T]: absolute position, 0-based.</param>
public readonly record struct TokenLayout(Tensor Sequence, Tensor Position);

/// <summary>Rotary embedding: pairs of adjacent channels, the last 2 x frequencies channels of a vector, rotated by position x frequency.</summary>
/// <param name="Frequencies">F32 [rotary channels / 2]. The angle is the F32 product of position and frequency (deepseek-v4 2.1).</param>
public readonly record struct Rope(Tensor Frequencies)
{
    public int Channels => 2 * Frequencies.D0;
}

/// <summary>Rounding that a model was trained to see on its cached rows (deepseek-v4 2.4, 2.6), or that a <see cref="RowFormat"/> needs; the numbers
/// stay F32.</summary>
public enum RowRounding
{
    None,
    /// <summary>Every channel to the nearest BF16.</summary>
    BF16,
    /// <summary>Channels before the rotary ones, a multiple of 64, in blocks of 64 to E4M3 with a power-of-two scale.</summary>
    Fp8Block64,
    /// <summary><see cref="Fp8Block64"/>, and the rotary channels to BF16.</summary>
    Fp8Row,
    /// <summary>Hadamard transform of the whole row (a power of two, at least 32), then blocks of 32 to E2M1 with a power-of-two scale.</summary>
    HadamardFp4Block32,
    /// <summary>Hadamard transform of the whole row (a power of two, at least 32), then all of it to E4M3 with one power-of-two scale.</summary>
    HadamardFp8,
}

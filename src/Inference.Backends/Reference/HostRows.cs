using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>
/// Reading the numbers that address other numbers (ids, positions, page tables) from host memory. Every one is checked where it is
/// read: a wrong id is a BackendException(Request) that names it, never a read from somewhere else.
/// </summary>
internal static unsafe class HostRows
{
    /// <summary>Address of a row of a sequence: <see cref="RowFormat.Bytes"/> bytes.</summary>
    /// <param name="operand">Name for messages, e.g. <c>KvInsert.Rows</c>.</param>
    /// <exception cref="BackendException">Request: no such sequence, the row's page was dropped or not given, or its id is outside of the
    /// pool.</exception>
    public static byte* RowPointer(string operand, scoped in PagedRows rows, int sequence, long row)
    {
        Index($"{operand}.PageTable", "sequence", sequence, rows.PageTable.D0);
        var (page, slot) = Math.DivRem(row, rows.RowsPerPage);
        long first = rows.FirstPage.I32()[sequence], entry = page - first;
        if (row < 0 || entry < 0 || entry >= rows.PageTable.D1)
            throw Wrong($"{operand}: row {row} of sequence {sequence} is on page {page}; "
                + $"the table holds pages {first} to {first + rows.PageTable.D1 - 1}.");
        var id = rows.PageTable.I32(sequence)[entry];
        if ((uint)id >= (uint)rows.Pool.D0)
            throw Wrong($"{operand}: row {row} of sequence {sequence} is on page id {id} of a pool of {rows.Pool.D0} pages.");
        return rows.Pool.Pointer() + rows.Pool.DType.ByteLength(id * rows.Pool.RowStride)
            + ((long)rows.Layer * rows.RowsPerPage + slot) * rows.Format.Bytes;
    }

    /// <summary>Reads a row.</summary>
    public static float[] Read(string operand, scoped in PagedRows rows, int sequence, long row)
    {
        var values = new float[rows.Width];
        rows.Format.Decode(new(RowPointer(operand, rows, sequence, row), rows.Format.Bytes), values);
        return values;
    }

    /// <summary>Stores a row.</summary>
    public static void Write(string operand, scoped in PagedRows rows, int sequence, long row, ReadOnlySpan<float> values) =>
        rows.Format.Encode(values, new(RowPointer(operand, rows, sequence, row), rows.Format.Bytes));

    /// <summary>Sequences in range and in one piece each, positions not negative and ascending within a sequence.</summary>
    /// <exception cref="BackendException">Request: names the first token that breaks a rule.</exception>
    public static void CheckTokens(string op, in TokenLayout tokens, int sequences)
    {
        int* sequence = tokens.Sequence.I32(), position = tokens.Position.I32();
        var seen = new bool[sequences];
        for (var t = 0; t < tokens.Sequence.D0; t++)
        {
            Index($"{op}.Tokens.Sequence", $"token {t}", sequence[t], sequences);
            if (position[t] < 0) throw Wrong($"{op}.Tokens.Position: token {t} has position {position[t]}.");
            if (t > 0 && sequence[t] == sequence[t - 1])
            {
                if (position[t] <= position[t - 1])
                    throw Wrong($"{op}.Tokens.Position: token {t} of sequence {sequence[t]} has position {position[t]} "
                        + $"after {position[t - 1]}.");
                continue;
            }
            if (seen[sequence[t]])
                throw Wrong($"{op}.Tokens.Sequence: sequence {sequence[t]} comes again at token {t}; its tokens must stand together.");
            seen[sequence[t]] = true;
        }
    }

    /// <summary>Returns <paramref name="value"/> if it is in [0, limit).</summary>
    /// <exception cref="BackendException">Request: it is not.</exception>
    public static int Index(string operand, string what, int value, int limit) =>
        (uint)value < (uint)limit ? value : throw Wrong($"{operand}: {what} is {value}, which is not in 0..{limit - 1}.");

    /// <summary>The F32 numbers of one item of the first dimension.</summary>
    public static Span<float> Row(scoped in Tensor t, int row) => new(t.F32(row), (int)t.RowElements);

    public static BackendException Wrong(string message) => new(BackendErrorKind.Request, message);
}

// Checks of the numbers that address other numbers (ids, positions, pages), where they are read: a wrong one is a BackendException(Request)
// that names it, never a read from somewhere else. No allocation when all is well.
using System.Runtime.CompilerServices;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal static unsafe class CpuChecks
{
    /// <summary>Returns <paramref name="value"/> if it is in [0, limit).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Index(string operand, string what, int index, int value, int limit)
    {
        if ((uint)value >= (uint)limit) ThrowIndex(operand, what, index, value, limit);
        return value;
    }

    private static void ThrowIndex(string operand, string what, int index, int value, int limit) =>
        throw Wrong($"{operand}: {what} {index} is {value}, which is not in 0..{limit - 1}.");

    /// <summary>Sequences in range and in one piece each, positions not negative and ascending within a sequence.</summary>
    /// <param name="seen">Room for one int per sequence.</param>
    public static void Tokens(string op, in TokenLayout tokens, int sequences, Scratch seen)
    {
        int* sequence = tokens.Sequence.I32(), position = tokens.Position.I32(), marks = seen.Get<int>(sequences);
        new Span<int>(marks, sequences).Clear();
        for (var t = 0; t < tokens.Sequence.D0; t++)
        {
            if ((uint)sequence[t] >= (uint)sequences) ThrowIndex($"{op}.Tokens.Sequence", "token", t, sequence[t], sequences);
            if (position[t] < 0) throw Wrong($"{op}.Tokens.Position: token {t} has position {position[t]}.");
            if (t > 0 && sequence[t] == sequence[t - 1])
            {
                if (position[t] <= position[t - 1])
                    throw Wrong($"{op}.Tokens.Position: token {t} of sequence {sequence[t]} has position {position[t]} after {position[t - 1]}.");
                continue;
            }
            if (marks[sequence[t]] != 0) throw Wrong($"{op}.Tokens.Sequence: sequence {sequence[t]} comes again at token {t}; its tokens must stand together.");
            marks[sequence[t]] = 1;
        }
    }

    public static BackendException Wrong(string message) => new(BackendErrorKind.Request, message);
}

/// <summary><see cref="PagedRows"/> as plain data.</summary>
internal unsafe struct RowMap
{
    private byte* _pool;
    private int* _table, _first;
    private long _pageStride, _tableStride;
    private int _rowsPerPage, _pages, _entries, _sequences;
    private Operand _operand;
    private int _rowBytes;

    /// <summary>Names for messages; a string would not be plain data.</summary>
    public enum Operand { KvInsertRows, CompressorState, CompressorRows, IndexRows, AttentionWindow, AttentionCompressed }

    private static readonly string[] Names =
        ["KvInsert.Rows", "CompressorUpdate.State", "CompressorUpdate.Rows", "IndexTopK.Rows", "Attention.Window", "Attention.Compressed"];

    public RowMap(in PagedRows rows, Operand operand)
    {
        _operand = operand;
        if (!rows.IsPresent) return;
        _rowBytes = rows.Format.Bytes;
        _pool = rows.Pool.Pointer() + (long)rows.Layer * rows.RowsPerPage * _rowBytes;
        _table = rows.PageTable.I32();
        _first = rows.FirstPage.I32();
        _pageStride = rows.Pool.DType.ByteLength(rows.Pool.RowStride);
        _tableStride = rows.PageTable.RowStride;
        _rowsPerPage = rows.RowsPerPage;
        _pages = rows.Pool.D0;
        _entries = rows.PageTable.D1;
        _sequences = rows.PageTable.D0;
    }

    /// <summary>Distance of neighbouring rows of a page, in bytes.</summary>
    public readonly int RowBytes => _rowBytes;

    /// <summary>Address of a row; it and the rows behind it up to the end of its page are contiguous.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly byte* Row(int sequence, int row) => Row(sequence, row, out _);

    /// <param name="contiguous">Rows from this one to the end of its page.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly byte* Row(int sequence, int row, out int contiguous)
    {
        var page = (uint)row / (uint)_rowsPerPage;
        var slot = (uint)row - page * (uint)_rowsPerPage;
        var entry = (long)page - _first[sequence];
        if (row < 0 || (ulong)entry >= (ulong)_entries) ThrowPage(sequence, row);
        var id = _table[sequence * _tableStride + entry];
        if ((uint)id >= (uint)_pages) ThrowId(sequence, row, id);
        contiguous = _rowsPerPage - (int)slot;
        return _pool + id * _pageStride + (long)slot * _rowBytes;
    }

    private readonly void ThrowPage(int sequence, int row) => throw CpuChecks.Wrong(
        $"{Names[(int)_operand]}: row {row} of sequence {sequence} is on page {row / _rowsPerPage}; the table holds pages {_first[sequence]} to {_first[sequence] + (long)_entries - 1}.");

    private readonly void ThrowId(int sequence, int row, int id) => throw CpuChecks.Wrong(
        $"{Names[(int)_operand]}: row {row} of sequence {sequence} is on page id {id} of a pool of {_pages} pages.");
}

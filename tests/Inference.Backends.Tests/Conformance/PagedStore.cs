using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Conformance;

/// <summary>The rows that some sequences keep at the start of a run: which rows of each sequence exist, and what they hold.</summary>
/// <param name="Format">How a row is stored.</param>
/// <param name="RowsPerPage">Rows of a page.</param>
/// <param name="Ranges">First row and count of each sequence; rows before the first were dropped.</param>
/// <param name="Content">Rows that already hold something, values that the format has; the others are NaN until an operator writes them.</param>
internal sealed record KeptRows(RowFormat Format, int RowsPerPage, (int First, int Count)[] Ranges, Func<int, int, float[]?> Content)
{
    /// <summary>Sequence and row of everything that is kept, in order.</summary>
    public IEnumerable<(int Sequence, int Row)> All =>
        Ranges.SelectMany((range, s) => Enumerable.Range(range.First, range.Count).Select(row => (s, row)));
}

/// <summary>
/// Kept rows in a pool of pages. With a placement the pages lie in any order among pages of others, the layer is one of several, and the
/// page tables start at a later page; what no one may touch is NaN, and a table entry that no one may read is no page.
/// </summary>
internal sealed class PagedStore
{
    private readonly KeptRows _kept;
    private readonly TestDevice _device;
    private readonly Dictionary<(int Sequence, int Page), int> _pages = [];

    /// <param name="slots">Row of the page tables of each sequence.</param>
    /// <param name="slotCount">Rows of the page tables.</param>
    /// <param name="writable">Rows that operators may write.</param>
    public PagedStore(TestDevice device, KeptRows kept, int[] slots, int slotCount, Func<int, int, bool> writable)
    {
        (_device, _kept) = (device, kept);
        var random = device.Placement;
        foreach (var (sequence, row) in kept.All) _pages.TryAdd((sequence, row / kept.RowsPerPage), _pages.Count);
        int spare = random?.Next(1, 4) ?? 0, layers = random?.Next(1, 4) ?? 1, layer = random?.Next(layers) ?? 0, count = _pages.Count + spare;
        var order = random is null ? [.. Enumerable.Range(0, count)] : Draws.Permutation(random, count);
        foreach (var key in _pages.Keys) _pages[key] = order[_pages[key]];

        var bytes = kept.Format.Bytes;
        var image = new byte[Math.Max(count, 1) * layers * kept.RowsPerPage * bytes];
        Array.Fill(image, (byte)0xFF); // NaN in every format
        var ranges = new List<(long, long)>();
        long Start(int sequence, int row) =>
            (((long)_pages[(sequence, row / kept.RowsPerPage)] * layers + layer) * kept.RowsPerPage + row % kept.RowsPerPage) * bytes;
        foreach (var (sequence, row) in kept.All)
        {
            if (kept.Content(sequence, row) is { } values) kept.Format.Encode(values, image.AsSpan((int)Start(sequence, row), bytes));
            if (writable(sequence, row)) ranges.Add((Start(sequence, row), bytes));
        }
        var pool = device.Pool(image, ranges, kept.Format, Math.Max(count, 1), layers, kept.RowsPerPage);
        var (table, first, entries) = Tables(random, slots, slotCount);
        Rows = new PagedRows(pool, kept.Format, layer, device.In(table, slotCount, entries), device.In(first, slotCount));
    }

    public PagedRows Rows { get; }

    /// <summary>Reads back one row.</summary>
    public float[] this[int sequence, int row]
    {
        get
        {
            var bytes = _kept.Format.Bytes;
            var slot = ((long)_pages[(sequence, row / _kept.RowsPerPage)] * Rows.LayerCount + Rows.Layer) * _kept.RowsPerPage + row % _kept.RowsPerPage;
            var values = new float[_kept.Format.Width];
            _kept.Format.Decode(_device.ReadBytes(Tensor.Create(Rows.Pool.Buffer, DType.U8, bytes, Rows.Pool.ByteOffset + slot * bytes)), values);
            return values;
        }
    }

    private (int[] Table, int[] First, int Entries) Tables(Random? random, int[] slots, int slotCount)
    {
        var first = new int[slotCount];
        for (var s = 0; s < slots.Length; s++)
        {
            var earliest = _kept.Ranges[s].First / _kept.RowsPerPage;
            first[slots[s]] = random is null ? 0 : random.Next(2) == 0 ? earliest : random.Next(earliest + 1);
        }
        var entries = 1 + (random?.Next(3) ?? 0);
        foreach (var (sequence, page) in _pages.Keys) entries = Math.Max(entries, page - first[slots[sequence]] + 1);
        var table = new int[slotCount * entries];
        Array.Fill(table, int.MinValue);
        foreach (var ((sequence, page), id) in _pages) table[slots[sequence] * entries + page - first[slots[sequence]]] = id;
        return (table, first, entries);
    }
}

/// <summary>A case whose tokens belong to sequences with positions.</summary>
internal abstract class SequenceCase(string name, (int First, int Count)[] sequences)
    : OperatorCase(name, [.. sequences.SelectMany((range, s) => Enumerable.Range(range.First, range.Count).Select(p => (s, p)))])
{
    /// <summary>Positions of each sequence that are the tokens of this case.</summary>
    protected (int First, int Count)[] Sequences { get; } = sequences;

    /// <summary>Which row of the page tables each sequence has, and how many rows there are.</summary>
    protected (int[] Slots, int Count) Slots(TestDevice device)
    {
        if (device.Placement is not { } random) return ([.. Enumerable.Range(0, Sequences.Length)], Sequences.Length);
        var count = Sequences.Length + random.Next(3);
        return ([.. Draws.Permutation(random, count).Take(Sequences.Length)], count);
    }

    protected TokenLayout StepTokens(TestDevice device, int[] tokens, int[] slots) => new(
        device.In(Array.ConvertAll(tokens, t => slots[Layout[t].Sequence]), tokens.Length),
        device.In(Array.ConvertAll(tokens, t => Layout[t].Position), tokens.Length));

    protected static string Describe((int First, int Count)[] sequences) =>
        string.Join(" ", sequences.Select(s => s.Count == 0 ? "none" : $"{s.First}..{s.First + s.Count - 1}"));

    /// <summary>The format of a row of a case.</summary>
    protected static RowFormat FormatOf(RowEncoding encoding, int width, int rotary) => encoding switch
    {
        RowEncoding.F32 => RowFormat.F32(width),
        RowEncoding.BF16 => RowFormat.BF16(width),
        RowEncoding.Fp8 => RowFormat.Fp8(width, rotary),
        RowEncoding.Fp4 => RowFormat.Fp4(width),
        _ => RowFormat.Fp8OneScale(width),
    };

    /// <summary>Numbers near the given ones that the format stores.</summary>
    protected static float[] Storable(RowFormat format, float[] row)
    {
        var stored = new byte[format.Bytes];
        var near = new float[row.Length];
        format.Encode(row, stored);
        format.Decode(stored, near);
        return near;
    }

    /// <summary>How the case's cached rows are stored.</summary>
    protected RowFormat Format { get; set; }

    /// <summary>The same case, every number the same, with its rows stored as F32; null if they are.</summary>
    public SequenceCase? Wide()
    {
        if (Format.Encoding == RowEncoding.F32) return null;
        var wide = (SequenceCase)MemberwiseClone();
        wide.Format = RowFormat.F32(Format.Width);
        return wide;
    }
}

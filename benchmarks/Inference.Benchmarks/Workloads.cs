// Operands for measuring: weights of any scheme, activations, pools of rows, all with plain random numbers. Numbers are kept away from subnormals and
// NaN, which some processors treat slowly and no trained weight consists of.
using System.Runtime.InteropServices;
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;

namespace Inference.Benchmarks;

/// <summary>A backend with buffers that it frees at the end.</summary>
internal sealed unsafe class Workbench(int threads) : IDisposable
{
    private readonly List<IDisposable> _owned = [];

    public CpuBackend Backend { get; } = new(threads);

    public static readonly WeightScheme Fp8 = new(DType.F8E4M3, DType.F8E8M0, 128, 128);
    public static readonly WeightScheme Fp8Square32 = new(DType.F8E4M3, DType.F8E8M0, 32, 32);
    public static readonly WeightScheme Fp4 = new(DType.F4E2M1, DType.F8E8M0, 1, 32);

    /// <summary>Bytes that a weight takes, scales included.</summary>
    public static long WeightBytes(WeightScheme scheme, int rows, int columns)
    {
        var bytes = scheme.Element.ByteLength((long)rows * columns);
        return scheme.IsQuantised ? bytes + Tiles(rows, scheme.TileRows) * Tiles(columns, scheme.TileColumns) : bytes;
    }

    private static long Tiles(int extent, int tile) => (extent + tile - 1L) / tile;

    public PreparedWeight Weight(WeightScheme scheme, int rows, int columns, int seed = 1)
    {
        var data = Own(new HostBuffer(scheme.Element.ByteLength((long)rows * columns)));
        Fill(scheme.Element, data, seed);
        if (!scheme.IsQuantised)
            return Own(Backend.PrepareWeight(new WeightData("benchmark", scheme, rows, columns, (nint)data.Data, data.SizeBytes)));
        var scales = Own(new HostBuffer(Tiles(rows, scheme.TileRows) * Tiles(columns, scheme.TileColumns)));
        new Span<byte>(scales.Data, (int)scales.SizeBytes).Fill(120);
        return Own(Backend.PrepareWeight(
            new WeightData("benchmark", scheme, rows, columns, (nint)data.Data, data.SizeBytes, (nint)scales.Data, scales.SizeBytes)));
    }

    private static void Fill(DType dtype, HostBuffer buffer, int seed)
    {
        var state = (ulong)seed * 0x9E3779B97F4A7C15 + 1;
        for (var p = (ulong*)buffer.Data; p < buffer.Data + buffer.SizeBytes / 8 * 8; p++)
        {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *p = dtype switch
            {
                DType.F32 => state & 0x807FFFFF_807FFFFF | 0x3F000000_3F000000,
                DType.BF16 => state & 0x807F807F_807F807F | 0x3F003F00_3F003F00,
                DType.F8E4M3 => state & 0xB7B7B7B7_B7B7B7B7 | 0x08080808_08080808,
                _ => state,
            };
        }
    }

    public Tensor Empty(DType dtype, int d0, int d1) => Tensor.Create(Buffer(dtype, (long)d0 * d1), dtype, d0, d1);

    public Tensor Random(int d0, int d1, int d2 = 1, int seed = 2)
    {
        var buffer = Buffer(DType.F32, (long)d0 * d1 * d2);
        var random = new Random(seed);
        var values = new Span<float>(((HostBuffer)buffer).Data, checked(d0 * d1 * d2));
        foreach (ref var value in values)
            value = random.NextSingle() - 0.5f;
        return d2 == 1 ? Tensor.Create(buffer, DType.F32, d0, d1) : Tensor.Create(buffer, DType.F32, d0, d1, d2);
    }

    public Tensor Vector(float[] values)
    {
        var t = Tensor.Create(Buffer(DType.F32, values.Length), DType.F32, values.Length);
        Backend.Upload(MemoryMarshal.AsBytes(values.AsSpan()), t);
        return t;
    }

    public Tensor Vector(int[] values)
    {
        var t = Tensor.Create(Buffer(DType.I32, values.Length), DType.I32, values.Length);
        Backend.Upload(MemoryMarshal.AsBytes(values.AsSpan()), t);
        return t;
    }

    /// <summary>Rows of one sequence on pages in a shuffled order.</summary>
    public PagedRows Rows(int rows, int rowsPerPage, RowFormat format, int seed)
    {
        var pages = (rows + rowsPerPage - 1) / rowsPerPage;
        var ids = Enumerable.Range(0, pages).ToArray();
        new Random(seed).Shuffle(ids);
        var buffer = Own(Backend.Allocate((long)pages * rowsPerPage * format.Bytes, "benchmark"));
        var random = new Random(seed);
        var values = new float[format.Width];
        for (var r = 0L; r < pages * (long)rowsPerPage; r++)
        {
            foreach (ref var value in values.AsSpan()) value = random.NextSingle() - 0.5f;
            format.Encode(values, new(((HostBuffer)buffer).Data + r * format.Bytes, format.Bytes));
        }
        var pool = Tensor.Create(buffer, format.DType, pages, 1, rowsPerPage, format.StoredElements);
        return new PagedRows(pool, format, 0, Vector(ids).As(1, pages), Vector([0]));
    }

    /// <summary>Tokens of one sequence at consecutive positions, the last at <paramref name="last"/>.</summary>
    public TokenLayout Tokens(int count, int last) =>
        new(Vector(new int[count]), Vector(Enumerable.Range(last - count + 1, count).ToArray()));

    private DeviceBuffer Buffer(DType dtype, long elements) => Own(Backend.Allocate(dtype.ByteLength(elements), "benchmark"));

    private T Own<T>(T resource) where T : IDisposable
    {
        _owned.Add(resource);
        return resource;
    }

    public void Dispose()
    {
        for (var i = _owned.Count - 1; i >= 0; i--)
            _owned[i].Dispose();
        Backend.Dispose();
    }
}

/// <summary>Operators with the sizes of DeepSeek-V4.</summary>
internal static class Workloads
{
    public const int AttentionHeads = 64, RowWidth = 512, Window = 128, IndexHeads = 64, IndexWidth = 128, TopK = 512;

    /// <summary>Attention over the window and <paramref name="selected"/> of 4096 compressed rows, or over 8192 rows of ratio 128 (the end of a million tokens).</summary>
    public static Attention Attention(Workbench bench, int tokens, int selected, RowFormat? format = null)
    {
        const int WindowRows = 65536;
        var row = format ?? RowWidth;
        var all = selected == 8192;
        var last = all ? 128 * 8192 - 1 : 16383;
        var window = bench.Rows(Math.Min(last + 1, WindowRows), 256, row, 3);
        if (last >= WindowRows) window = window with { FirstPage = bench.Vector([(last + 1 - WindowRows) / 256]) };
        Tensor list = default;
        if (!all)
            list = bench.Vector(Enumerable.Range(0, tokens).SelectMany(_ => Enumerable.Range(0, selected).Select(i => i * 7)).ToArray()).As(tokens, selected);
        var output = bench.Empty(DType.F32, tokens, AttentionHeads * RowWidth).As(tokens, AttentionHeads, RowWidth);
        return new Attention(
            bench.Random(tokens, AttentionHeads, RowWidth), bench.Tokens(tokens, last), window, Window, bench.Rows(all ? 8192 : 4096, 64, row, 4),
            all ? 128 : 4, list, bench.Vector(new float[AttentionHeads]), 0.044f, output);
    }

    public static double AttentionWork(int tokens, int selected) => 4.0 * tokens * AttentionHeads * RowWidth * (Window + selected);

    public static IndexTopK Index(Workbench bench, int tokens, int visible, RowFormat? format = null) => new(
        bench.Random(tokens, IndexHeads, IndexWidth), bench.Random(tokens, IndexHeads), 0.01f, bench.Tokens(tokens, 4 * visible - 1),
        new Rope(bench.Vector(RopeFrequencies.Plain(160000, 64))), format is { Encoding: not RowEncoding.F32 } f ? f.Rounding : RowRounding.HadamardFp4Block32, bench.Rows(visible, 64, format ?? IndexWidth, 5), 4,
        bench.Empty(DType.I32, tokens, TopK));

    public static double IndexWork(int tokens, int visible) => 2.0 * tokens * IndexHeads * IndexWidth * visible;
}

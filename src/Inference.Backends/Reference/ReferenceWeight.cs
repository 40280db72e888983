using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>
/// A weight matrix of the Reference backend: the stored bytes where they lie, decoded element by element. It copies nothing and frees
/// nothing; the memory belongs to whoever made the <see cref="WeightData"/>.
/// </summary>
internal sealed unsafe class ReferenceWeight : PreparedWeight
{
    private readonly byte* _data;
    private readonly byte* _scales;
    private readonly long _scaleColumns;

    /// <exception cref="BackendException">Request: the parts of the weight do not belong together, or no weight has such elements.</exception>
    public ReferenceWeight(in WeightData weight) : base(weight.Name, weight.Scheme, weight.Rows, weight.Columns)
    {
        WeightChecks.Check(weight);
        if (weight.Scheme.Element is DType.F8E8M0 or DType.U8 or DType.I32 or DType.I64)
            throw HostRows.Wrong($"Weight '{weight.Name}': {weight.Scheme.Element} elements are not supported.");
        _data = (byte*)weight.Data;
        _scales = (byte*)weight.Scales;
        _scaleColumns = weight.Scheme.IsQuantised ? WeightChecks.ScaleCount(weight.Columns, weight.Scheme.TileColumns) : 0;
    }

    /// <summary>One element; the product of code and scale, rounded to F32.</summary>
    public float At(int row, int column) => (float)Exact(row, column);

    /// <summary>All elements of a row, exactly: no product of a code and a scale needs more digits than a double has.</summary>
    public void DecodeRow(int row, Span<double> destination)
    {
        for (var column = 0; column < Columns; column++)
            destination[column] = Exact(row, column);
    }

    private double Exact(int row, int column)
    {
        double element = Value(Scheme.Element, _data, (long)row * Columns + column);
        if (Scheme.Scale is not { } scale) return element;
        return element * Value(scale, _scales, row / Scheme.TileRows * _scaleColumns + column / Scheme.TileColumns);
    }

    private static float Value(DType dtype, byte* data, long index) => dtype switch
    {
        DType.F32 => ((float*)data)[index],
        DType.BF16 => Numerics.BFloat16ToSingle(((ushort*)data)[index]),
        DType.F16 => Numerics.HalfToSingle(((ushort*)data)[index]),
        DType.F8E4M3 => Numerics.E4M3ToSingle(data[index]),
        DType.F8E8M0 => Numerics.E8M0ToSingle(data[index]),
        DType.F4E2M1 => Numerics.E2M1ToSingle(data[index / 2] >> (int)(index % 2 * 4)), // low nibble first
        DType.I8 => (sbyte)data[index],
        _ => throw new InvalidOperationException($"{dtype} has no value here"),
    };
}

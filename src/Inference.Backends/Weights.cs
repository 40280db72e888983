namespace Inference.Backends;

/// <summary>
/// How the numbers of a weight matrix [rows, columns] are stored. Unquantised: only <see cref="Element"/>. Quantised: one
/// scale per tile of <see cref="TileRows"/> x <see cref="TileColumns"/> elements, tiles at the edge cut; value = element x scale.
/// FP4 packs two elements per byte, low nibble first.
/// </summary>
public readonly record struct WeightScheme(DType Element, DType? Scale = null, int TileRows = 0, int TileColumns = 0)
{
    public static readonly WeightScheme F32 = new(DType.F32);
    public static readonly WeightScheme BF16 = new(DType.BF16);
    public static readonly WeightScheme F16 = new(DType.F16);

    public bool IsQuantised => Scale is not null;

    public override string ToString() => IsQuantised ? $"{Element} with {Scale} per {TileRows}x{TileColumns}" : Element.ToString();
}

/// <summary>
/// A weight matrix as it lies in a checkpoint (usually in a mapped file), on its way to a backend. The memory must stay valid
/// and unchanged as long as the <see cref="PreparedWeight"/> lives, since a backend may use it in place.
/// </summary>
/// <param name="Name">Name in the checkpoint, for messages.</param>
/// <param name="Rows">Output features (N).</param>
/// <param name="Columns">Input features (K).</param>
/// <param name="Data">Row-major elements.</param>
/// <param name="DataBytes">Bytes at <paramref name="Data"/>.</param>
/// <param name="Scales">Row-major scales [ceil(rows/TileRows), ceil(columns/TileColumns)], or zero.</param>
/// <param name="ScaleBytes">Bytes at <paramref name="Scales"/>.</param>
public readonly record struct WeightData(
    string Name, WeightScheme Scheme, int Rows, int Columns, nint Data, long DataBytes, nint Scales = 0, long ScaleBytes = 0);

/// <summary>A weight matrix [Rows, Columns] in the layout its backend wants. Opaque; made once at load.</summary>
public abstract class PreparedWeight(string name, WeightScheme scheme, int rows, int columns) : IDisposable
{
    public string Name { get; } = name;
    public WeightScheme Scheme { get; } = scheme;
    /// <summary>Output features (N).</summary>
    public int Rows { get; } = rows;
    /// <summary>Input features (K).</summary>
    public int Columns { get; } = columns;

    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing) { }
}

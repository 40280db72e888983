namespace Inference.Backends.Operators;

/// <summary>
/// Whether the parts of a stored weight belong together: sizes, tiles, dtypes. Shared by the backends; which schemes one can
/// compute with is its own affair. Looks at the description only, never at the data.
/// </summary>
internal static class WeightChecks
{
    /// <exception cref="BackendException">Request: names the weight, what was expected and what came.</exception>
    public static void Check(in WeightData weight)
    {
        var scheme = weight.Scheme;
        if (weight.Rows < 1 || weight.Columns < 1)
            throw Wrong(weight, $"expected at least one row and column, got [{weight.Rows}, {weight.Columns}]");
        if (!Enum.IsDefined(scheme.Element)) throw Wrong(weight, $"{(int)scheme.Element} is no dtype");
        if (scheme.Element == DType.F4E2M1 && weight.Columns % 2 != 0)
            throw Wrong(weight, $"FP4 packs two columns per byte, got {weight.Columns} columns");
        ExpectBytes(weight, "data", weight.Data, weight.DataBytes, scheme.Element, (long)weight.Rows * weight.Columns);

        if (scheme.Scale is not { } scale)
        {
            if (weight.Scales != 0 || weight.ScaleBytes != 0) throw Wrong(weight, $"scales came with the scheme {scheme}, which has none");
            return;
        }
        if (!Enum.IsDefined(scale) || !scale.IsFloat() || scale is DType.F4E2M1 or DType.F8E4M3)
            throw Wrong(weight, $"{scale} is no scale dtype");
        if (scheme.TileRows < 1 || scheme.TileColumns < 1)
            throw Wrong(weight, $"expected tiles of at least 1x1, got {scheme.TileRows}x{scheme.TileColumns}");
        var scales = ScaleCount(weight.Rows, scheme.TileRows) * ScaleCount(weight.Columns, scheme.TileColumns);
        ExpectBytes(weight, "scales", weight.Scales, weight.ScaleBytes, scale, scales);
    }

    /// <summary>Tiles along one side; the last may be cut.</summary>
    public static long ScaleCount(int extent, int tile) => ((long)extent + tile - 1) / tile;

    private static void ExpectBytes(in WeightData weight, string what, nint address, long bytes, DType dtype, long elements)
    {
        var expected = (Int128)elements * dtype.BitsPerElement() / 8; // a hostile shape must not overflow into a small size
        if (address == 0) throw Wrong(weight, $"the {what} are missing");
        if (bytes != expected) throw Wrong(weight, $"expected {expected} bytes of {what} for {elements} x {dtype}, got {bytes}");
    }

    private static BackendException Wrong(in WeightData weight, string message) =>
        new(BackendErrorKind.Request, $"Weight '{weight.Name}': {message}.");
}

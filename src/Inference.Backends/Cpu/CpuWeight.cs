// A weight matrix as the CPU kernels read it: the stored bytes where they lie, and the scales in the form the inner loops want.
//
// FP8 scales become F32 once at load, one per 128 columns (or four per 64, one for each 16 columns, when tiles are narrower): there is one
// per tile, so they are few. FP4 scales, one byte per 32 elements, stay where they are. A scheme that no kernel knows (odd tiles,
// scaled integers) is multiplied out to F32 at load: right for any file, but four to eight times the memory, so meant for the rare tensor.
// The stored bytes belong to whoever made the WeightData; what is made here is freed with the weight.
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

/// <summary>The element formats that kernels decode.</summary>
internal enum WeightFormat
{
    F32,
    BF16,
    F16,
    /// <summary>E4M3, one F32 scale per row tile and 128 columns.</summary>
    Fp8,
    /// <summary>E4M3, one F32 scale per row tile and 16 columns.</summary>
    Fp8Narrow,
    /// <summary>E2M1, one E8M0 scale per row tile and 32 columns.</summary>
    Fp4,
}

/// <summary>What a kernel needs of a weight, as plain data.</summary>
internal unsafe struct WeightView
{
    public byte* Data;
    public long RowBytes;
    public WeightFormat Format;
    public int Rows, Columns;
    /// <summary>Rows that share scales.</summary>
    public int TileRows;
    /// <summary>Scales (floats of <see cref="Scales"/>, bytes of <see cref="ScaleCodes"/>) per row tile.</summary>
    public int ScaleStride;
    public float* Scales;
    public byte* ScaleCodes;

    /// <summary>Vectors of sixteen that a row is decoded into; the last ones may be filled up with zeros.</summary>
    public readonly int Vectors => Format switch
    {
        WeightFormat.Fp8 or WeightFormat.Fp8Narrow => (Columns + 63) / 64 * 4,
        WeightFormat.Fp4 => (Columns + 127) / 128 * 8,
        _ => (Columns + 15) / 16,
    };

    /// <summary>Vectors whose products are summed before they are scaled and added to the row's sum.</summary>
    public readonly int Chain => Format == WeightFormat.Fp8Narrow ? 4 : 8;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly byte* Row(long n) => Data + n * RowBytes;

    /// <summary>Address of a vector of a row; vectors begin at multiples of their chain.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly byte* Vector(int n, int vector) => Row(n) + BytesOf(vector);

    /// <summary>Bytes of whole vectors.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly long BytesOf(int vectors) => Format switch
    {
        WeightFormat.F32 => vectors * 64L,
        WeightFormat.BF16 or WeightFormat.F16 => vectors * 32L,
        WeightFormat.Fp4 => vectors * 8L,
        _ => vectors * 16L,
    };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly float* RowScales(int n) => Scales + (long)(n / TileRows) * ScaleStride;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public readonly byte* RowScaleCodes(int n) => ScaleCodes + (long)(TileRows == 1 ? n : n / TileRows) * ScaleStride;
}

internal sealed unsafe class CpuWeight : PreparedWeight
{
    private void* _owned;
    private WeightView _view;

    public ref readonly WeightView View => ref _view;

    /// <exception cref="BackendException">Request: the parts of the weight do not belong together, or its elements are no numbers to multiply
    /// with. Capacity: no memory for what has to be made of it.</exception>
    public CpuWeight(in WeightData weight) : base(weight.Name, weight.Scheme, weight.Rows, weight.Columns)
    {
        WeightChecks.Check(weight);
        _view.Data = (byte*)weight.Data;
        _view.Rows = weight.Rows;
        _view.Columns = weight.Columns;
        _view.RowBytes = weight.Scheme.Element.ByteLength(weight.Columns);
        _view.TileRows = Math.Max(weight.Scheme.TileRows, 1);
        switch (weight.Scheme)
        {
            case { Scale: null, Element: DType.F32 }: _view.Format = WeightFormat.F32; break;
            case { Scale: null, Element: DType.BF16 }: _view.Format = WeightFormat.BF16; break;
            case { Scale: null, Element: DType.F16 }: _view.Format = WeightFormat.F16; break;
            case { Scale: not null, Element: DType.F8E4M3 } s when s.TileColumns % 128 == 0 || s.TileColumns >= weight.Columns:
                _view.Format = WeightFormat.Fp8;
                _view.Scales = ExpandScales(weight, 128);
                break;
            case { Scale: not null, Element: DType.F8E4M3 } s when s.TileColumns % 16 == 0:
                _view.Format = WeightFormat.Fp8Narrow;
                _view.Scales = ExpandScales(weight, 16);
                break;
            case { Scale: DType.F8E8M0, Element: DType.F4E2M1, TileColumns: 32 }:
                _view.Format = WeightFormat.Fp4;
                _view.ScaleCodes = (byte*)weight.Scales;
                _view.ScaleStride = (int)WeightChecks.ScaleCount(weight.Columns, 32);
                break;
            case { Scale: null, Element: DType.F8E4M3 } or { Element: DType.F4E2M1 or DType.I8 } or { Scale: not null }
                when weight.Scheme.Element is DType.F32 or DType.BF16 or DType.F16 or DType.F8E4M3 or DType.F4E2M1 or DType.I8:
                MultiplyOut(weight);
                break;
            default:
                throw new BackendException(BackendErrorKind.Request, $"Weight '{weight.Name}': {weight.Scheme.Element} elements are not supported.");
        }
    }

    /// <summary>One element, rounded to F32; for gathering rows, not for arithmetic.</summary>
    public float At(int row, int column)
    {
        var element = Value(ElementType, _view.Data, (long)row * Columns + column);
        return _view.Format switch
        {
            WeightFormat.Fp8 => element * _view.RowScales(row)[column / 128],
            WeightFormat.Fp8Narrow => element * _view.RowScales(row)[column / 16],
            WeightFormat.Fp4 => element * Numerics.E8M0ToSingle(_view.RowScaleCodes(row)[column / 32]),
            _ => element,
        };
    }

    private DType ElementType => _view.Format switch
    {
        WeightFormat.F32 => DType.F32,
        WeightFormat.BF16 => DType.BF16,
        WeightFormat.F16 => DType.F16,
        WeightFormat.Fp4 => DType.F4E2M1,
        _ => DType.F8E4M3,
    };

    /// <summary>The scales as F32, one per <paramref name="columns"/> columns: a multiple of 64 columns' worth per row tile.</summary>
    private float* ExpandScales(in WeightData weight, int columns)
    {
        var scheme = weight.Scheme;
        long tiles = WeightChecks.ScaleCount(weight.Rows, scheme.TileRows), stored = WeightChecks.ScaleCount(weight.Columns, scheme.TileColumns);
        _view.ScaleStride = columns >= 64 ? (weight.Columns + columns - 1) / columns : (weight.Columns + 63) / 64 * (64 / columns);
        var scales = Own<float>(weight, tiles * _view.ScaleStride);
        for (long tile = 0; tile < tiles; tile++)
        {
            for (var i = 0; i < _view.ScaleStride; i++)
            {
                var column = Math.Min((long)i * columns, weight.Columns - 1) / scheme.TileColumns;
                scales[tile * _view.ScaleStride + i] = Value(scheme.Scale!.Value, (byte*)weight.Scales, tile * stored + column);
            }
        }
        return scales;
    }

    /// <summary>Element times scale, rounded to F32, for every element.</summary>
    private void MultiplyOut(in WeightData weight)
    {
        var scheme = weight.Scheme;
        var values = Own<float>(weight, (long)weight.Rows * weight.Columns);
        long stored = scheme.IsQuantised ? WeightChecks.ScaleCount(weight.Columns, scheme.TileColumns) : 0;
        for (long row = 0; row < weight.Rows; row++)
        {
            for (long column = 0; column < weight.Columns; column++)
            {
                var index = row * weight.Columns + column;
                var value = Value(scheme.Element, (byte*)weight.Data, index);
                if (scheme.Scale is { } scale)
                    value *= Value(scale, (byte*)weight.Scales, row / scheme.TileRows * stored + column / scheme.TileColumns);
                values[index] = value;
            }
        }
        _view.Format = WeightFormat.F32;
        _view.Data = (byte*)values;
        _view.RowBytes = sizeof(float) * (long)weight.Columns;
        _view.TileRows = 1;
    }

    private T* Own<T>(in WeightData weight, long count) where T : unmanaged
    {
        try
        {
            _owned = NativeMemory.AlignedAlloc(checked((nuint)count * (nuint)sizeof(T)), 64);
        }
        catch (OutOfMemoryException e)
        {
            throw new BackendException(BackendErrorKind.Capacity, $"Weight '{weight.Name}': no memory for {count * sizeof(T)} bytes of it in F32.", e);
        }
        return (T*)_owned;
    }

    private static float Value(DType dtype, byte* data, long index) => dtype switch
    {
        DType.F32 => ((float*)data)[index],
        DType.BF16 => Numerics.BFloat16ToSingle(((ushort*)data)[index]),
        DType.F16 => Numerics.HalfToSingle(((ushort*)data)[index]),
        DType.F8E4M3 => Numerics.E4M3ToSingle(data[index]),
        DType.F8E8M0 => Numerics.E8M0ToSingle(data[index]),
        DType.F4E2M1 => Numerics.E2M1ToSingle(data[index / 2] >> (int)(index % 2 * 4)),
        DType.I8 => (sbyte)data[index],
        _ => throw new InvalidOperationException($"{dtype} has no value here"),
    };

    ~CpuWeight() => Dispose(false);

    protected override void Dispose(bool disposing)
    {
        NativeMemory.AlignedFree(_owned);
        _owned = null;
        base.Dispose(disposing);
    }
}

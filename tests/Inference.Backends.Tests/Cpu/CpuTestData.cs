using Inference.Backends.Cpu;
using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Cpu;

/// <summary>A stored weight of random codes. Among the E8M0 scales of its first rows are some 2^-127, the code that is no plain exponent.</summary>
internal sealed unsafe class RandomMatrix : IDisposable
{
    private readonly HostBuffer _data, _scales;

    public RandomMatrix(WeightScheme scheme, int rows, int columns, int seed)
    {
        (Rows, Columns) = (rows, columns);
        var random = new Random(seed);
        _data = new HostBuffer(scheme.Element.ByteLength((long)rows * columns));
        for (var i = 0; i < _data.SizeBytes; i++)
            _data.Data[i] = (byte)random.Next(256);
        for (var i = 0L; i < (long)rows * columns; i++)
        {
            switch (scheme.Element)
            {
                case DType.F32: ((float*)_data.Data)[i] = random.NextSingle() - 0.5f; break;
                case DType.BF16: ((ushort*)_data.Data)[i] = Numerics.SingleToBFloat16(random.NextSingle() - 0.5f); break;
                case DType.F16: ((ushort*)_data.Data)[i] = Numerics.SingleToHalf(random.NextSingle() - 0.5f); break;
                case DType.F8E4M3 when (_data.Data[i] & 0x7F) == 0x7F: _data.Data[i] = 0x7E; break;
            }
        }
        var tiles = scheme.IsQuantised ? WeightChecks.ScaleCount(rows, scheme.TileRows) * WeightChecks.ScaleCount(columns, scheme.TileColumns) : 0;
        _scales = new HostBuffer(scheme.Scale?.ByteLength(tiles) ?? 0);
        for (var i = 0; i < tiles; i++)
        {
            if (scheme.Scale == DType.F32) ((float*)_scales.Data)[i] = 0.01f + random.NextSingle();
            else _scales.Data[i] = (byte)(random.Next(20) == 0 && i < 4 * tiles / rows ? 0 : random.Next(118, 128));
        }
        Data = new WeightData("test", scheme, rows, columns, (nint)_data.Data, _data.SizeBytes, scheme.IsQuantised ? (nint)_scales.Data : 0, _scales.SizeBytes);
    }

    public int Rows { get; }
    public int Columns { get; }
    public WeightData Data { get; }

    public PreparedWeight Prepare(CpuBackend backend) => backend.PrepareWeight(Data);

    public void Dispose()
    {
        _data.Dispose();
        _scales.Dispose();
    }
}

/// <summary>Tensors that live for one call.</summary>
internal sealed unsafe class TensorMemory(CpuBackend backend) : IDisposable
{
    private readonly List<DeviceBuffer> _buffers = [];

    public Tensor Empty(int d0, int d1)
    {
        var buffer = backend.Allocate(sizeof(float) * (long)d0 * d1, "test");
        _buffers.Add(buffer);
        new Span<float>(((HostBuffer)buffer).Data, d0 * d1).Fill(float.NaN);
        return Tensor.Create(buffer, DType.F32, d0, d1);
    }

    public Tensor F32(ReadOnlySpan<float> values, int d0, int d1)
    {
        var t = Empty(d0, d1);
        values.CopyTo(new Span<float>(t.F32(), values.Length));
        return t;
    }

    public Tensor I32(ReadOnlySpan<int> values, int d0, int d1)
    {
        var t = Tensor.Create(Empty(d0, d1).Buffer, DType.I32, d0, d1);
        values.CopyTo(new Span<int>(t.I32(), values.Length));
        return t;
    }

    public static float[] Read(in Tensor t) => new Span<float>(t.F32(), (int)t.ElementCount).ToArray();

    public void Dispose()
    {
        foreach (var buffer in _buffers) buffer.Dispose();
    }
}

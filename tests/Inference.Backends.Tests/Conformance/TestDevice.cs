// A backend with the chores of a test around it: tensors from arrays, arrays from tensors, weights from bytes, pools of pages.
// It owns every buffer it hands out and frees them all at the end; it computes nothing and checks nothing.
using System.Runtime.InteropServices;
using Inference.Backends.Operators;

namespace Inference.Backends.Tests.Conformance;

internal sealed class TestDevice(IBackend backend) : IDisposable
{
    private readonly List<IDisposable> _owned = [];

    public IBackend Backend => backend;

    public Tensor F32(ReadOnlySpan<float> values, params ReadOnlySpan<int> shape) => Upload(MemoryMarshal.AsBytes(values), DType.F32, shape);

    public Tensor I32(ReadOnlySpan<int> values, params ReadOnlySpan<int> shape) => Upload(MemoryMarshal.AsBytes(values), DType.I32, shape);

    /// <summary>A vector of all the values.</summary>
    public Tensor Vector(params float[] values) => F32(values, values.Length);

    /// <summary>A vector of all the values.</summary>
    public Tensor Vector(params int[] values) => I32(values, values.Length);

    /// <summary>Contents undefined (NaN on a poisoned backend).</summary>
    public Tensor Empty(DType dtype, params ReadOnlySpan<int> shape)
    {
        long elements = 1;
        foreach (var extent in shape) elements *= extent;
        var buffer = Own(backend.Allocate(dtype.ByteLength(elements), "test"));
        return shape.Length switch
        {
            1 => Tensor.Create(buffer, dtype, shape[0]),
            2 => Tensor.Create(buffer, dtype, shape[0], shape[1]),
            3 => Tensor.Create(buffer, dtype, shape[0], shape[1], shape[2]),
            4 => Tensor.Create(buffer, dtype, shape[0], shape[1], shape[2], shape[3]),
            _ => throw new ArgumentException($"rank {shape.Length}", nameof(shape)),
        };
    }

    public float[] Read(in Tensor t) => Read<float>(t);

    public int[] ReadI32(in Tensor t) => Read<int>(t);

    /// <summary>The tensor's elements in row-major order; a strided view row by row.</summary>
    private T[] Read<T>(in Tensor t) where T : struct
    {
        var values = new T[t.ElementCount];
        if (t.RowStride == t.RowElements)
        {
            backend.Download(t, MemoryMarshal.AsBytes(values.AsSpan()));
            return values;
        }
        for (var row = 0; row < t.D0; row++)
            backend.Download(t.Slice(row, 1), MemoryMarshal.AsBytes(values.AsSpan(row * (int)t.RowElements, (int)t.RowElements)));
        return values;
    }

    /// <summary>Runs one operator with the workspace that its plan asks for.</summary>
    public void Run<TOp>(in TOp op) where TOp : struct, IOperator
    {
        var plan = backend.Plan(op);
        Xunit.Assert.True(plan.Support == OpSupport.Supported, plan.Variant);
        backend.Enqueue(op, plan.WorkspaceBytes == 0 ? default : Empty(DType.U8, checked((int)plan.WorkspaceBytes)));
        backend.Wait();
    }

    public PreparedWeight Weight(StoredWeight stored) => Own(backend.PrepareWeight(stored.Data));

    /// <summary>A dense F32 weight.</summary>
    public PreparedWeight Weight(int rows, int columns, params float[] values) =>
        Weight(Own(new StoredWeight(WeightScheme.F32, rows, columns, MemoryMarshal.AsBytes(values.AsSpan()), [])));

    private Tensor Upload(ReadOnlySpan<byte> bytes, DType dtype, ReadOnlySpan<int> shape)
    {
        var t = Empty(dtype, shape);
        backend.Upload(bytes, t);
        return t;
    }

    private T Own<T>(T resource) where T : IDisposable
    {
        _owned.Add(resource);
        return resource;
    }

    public void Dispose()
    {
        for (var i = _owned.Count - 1; i >= 0; i--) _owned[i].Dispose();
        backend.Dispose();
    }
}

/// <summary>A stored weight in native memory, as if mapped from a checkpoint; it outlives the prepared weights made of it.</summary>
internal sealed unsafe class StoredWeight : IDisposable
{
    private readonly HostBuffer _data, _scales;

    public StoredWeight(WeightScheme scheme, int rows, int columns, ReadOnlySpan<byte> data, ReadOnlySpan<byte> scales)
    {
        _data = new HostBuffer(data.Length);
        _scales = new HostBuffer(scales.Length);
        data.CopyTo(new Span<byte>(_data.Data, data.Length));
        scales.CopyTo(new Span<byte>(_scales.Data, scales.Length));
        var hasScales = scheme.IsQuantised;
        Data = new WeightData("test.weight", scheme, rows, columns, (nint)_data.Data, data.Length, hasScales ? (nint)_scales.Data : 0, scales.Length);
    }

    public WeightData Data { get; }

    public void Dispose()
    {
        _data.Dispose();
        _scales.Dispose();
    }
}

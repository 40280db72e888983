// A backend with the chores of a test around it: tensors from arrays, arrays from tensors, weights from bytes.
//
// It owns every buffer it hands out and frees them all at the end. It computes nothing. With a placement, tensors lie at odd offsets
// in larger buffers, matrices have gaps between their rows, and all that surrounds them is NaN.
// Invariant, checked by CheckGuards: a call changes no byte outside of the tensors that it may write.
using System.Runtime.InteropServices;
using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <param name="placement">Where the tensors lie; null: each alone in its buffer, without gaps.</param>
internal sealed class TestDevice(IBackend backend, Random? placement = null) : IDisposable
{
    private readonly List<IDisposable> _owned = [];
    private readonly List<Guard> _guards = [];

    public IBackend Backend => backend;

    public Random? Placement => placement;

    /// <summary>The largest workspace that a plan of this run asked for.</summary>
    public long WorkspaceBytesMax { get; private set; }

    /// <summary>An operand that nobody may change.</summary>
    public Tensor In(ReadOnlySpan<float> values, params ReadOnlySpan<int> shape) => Place(MemoryMarshal.AsBytes(values), DType.F32, shape, false);

    /// <summary>An operand that nobody may change.</summary>
    public Tensor In(ReadOnlySpan<int> values, params ReadOnlySpan<int> shape) => Place(MemoryMarshal.AsBytes(values), DType.I32, shape, false);

    /// <summary>A vector that nobody may change.</summary>
    public Tensor Vector(params float[] values) => In(values, values.Length);

    /// <summary>A vector that nobody may change.</summary>
    public Tensor Vector(params int[] values) => In(values, values.Length);

    /// <summary>An operand that the operator may change.</summary>
    public Tensor InOut(ReadOnlySpan<float> values, params ReadOnlySpan<int> shape) => Place(MemoryMarshal.AsBytes(values), DType.F32, shape, true);

    /// <summary>An operand to be written; NaN before, or as I32 a huge number.</summary>
    public Tensor Out(DType dtype, params ReadOnlySpan<int> shape) => Place([], dtype, shape, true);

    /// <summary>A pool of rows whose image is given and of which only the listed byte ranges may be written.</summary>
    public Tensor Pool(byte[] image, IEnumerable<(long Start, long Length)> writable, RowFormat format, int d0, int d1, int d2)
    {
        var buffer = Own(backend.Allocate(image.Length, "test pool"));
        backend.Upload(image, Bytes(buffer));
        _guards.Add(new Guard(buffer, image, [.. writable]));
        return Tensor.Create(buffer, format.DType, d0, d1, d2, format.StoredElements);
    }

    public byte[] ReadBytes(in Tensor t) => Read<byte>(t);

    public float[] Read(in Tensor t) => Read<float>(t);

    public int[] ReadI32(in Tensor t) => Read<int>(t);

    /// <summary>Runs one operator, with the workspace that its plan asks for, and checks that nothing else was written.</summary>
    public void Run<TOp>(in TOp op) where TOp : struct, IOperator
    {
        var plan = backend.Plan(op);
        Assert.True(plan.Support != OpSupport.Unsupported, plan.Variant);
        WorkspaceBytesMax = Math.Max(WorkspaceBytesMax, plan.WorkspaceBytes);
        var workspace = plan.WorkspaceBytes == 0 ? default : Tensor.Create(Own(backend.Allocate(plan.WorkspaceBytes, "workspace")),
            DType.U8, checked((int)plan.WorkspaceBytes));
        backend.Enqueue(op, workspace);
        backend.Wait();
        CheckGuards();
    }

    public PreparedWeight Weight(StoredWeight stored) => Own(backend.PrepareWeight(stored.Data));

    /// <summary>A dense F32 weight.</summary>
    public PreparedWeight Weight(int rows, int columns, params float[] values) =>
        Weight(Own(new StoredWeight(WeightScheme.F32, rows, columns, MemoryMarshal.AsBytes(values.AsSpan()), [])));

    public void Dispose()
    {
        for (var i = _owned.Count - 1; i >= 0; i--) _owned[i].Dispose();
        backend.Dispose();
    }

    private Tensor Place(ReadOnlySpan<byte> values, DType dtype, ReadOnlySpan<int> shape, bool mayChange)
    {
        int before = placement?.Next(17) ?? 0, left = 0, right = 0;
        if (shape.Length == 2 && placement is not null) (left, right) = (placement.Next(4), placement.Next(4));
        long elements = 1;
        foreach (var extent in shape) elements *= extent;
        Assert.True(values.IsEmpty || values.Length == dtype.ByteLength(elements), "the test gave values of another size than the shape");

        var stored = shape.Length == 2 ? shape[0] * ((long)left + shape[1] + right) : elements;
        var image = new byte[dtype.ByteLength(before + stored + (placement?.Next(17) ?? 0))];
        Array.Fill(image, dtype == DType.I32 ? (byte)0x7E : (byte)0xFF); // NaN, or a number that no id, position or page can be
        var buffer = Own(backend.Allocate(image.Length, "test"));
        var offset = dtype.ByteLength(before);
        var view = shape.Length switch
        {
            1 => Tensor.Create(buffer, dtype, shape[0], offset),
            2 => Tensor.Create(buffer, dtype, shape[0], left + shape[1] + right, offset).Columns(left, shape[1]),
            3 => Tensor.Create(buffer, dtype, shape[0], shape[1], shape[2], offset),
            4 => Tensor.Create(buffer, dtype, shape[0], shape[1], shape[2], shape[3], offset),
            _ => throw new ArgumentException($"rank {shape.Length}", nameof(shape)),
        };

        var ranges = new List<(long Start, long Length)>();
        var rowBytes = (int)dtype.ByteLength(view.RowElements);
        for (var row = 0; row < view.D0; row++)
            ranges.Add((view.ByteOffset + dtype.ByteLength(row * view.RowStride), rowBytes));
        for (var row = 0; row < ranges.Count && !values.IsEmpty; row++)
            values.Slice(row * rowBytes, rowBytes).CopyTo(image.AsSpan((int)ranges[row].Start));
        backend.Upload(image, Bytes(buffer));
        _guards.Add(new Guard(buffer, image, mayChange ? ranges : []));
        return view;
    }

    private T[] Read<T>(in Tensor t) where T : unmanaged
    {
        var values = new T[t.ElementCount];
        for (var row = 0; row < t.D0; row++)
            backend.Download(t.Slice(row, 1), MemoryMarshal.AsBytes(values.AsSpan(row * (int)t.RowElements, (int)t.RowElements)));
        return values;
    }

    private void CheckGuards()
    {
        foreach (var guard in _guards)
        {
            var now = new byte[guard.Image.Length];
            backend.Download(Bytes(guard.Buffer), now);
            foreach (var (start, length) in guard.Writable)
                guard.Image.AsSpan((int)start, (int)length).CopyTo(now.AsSpan((int)start));
            var difference = now.AsSpan().CommonPrefixLength(guard.Image);
            Assert.True(difference == now.Length, $"byte {difference} of a buffer of {now.Length} was written, which no output covers");
        }
    }

    private static Tensor Bytes(DeviceBuffer buffer) => Tensor.Create(buffer, DType.U8, checked((int)buffer.SizeBytes));

    private T Own<T>(T resource) where T : IDisposable
    {
        _owned.Add(resource);
        return resource;
    }

    private sealed record Guard(DeviceBuffer Buffer, byte[] Image, List<(long Start, long Length)> Writable);
}

using System.Runtime.InteropServices;
using Inference.Backends;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>Progress of bringing weights to a backend, in bytes of the checkpoint.</summary>
public readonly record struct LoadProgress(long BytesDone, long BytesTotal, string Tensor);

/// <summary>
/// Takes tensors of a checkpoint to a backend: matrices as <see cref="PreparedWeight"/> in their stored scheme, small vectors as F32
/// tensors, integer tables as I32. Owns what it made. The checkpoint was checked against the family's expected tensors before.
/// </summary>
internal sealed unsafe class WeightLoader(Checkpoint checkpoint, IBackend backend, IProgress<LoadProgress>? progress) : IDisposable
{
    private readonly List<IDisposable> _owned = [];
    private readonly long _total = checkpoint.ByteLength;
    private long _done;

    /// <summary>Side of the square tiles of FP8 scales (deepseek-v4 4.1).</summary>
    public int Fp8Tile { get; init; } = 128;

    /// <summary>Channels per FP4 scale.</summary>
    public int Fp4Group { get; init; } = 32;

    public bool Has(string name) => checkpoint.Tensors.ContainsKey(name);

    /// <summary>Matrix <c>name.weight</c> with its <c>name.scale</c> if it has one.</summary>
    public PreparedWeight Matrix(string name) => Matrix(checkpoint[name + ".weight"],
        checkpoint.Tensors.TryGetValue(name + ".scale", out var scale) ? scale : null);

    /// <summary>An unquantised matrix under its full name.</summary>
    public PreparedWeight RawMatrix(string fullName) => Matrix(checkpoint[fullName], null);

    private PreparedWeight Matrix(TensorView weight, TensorView? scale)
    {
        if (scale is not null && weight.DType is DType.I8 or DType.U8) weight = weight.AsPackedFp4();
        bool packed = weight.DType == DType.F4E2M1;
        int rows = checked((int)weight.Shape[0]), columns = checked((int)weight.Shape[1]);
        var scheme = scale is null ? new WeightScheme(weight.DType)
            : packed ? new WeightScheme(DType.F4E2M1, scale.DType, 1, Fp4Group)
            : new WeightScheme(weight.DType, scale.DType, Fp8Tile, Fp8Tile);
        var data = new WeightData(weight.Name, scheme, rows, columns, (nint)weight.Pointer, weight.ByteLength,
            scale is null ? 0 : (nint)scale.Pointer, scale?.ByteLength ?? 0);
        var prepared = backend.PrepareWeight(data);
        _owned.Add(prepared);
        Report(weight.ByteLength + (scale?.ByteLength ?? 0), weight.Name);
        return prepared;
    }

    /// <summary>Any tensor as F32 of its shape (up to two dimensions).</summary>
    public Tensor F32(string fullName)
    {
        var view = checkpoint[fullName];
        var values = new float[view.ElementCount];
        for (long i = 0; i < values.Length; i++)
            values[i] = view.DType switch
            {
                DType.F32 => ((float*)view.Pointer)[i],
                DType.BF16 => Numerics.BFloat16ToSingle(((ushort*)view.Pointer)[i]),
                DType.F16 => Numerics.HalfToSingle(((ushort*)view.Pointer)[i]),
                _ => throw new BackendException(BackendErrorKind.Request, $"{fullName}: {view.DType} cannot be read as F32."),
            };
        Report(view.ByteLength, fullName);
        int d0 = checked((int)view.Shape[0]);
        return Upload(MemoryMarshal.AsBytes(values.AsSpan()), DType.F32, d0, d0 == 0 ? 0 : values.Length / d0, view.Shape.Length);
    }

    /// <summary>An I64 table [rows, columns] as I32; every value must lie in [0, limit).</summary>
    /// <exception cref="CheckpointException">A value does not.</exception>
    public Tensor Table(string fullName, int limit)
    {
        var view = checkpoint[fullName];
        var source = (long*)view.Pointer;
        var values = new int[view.ElementCount];
        for (long i = 0; i < values.Length; i++)
        {
            long value = view.DType == DType.I64 ? source[i] : ((int*)view.Pointer)[i];
            if (value < 0 || value >= limit)
                throw new CheckpointException(CheckpointFault.TensorsMismatch, view.File, fullName,
                    $"value {value} at element {i} is outside of [0, {limit})", "The table does not belong to this config.json.");
            values[i] = (int)value;
        }
        Report(view.ByteLength, fullName);
        return Upload(MemoryMarshal.AsBytes(values.AsSpan()), DType.I32, (int)view.Shape[0], (int)view.Shape[1], 2);
    }

    public Tensor Constant(ReadOnlySpan<float> values) => Upload(MemoryMarshal.AsBytes(values), DType.F32, values.Length, 1, 1);

    private Tensor Upload(ReadOnlySpan<byte> bytes, DType dtype, int d0, int d1, int rank)
    {
        var buffer = backend.Allocate(Math.Max(4, bytes.Length), "weights");
        _owned.Add(buffer);
        var tensor = rank == 1 ? Tensor.Create(buffer, dtype, d0) : Tensor.Create(buffer, dtype, d0, d1);
        backend.Upload(bytes, tensor);
        return tensor;
    }

    private void Report(long bytes, string name)
    {
        _done += bytes;
        progress?.Report(new LoadProgress(_done, _total, name));
    }

    public void Dispose()
    {
        foreach (var item in _owned) item.Dispose();
        _owned.Clear();
    }
}

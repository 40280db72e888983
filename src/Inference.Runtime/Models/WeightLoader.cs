using System.Runtime.InteropServices;
using Inference.Backends;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>Progress of bringing weights to a backend, in bytes of the checkpoint.</summary>
public readonly record struct LoadProgress(long BytesDone, long BytesTotal, string Tensor);

/// <summary>
/// Takes the bound weights of a model to a backend, by their names in the checkpoint: matrices as <see cref="PreparedWeight"/> in their stored
/// scheme, small vectors as F32 tensors, integer tables as I32. Owns what it made; the checkpoint stays open as long as it lives.
/// </summary>
internal sealed unsafe class WeightLoader(IReadOnlyCollection<WeightRef> weights, IBackend backend, IProgress<LoadProgress>? progress) : IDisposable
{
    private readonly Dictionary<string, WeightRef> _weights = weights.ToDictionary(w => w.Weight.Name, StringComparer.Ordinal);
    private readonly List<IDisposable> _owned = [];
    private readonly long _total = weights.Sum(w => w.ByteLength);
    private long _done;

    /// <summary>Matrix <c>name.weight</c> with its <c>name.scale</c> if it has one.</summary>
    public PreparedWeight Matrix(string name) => RawMatrix(name + ".weight");

    /// <summary>A matrix under its full name.</summary>
    public PreparedWeight RawMatrix(string fullName)
    {
        var weight = _weights[fullName];
        var prepared = backend.PrepareWeight(weight.ToWeightData());
        _owned.Add(prepared);
        Report(weight.ByteLength, fullName);
        return prepared;
    }

    /// <summary>Any tensor as F32 of its shape (up to two dimensions).</summary>
    public Tensor F32(string fullName)
    {
        var view = _weights[fullName].Weight;
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
        var view = _weights[fullName].Weight;
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

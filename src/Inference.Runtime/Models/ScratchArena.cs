using Inference.Backends;

namespace Inference.Runtime.Models;

/// <summary>
/// Device memory for the activations of one step: tensors are taken one after the other and all given back at once by
/// <see cref="Reset"/>. It grows when a step needs more than any before and then stays one piece. Owned by a model.
/// </summary>
internal sealed class ScratchArena(IBackend backend) : IDisposable
{
    private const long Alignment = 64, SmallestPiece = 1 << 16;
    private readonly List<DeviceBuffer> _pieces = [];
    private long _offset;

    /// <summary>Ends the step: every tensor taken so far is void.</summary>
    public void Reset()
    {
        if (_pieces.Count > 1)
        {
            long total = _pieces.Sum(p => p.SizeBytes);
            Dispose();
            _pieces.Add(backend.Allocate(total, "activations"));
        }
        _offset = 0;
    }

    public Tensor F32(int d0, int d1) => Tensor.Create(Room((long)d0 * d1, out long at), DType.F32, d0, d1, at);

    public Tensor F32(int d0, int d1, int d2) => Tensor.Create(Room(checked((long)d0 * d1 * d2), out long at), DType.F32, d0, d1, d2, at);

    public Tensor I32(int d0, int d1) => Tensor.Create(Room((long)d0 * d1, out long at), DType.I32, d0, d1, at);

    private DeviceBuffer Room(long elements, out long offset)
    {
        long bytes = checked((elements * 4 + Alignment - 1) / Alignment * Alignment);
        if (_pieces.Count == 0 || _offset + bytes > _pieces[^1].SizeBytes)
        {
            _pieces.Add(backend.Allocate(Math.Max(bytes, SmallestPiece), "activations"));
            _offset = 0;
        }
        (offset, _offset) = (_offset, _offset + bytes);
        return _pieces[^1];
    }

    public void Dispose()
    {
        foreach (var piece in _pieces) piece.Dispose();
        _pieces.Clear();
    }
}

using Inference.Backends;

namespace Inference.Runtime.Weights;

/// <summary>
/// One weight of a model where it lies in the checkpoint: its tensor, the scales that belong to it, and how the two make
/// numbers. Shapes and dtypes were checked when it was bound. Owns nothing; valid as long as the checkpoint is open.
/// </summary>
/// <param name="Name">Name in the checkpoint; without the suffix .weight if a .scale may stand beside it.</param>
/// <param name="Weight">The elements; packed FP4 appears as <see cref="DType.F4E2M1"/> with its true shape.</param>
/// <param name="Scale">The scales of a quantised matrix.</param>
/// <param name="Scheme">How elements and scales combine.</param>
public sealed record WeightRef(string Name, TensorView Weight, TensorView? Scale, WeightScheme Scheme)
{
    /// <summary>First dimension; output features of a matrix.</summary>
    public int Rows => checked((int)Weight.Shape[0]);

    /// <summary>Elements per row; input features of a matrix.</summary>
    public int Columns => checked((int)(Weight.ElementCount / Weight.Shape[0]));

    /// <summary>Number of elements, scales not counted.</summary>
    public long ElementCount => Weight.ElementCount;

    /// <summary>Bytes of elements and scales.</summary>
    public long ByteLength => Weight.ByteLength + (Scale?.ByteLength ?? 0);

    /// <summary>The form in which a backend takes a matrix.</summary>
    public unsafe WeightData ToWeightData() => new(Weight.Name, Scheme, Rows, Columns, (nint)Weight.Pointer, Weight.ByteLength,
        Scale is null ? 0 : (nint)Scale.Pointer, Scale?.ByteLength ?? 0);
}

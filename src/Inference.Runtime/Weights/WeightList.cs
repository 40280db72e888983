using System.Collections.Immutable;

namespace Inference.Runtime.Weights;

/// <summary>What a family asks for.</summary>
internal enum WeightKind
{
    /// <summary>NAME.weight, with NAME.scale if it is quantised.</summary>
    Matrix,

    /// <summary>Floating point numbers under the full name.</summary>
    Float,

    /// <summary>Integers under the full name.</summary>
    Integers,
}

/// <summary>One weight that a family asks for; the shape is that of its elements, however they are stored.</summary>
internal readonly record struct WeightNeed(string Name, WeightKind Kind, ImmutableArray<long> Shape);

/// <summary>Writes down what a family asks for, in order, and answers with null.</summary>
internal sealed class WeightList : IWeightSource
{
    private readonly List<WeightNeed> _needs = [];

    /// <summary>What was asked for so far.</summary>
    public IReadOnlyList<WeightNeed> Needs => _needs;

    public WeightRef Matrix(string name, long rows, long columns) => Note(name, WeightKind.Matrix, [rows, columns]);

    public WeightRef Float(string name, params ReadOnlySpan<long> shape) => Note(name, WeightKind.Float, [.. shape]);

    public WeightRef Integers(string name, params ReadOnlySpan<long> shape) => Note(name, WeightKind.Integers, [.. shape]);

    private WeightRef Note(string name, WeightKind kind, ImmutableArray<long> shape)
    {
        _needs.Add(new WeightNeed(name, kind, shape));
        return null!;
    }
}

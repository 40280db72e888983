namespace Inference.Runtime.Weights;

/// <summary>
/// Answers a family's description of its weights: <see cref="WeightBinder"/> with what a checkpoint holds, <see cref="WeightList"/> with nothing, to
/// learn what a checkpoint must hold. An answer is null where there is none, so nothing may be used before the source says that all is well.
/// </summary>
internal interface IWeightSource
{
    /// <summary>A matrix that may be quantised: NAME.weight, with NAME.scale if it is.</summary>
    WeightRef Matrix(string name, long rows, long columns);

    /// <summary>A tensor of floating point numbers under its full name, never quantised.</summary>
    WeightRef Float(string name, params ReadOnlySpan<long> shape);

    /// <summary>A table of integers under its full name.</summary>
    WeightRef Integers(string name, params ReadOnlySpan<long> shape);
}

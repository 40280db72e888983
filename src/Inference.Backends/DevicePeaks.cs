namespace Inference.Backends;

/// <summary>
/// What a device can do with nothing else to do, measured anew with each call, in a few milliseconds: the yardsticks of a roofline. A backend that has
/// them is compared with itself, in the same run.
/// </summary>
public abstract class DevicePeaks : IDisposable
{
    /// <summary>Bytes per second of plain reading from memory.</summary>
    public abstract double MeasureRead();

    /// <summary>Operations per second of fused multiply-adds on F32, each counted as two.</summary>
    public abstract double MeasureMultiply();

    public abstract void Dispose();
}

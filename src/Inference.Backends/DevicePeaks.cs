namespace Inference.Backends;

/// <summary>
/// What a device can do with nothing else to do: the yardsticks of a roofline. Work of a known amount, a few milliseconds of it with each call, to be timed
/// in turn with what is compared with it.
/// </summary>
public abstract class DevicePeaks : IDisposable
{
    /// <summary>Threads that work, on a device that is the processor; else 1.</summary>
    public abstract int Threads { get; }

    /// <summary>Bytes that <see cref="Read"/> reads from memory.</summary>
    public abstract double ReadBytes { get; }

    /// <summary>Operations of <see cref="Multiply"/>: F32 multiply-adds, each counted as two.</summary>
    public abstract double MultiplyOperations { get; }

    /// <summary>Plain reading.</summary>
    public abstract void Read();

    /// <summary>Fused multiply-adds on registers.</summary>
    public abstract void Multiply();

    public abstract void Dispose();
}

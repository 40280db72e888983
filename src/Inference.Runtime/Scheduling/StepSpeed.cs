namespace Inference.Runtime.Scheduling;

/// <summary>
/// How fast prompts are computed, learnt from finished steps: the least time that a number of tokens needs. It never reads a clock, and never
/// guesses: before it has seen enough it knows nothing. It errs towards fast: only steps that are well filled and lie near the beginning of their
/// contexts count, where a token costs least; it follows faster steps at once and slower ones reluctantly.
/// Owned by the <see cref="Scheduler"/>.
/// </summary>
internal sealed class StepSpeed(int stepTokensMax)
{
    /// <summary>Further on attention makes a token dearer.</summary>
    internal const int PositionMax = 8192;

    /// <summary>Steps before it says anything.</summary>
    internal const int SamplesMin = 8;

    private double _ticksPerToken;
    private int _samples;

    /// <summary>Ticks per token; 0 = not known.</summary>
    public double TicksPerToken => _samples < SamplesMin ? 0 : _ticksPerToken;

    /// <param name="tokens">Of the step.</param>
    /// <param name="lastPosition">The furthest position that it computed.</param>
    /// <param name="ticks">It took.</param>
    public void Observe(int tokens, int lastPosition, long ticks)
    {
        if (tokens < (stepTokensMax + 1) / 2 || lastPosition >= PositionMax || ticks <= 0) return;
        double sample = (double)ticks / tokens;
        _ticksPerToken = _samples == 0 ? sample
            : sample < _ticksPerToken ? (_ticksPerToken + sample) / 2
            : _ticksPerToken + (Math.Min(sample, 2 * _ticksPerToken) - _ticksPerToken) / 16;
        _samples = Math.Min(_samples + 1, SamplesMin);
    }
}

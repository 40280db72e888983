// The frequency tables of rotary embeddings, as a model's config describes them (spec deepseek-v4 2.1).
//
// Pure arithmetic on a few numbers at load; it never rotates anything and knows no layer. Each frequency is computed in double
// and rounded once to FP32: the table is part of the model, and rotation multiplies positions by exactly these FP32 values.
namespace Inference.Backends.Operators;

/// <summary>Builds the F32 frequencies that <see cref="Rope"/> wants: one per pair of rotated channels, in radians per position.</summary>
public static class RopeFrequencies
{
    /// <summary>f[i] = theta^(-2 i / channels).</summary>
    /// <param name="theta">Base of the progression, above 1 (10000 in most models).</param>
    /// <param name="channels">Rotated channels of a vector: positive and even.</param>
    /// <returns>channels / 2 frequencies, the fastest first.</returns>
    /// <exception cref="ArgumentOutOfRangeException">A parameter is outside of its range.</exception>
    public static float[] Plain(double theta, int channels)
    {
        RequireBase(theta, channels);
        var table = new float[channels / 2];
        for (var i = 0; i < table.Length; i++)
            table[i] = (float)Frequency(theta, channels, i);
        return table;
    }

    /// <summary>
    /// YaRN: pairs that turn more than <paramref name="betaFast"/> times within the original context keep their plain frequency, those that
    /// turn less than <paramref name="betaSlow"/> times are slowed by <paramref name="factor"/>, with a linear ramp over the pairs between.
    /// Cosines and sines get no amplitude factor.
    /// </summary>
    /// <param name="theta">Base of the plain progression, above 1.</param>
    /// <param name="channels">Rotated channels of a vector: positive and even.</param>
    /// <param name="factor">How much longer the context became, at least 1.</param>
    /// <param name="betaFast">Turns from which a pair is left as it is; at least <paramref name="betaSlow"/>.</param>
    /// <param name="betaSlow">Turns up to which a pair is slowed fully; positive.</param>
    /// <param name="originalContext">Context length the model was first trained with, in tokens.</param>
    /// <returns>channels / 2 frequencies, the fastest first.</returns>
    /// <exception cref="ArgumentOutOfRangeException">A parameter is outside of its range.</exception>
    public static float[] Yarn(double theta, int channels, double factor, double betaFast, double betaSlow, int originalContext)
    {
        RequireBase(theta, channels);
        Require(double.IsFinite(factor) && factor >= 1, nameof(factor), factor, "must be at least 1");
        Require(double.IsFinite(betaSlow) && betaSlow > 0, nameof(betaSlow), betaSlow, "must be positive");
        Require(double.IsFinite(betaFast) && betaFast >= betaSlow, nameof(betaFast), betaFast, "must be at least betaSlow");
        Require(originalContext > 0, nameof(originalContext), originalContext, "must be positive");

        // The (fractional) pair index at which a pair turns exactly n times within the original context.
        double PairTurning(double n) => channels * Math.Log(originalContext / (2 * Math.PI * n)) / (2 * Math.Log(theta));
        var low = Math.Max(Math.Floor(PairTurning(betaFast)), 0);
        var high = Math.Min(Math.Ceiling(PairTurning(betaSlow)), channels - 1);
        if (low == high) high += 0.001; // keeps the ramp's slope finite

        var table = new float[channels / 2];
        for (var i = 0; i < table.Length; i++)
        {
            var plain = Frequency(theta, channels, i);
            var ramp = Math.Clamp((i - low) / (high - low), 0, 1);
            table[i] = (float)(plain / factor * ramp + plain * (1 - ramp));
        }
        return table;
    }

    private static double Frequency(double theta, int channels, int pair) => Math.Pow(theta, -2.0 * pair / channels);

    private static void RequireBase(double theta, int channels)
    {
        Require(double.IsFinite(theta) && theta > 1, nameof(theta), theta, "must be finite and above 1");
        Require(channels > 0 && channels % 2 == 0, nameof(channels), channels, "must be positive and even");
    }

    private static void Require(bool holds, string name, double value, string rule)
    {
        if (!holds) throw new ArgumentOutOfRangeException(name, value, $"{name} {rule}.");
    }
}

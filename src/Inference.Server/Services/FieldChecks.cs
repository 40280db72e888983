using System.Globalization;
using Google.Rpc;
using Inference.Server.Errors;

namespace Inference.Server.Services;

/// <summary>
/// Collects what is wrong with the fields of one message, so that a client hears everything at once. Each entry names the field as the proto
/// files spell it, what was given, and what may be given. Keeps values in their range only for the caller's convenience: a request with
/// violations is never run.
/// </summary>
internal sealed class FieldChecks
{
    private readonly List<BadRequest.Types.FieldViolation> _violations = [];

    public bool Any => _violations.Count > 0;

    public void Add(string field, string description) => _violations.Add(StatusMapping.Violation(field, description));

    /// <exception cref="RequestException">With everything collected, if there is anything.</exception>
    public void ThrowIfAny()
    {
        if (_violations.Count == 0) return;
        string more = _violations.Count == 1 ? "" : $" ({_violations.Count - 1} more, see the details)";
        throw new RequestException(ErrorReason.InvalidField, $"{_violations[0].Field}: {_violations[0].Description}{more}") { Violations = _violations };
    }

    /// <summary>The number must lie in [min, max]; NaN never does.</summary>
    public float Number(string field, bool isSet, float value, float min, float max, float unset)
    {
        if (!isSet) return unset;
        if (value >= min && value <= max) return value;
        Add(field, $"is {Text(value)}; give a number from {Text(min)} to {Text(max)}.");
        return unset;
    }

    /// <summary>The number must lie in (0, max].</summary>
    public float Positive(string field, bool isSet, float value, float max, float unset)
    {
        if (!isSet) return unset;
        if (value > 0 && value <= max) return value;
        Add(field, $"is {Text(value)}; give a number above 0 and at most {Text(max)}.");
        return unset;
    }

    public int Integer(string field, bool isSet, int value, int min, int max, int unset)
    {
        if (!isSet) return unset;
        if (value >= min && value <= max) return value;
        Add(field, $"is {Text(value)}; give a whole number from {Text(min)} to {Text(max)}.");
        return unset;
    }

    /// <summary>Unset and the enum's zero mean <paramref name="unset"/>; a value this server does not know is an error, not a default.</summary>
    public T? Known<T>(string field, bool isSet, T value) where T : struct, Enum
    {
        if (!isSet || Convert.ToInt32(value, CultureInfo.InvariantCulture) == 0) return null;
        if (Enum.IsDefined(value)) return value;
        Add(field, $"is {Convert.ToInt32(value, CultureInfo.InvariantCulture)}, a value that this server does not know.");
        return null;
    }

    /// <summary>Token ids, all in the vocabulary; names the first that is not.</summary>
    public int[] TokenIds(string field, IReadOnlyList<uint> ids, int vocabSize)
    {
        var result = new int[ids.Count];
        int bad = 0, first = -1;
        for (int i = 0; i < result.Length; i++)
        {
            if (ids[i] < (uint)vocabSize)
            {
                result[i] = (int)ids[i];
                continue;
            }
            if (bad++ == 0) first = i;
        }
        if (bad > 0) Add($"{field}[{first}]", $"is {ids[first]}; token ids of this model lie in [0, {vocabSize}). {bad} of {ids.Count} do not.");
        return result;
    }

    private static string Text(float value) => value.ToString("R", CultureInfo.InvariantCulture);

    private static string Text(int value) => value.ToString(CultureInfo.InvariantCulture);
}

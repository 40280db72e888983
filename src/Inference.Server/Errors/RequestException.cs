using Google.Rpc;

namespace Inference.Server.Errors;

/// <summary>What the server itself says no to. Whoever throws it chooses reason and words; <see cref="StatusMapping"/> the code.</summary>
/// <param name="reason">One of <see cref="ErrorReason"/>.</param>
/// <param name="message">For the client: what is wrong, the limit, the way out.</param>
internal sealed class RequestException(string reason, string message) : Exception(message)
{
    public string Reason { get; } = reason;

    /// <summary>Fields at fault, in the spelling of the proto files.</summary>
    public IReadOnlyList<BadRequest.Types.FieldViolation> Violations { get; init; } = [];

    /// <summary>Numbers a program can use.</summary>
    public IReadOnlyDictionary<string, string> Metadata { get; init; } = new Dictionary<string, string>();

    public TimeSpan? RetryAfter { get; init; }
}

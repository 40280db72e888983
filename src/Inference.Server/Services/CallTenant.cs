using Grpc.Core;
using Inference.Server.Errors;

namespace Inference.Server.Services;

/// <summary>
/// Whose call it is, from its metadata: tenants never share cached state, sessions or places in the line. Whoever serves several parties lets a
/// proxy, which knows them, set the key. Without it: the empty tenant.
/// </summary>
internal static class CallTenant
{
    public const string Key = "x-tenant";
    private const int LengthMax = 64;

    /// <exception cref="RequestException">It is too long or has characters that do not print.</exception>
    public static string Of(ServerCallContext context)
    {
        string tenant = context.RequestHeaders.GetValue(Key) ?? "";
        if (IsName(tenant)) return tenant;
        const string reason = "is no tenant: give at most 64 printable ASCII characters without a comma, once, or leave it out.";
        throw new RequestException(ErrorReason.InvalidField, $"{Key} {reason}") { Violations = [StatusMapping.Violation(Key, reason)] };
    }

    /// <summary>Whether a tenant can have this name. A comma would be the mark of a key that was given twice.</summary>
    public static bool IsName(string tenant) => tenant.Length <= LengthMax && tenant.All(c => c is >= ' ' and <= '~' and not ',');
}

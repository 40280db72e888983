using System.Security.Cryptography;
using System.Text;
using Inference.Backends;

namespace Inference.Runtime.KvCache.Disk;

/// <summary>
/// Names everything that the bytes of a state depend on besides the tokens: model, page geometry and row formats, backend, and the build of the
/// code that computes them. State on disk is used under the same name only, so that it is what computing would give, bit for bit; after an
/// upgrade it is computed again.
/// </summary>
internal static class KvFingerprint
{
    /// <param name="model">What tells the model from others, options that change its numbers among them.</param>
    public static byte[] Of(ReadOnlySpan<byte> model, IEnumerable<KvStateSpec> states, BackendInfo backend)
    {
        var text = new StringBuilder();
        text.AppendLine(Convert.ToHexString(model));
        foreach (var state in states) text.AppendLine(state.ToString());
        text.AppendLine($"{backend.Name} {backend.Determinism}");
        text.AppendLine($"{typeof(IBackend).Module.ModuleVersionId} {typeof(KvFingerprint).Module.ModuleVersionId}");
        return SHA256.HashData(Encoding.UTF8.GetBytes(text.ToString()));
    }
}

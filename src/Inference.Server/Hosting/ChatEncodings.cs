using Inference.Runtime.Chat;
using Inference.Runtime.Models;

namespace Inference.Server.Hosting;

/// <summary>Which chat encoding a model folder was trained with. The files do not say so; the draft module does (family description 1.1, 5.5).</summary>
internal static class ChatEncodings
{
    /// <summary>General releases bring a DSpark draft module, the preview an MTP block; they differ in their effort texts only.</summary>
    public static DeepSeekV4ChatEncoding For(DeepSeekV4Config config) =>
        new(config.DraftKind == DraftKind.DSpark ? EncodingRelease.Ga : EncodingRelease.Preview);
}

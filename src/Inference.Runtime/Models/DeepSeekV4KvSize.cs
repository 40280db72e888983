using Inference.Backends.Operators;

namespace Inference.Runtime.Models;

/// <summary>How the rows of the key/value cache are stored (specification deepseek-v4 3.2).</summary>
public enum KvRowFormat
{
    /// <summary>FP32 rows and index rows.</summary>
    F32,

    /// <summary>BF16 rows and index rows.</summary>
    BF16,

    /// <summary>FP8 rows (rotary channels BF16, a scale byte per 64 channels) and FP4 index rows: what the model was trained with.</summary>
    Fp8WithFp4Index,

    /// <summary>FP8 rows and FP8 index rows with one FP32 scale.</summary>
    Fp8WithFp8Index,
}

/// <summary>What people call the formats.</summary>
public static class KvRowFormats
{
    public static IReadOnlyDictionary<KvRowFormat, string> Names { get; } = new Dictionary<KvRowFormat, string>
    {
        [KvRowFormat.F32] = "f32",
        [KvRowFormat.BF16] = "bf16",
        [KvRowFormat.Fp8WithFp4Index] = "fp8",
        [KvRowFormat.Fp8WithFp8Index] = "fp8-index8",
    };
}

/// <summary>Cache memory of one sequence of a DeepSeek-V4 model, without page rounding (specification 3.1 to 3.3).</summary>
/// <param name="BytesPerToken">Growth per token of context, on average.</param>
/// <param name="WindowBytes">Sliding-window rows of all layers, once the window is full.</param>
/// <param name="StateBytes">FP32 state of the compressors.</param>
/// <param name="DraftBytes">Sliding-window rows of the draft blocks.</param>
public sealed record DeepSeekV4KvSize(double BytesPerToken, long WindowBytes, long StateBytes, long DraftBytes)
{
    /// <summary>Bytes that do not grow with the context.</summary>
    public long FixedBytes => WindowBytes + StateBytes + DraftBytes;

    /// <summary>Bytes of a sequence of that many tokens (at least a window long), fixed part included.</summary>
    public long TotalBytes(long tokens) => (long)(BytesPerToken * tokens) + FixedBytes;

    /// <summary>Sizes for a config.</summary>
    /// <param name="config">The model.</param>
    /// <param name="format">How rows are stored.</param>
    /// <param name="draftBlocks">Draft blocks that keep a window: 1 for MTP, the number of stages for DSpark, 0 without drafting.</param>
    public static DeepSeekV4KvSize Of(DeepSeekV4Config config, KvRowFormat format, int draftBlocks = 0)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(draftBlocks);
        long row = Row(config, format).Bytes, indexRow = IndexRow(config, format).Bytes;
        double perToken = 0;
        long state = 0;
        for (var layer = 0; layer < config.LayerCount; layer++)
        {
            var ratio = config.CompressRatios[layer];
            switch (config.Attention(layer))
            {
                case AttentionKind.Selected: // two blocks of slots, both halves of the channels
                    perToken += (row + indexRow) / (double)ratio;
                    state += StateBytesOf(2 * ratio, 2 * config.HeadDim) + StateBytesOf(2 * ratio, 2 * config.IndexHeadDim);
                    break;
                case AttentionKind.Compressed:
                    perToken += row / (double)ratio;
                    state += StateBytesOf(ratio, config.HeadDim);
                    break;
                default:
                    break;
            }
        }
        var window = config.SlidingWindow * row;
        return new DeepSeekV4KvSize(perToken, window * config.LayerCount, state, window * draftBlocks);
    }

    /// <summary>How a window or compressed row is stored.</summary>
    public static RowFormat Row(DeepSeekV4Config config, KvRowFormat format) => format switch
    {
        KvRowFormat.F32 => RowFormat.F32(config.HeadDim),
        KvRowFormat.BF16 => RowFormat.BF16(config.HeadDim),
        _ => RowFormat.Fp8(config.HeadDim, config.RopeHeadDim),
    };

    /// <summary>How an index row is stored.</summary>
    public static RowFormat IndexRow(DeepSeekV4Config config, KvRowFormat format) => format switch
    {
        KvRowFormat.F32 => RowFormat.F32(config.IndexHeadDim),
        KvRowFormat.BF16 => RowFormat.BF16(config.IndexHeadDim),
        KvRowFormat.Fp8WithFp8Index => RowFormat.Fp8OneScale(config.IndexHeadDim),
        _ => RowFormat.Fp4(config.IndexHeadDim),
    };

    /// <summary>A value and a gate in FP32 for each slot and channel.</summary>
    private static long StateBytesOf(int slots, int channels) => 2L * sizeof(float) * slots * channels;
}

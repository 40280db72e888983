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

/// <summary>Cache memory of one sequence of a DeepSeek-V4 model, without page rounding (specification 3.1 to 3.3).</summary>
/// <param name="BytesPerToken">Growth per token of context, on average.</param>
/// <param name="WindowBytes">Sliding-window rows of all layers, once the window is full.</param>
/// <param name="StateBytes">FP32 state of the compressors.</param>
/// <param name="DraftBytes">Sliding-window rows of the draft blocks.</param>
public sealed record DeepSeekV4KvSize(double BytesPerToken, long WindowBytes, long StateBytes, long DraftBytes)
{
    private const int Fp8ScaleGroup = 64, Fp8RowAlignment = 8, Fp4ScaleGroup = 32;

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
        long row = RowBytes(config, format), indexRow = IndexRowBytes(config, format);
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

    /// <summary>Bytes of one window or compressed row.</summary>
    public static long RowBytes(DeepSeekV4Config config, KvRowFormat format) => format switch
    {
        KvRowFormat.F32 => 4L * config.HeadDim,
        KvRowFormat.BF16 => 2L * config.HeadDim,
        _ => RoundUp(config.NopeHeadDim + 2L * config.RopeHeadDim + Groups(config.NopeHeadDim, Fp8ScaleGroup), Fp8RowAlignment),
    };

    /// <summary>Bytes of one index row.</summary>
    public static long IndexRowBytes(DeepSeekV4Config config, KvRowFormat format) => format switch
    {
        KvRowFormat.F32 => 4L * config.IndexHeadDim,
        KvRowFormat.BF16 => 2L * config.IndexHeadDim,
        KvRowFormat.Fp8WithFp8Index => config.IndexHeadDim + sizeof(float),
        _ => Groups(config.IndexHeadDim, 2) + Groups(config.IndexHeadDim, Fp4ScaleGroup),
    };

    /// <summary>A value and a gate in FP32 for each slot and channel.</summary>
    private static long StateBytesOf(int slots, int channels) => 2L * sizeof(float) * slots * channels;

    private static long Groups(long count, int size) => (count + size - 1) / size;

    private static long RoundUp(long value, int multiple) => Groups(value, multiple) * multiple;
}

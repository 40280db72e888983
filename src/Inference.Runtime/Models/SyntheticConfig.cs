using System.Text.Json;
using System.Text.Json.Nodes;

namespace Inference.Runtime.Models;

/// <summary>The config.json of a synthetic model: a published one, cut to fewer layers and with the storage that is written.</summary>
public static class SyntheticConfig
{
    private const string LayerCountKey = "num_hidden_layers", RatiosKey = "compress_ratios", TargetsKey = "dspark_target_layer_ids";

    private static readonly JsonDocumentOptions Strict = new() { AllowDuplicateProperties = false };
    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true };

    /// <summary>Cuts a config.</summary>
    /// <param name="file">For messages.</param>
    /// <param name="json">A config.json.</param>
    /// <param name="layers">Backbone layers to keep, the first ones; draft blocks stay.</param>
    /// <param name="storage">What the weights will be stored as.</param>
    /// <returns>The new config.json.</returns>
    /// <exception cref="ModelConfigException">The config is not one of this family, or has fewer layers.</exception>
    public static byte[] Adapt(string file, ReadOnlyMemory<byte> json, int? layers, SyntheticStorage storage)
    {
        var config = DeepSeekV4Config.Parse(file, json);
        int kept = layers ?? config.LayerCount;
        if (kept < 1 || kept > config.LayerCount)
        {
            throw new ModelConfigException(file, $"{kept} layers are asked for, the model has {config.LayerCount}",
                $"Ask for 1 to {config.LayerCount} layers.", null);
        }
        var root = Root(file, json);
        root["model_type"] = DeepSeekV4Config.ModelType;
        root[LayerCountKey] = kept;
        root[RatiosKey] = Numbers(config.CompressRatios.Take(kept).Concat(config.CompressRatios.Skip(config.LayerCount)));
        if (config.DSpark is { } spark) // as far from the last layer as before
            root[TargetsKey] = Numbers(spark.TargetLayers.Select(t => Math.Max(0, t - (config.LayerCount - kept))));
        SetStorage(root, config.Fp8Tile, storage);
        return JsonSerializer.SerializeToUtf8Bytes(root, Indented);
    }

    /// <summary>How a model of this config is stored, as far as the three storages go: quantised if it says so, else as its torch_dtype says.</summary>
    /// <param name="file">For messages.</param>
    /// <param name="json">A config.json.</param>
    /// <exception cref="ModelConfigException">It is no JSON object.</exception>
    public static SyntheticStorage StorageOf(string file, ReadOnlyMemory<byte> json)
    {
        var root = Root(file, json);
        if (root["quantization_config"] is JsonObject) return SyntheticStorage.Fp8Fp4;
        return root["torch_dtype"] is JsonValue dtype && dtype.TryGetValue(out string? name) && name == "float32"
            ? SyntheticStorage.F32
            : SyntheticStorage.BF16;
    }

    private static void SetStorage(JsonObject root, int tile, SyntheticStorage storage)
    {
        root["torch_dtype"] = storage == SyntheticStorage.F32 ? "float32" : "bfloat16";
        root.Remove("quantization_config");
        root.Remove("expert_dtype");
        if (storage != SyntheticStorage.Fp8Fp4) return;
        root["expert_dtype"] = "fp4";
        root["quantization_config"] = new JsonObject
        {
            ["quant_method"] = "fp8",
            ["fmt"] = "e4m3",
            ["scale_fmt"] = "ue8m0",
            ["activation_scheme"] = "dynamic",
            ["weight_block_size"] = Numbers([tile, tile]),
        };
    }

    private static JsonObject Root(string file, ReadOnlyMemory<byte> json)
    {
        try
        {
            return JsonNode.Parse(json.Span, null, Strict)!.AsObject(); // an object, or it would not have been read as a config
        }
        catch (JsonException e)
        {
            throw new ModelConfigException(file, "it cannot be changed: " + e.Message, "Take the published config.json.", e);
        }
    }

    private static JsonArray Numbers(IEnumerable<int> numbers) => [.. numbers.Select(n => (JsonNode)n)];
}

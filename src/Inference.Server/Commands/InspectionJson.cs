using System.Text.Json;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Server.Commands;

/// <summary>An inspection as one JSON object; what could not be read is null. Field names are a contract.</summary>
internal static class InspectionJson
{
    public static void Write(ModelInspection inspection, int[] contexts)
    {
        using var output = new ResultOutput(indented: true);
        output.Line(w =>
        {
            w.WriteStartObject();
            w.WriteString("folder", inspection.Folder);
            Config(w, inspection.Config);
            Weights(w, inspection);
            w.WriteString("kv_format", inspection.Config is null ? null : KvRowFormats.Names[inspection.Format]);
            KvStates(w, inspection.KvStates);
            Memory(w, inspection, contexts);
            if (inspection.Tokenizer is { } tokenizer) w.WriteNumber("tokenizer_size", tokenizer.VocabSize);
            else w.WriteNull("tokenizer_size");
            Strings(w, "problems", inspection.Problems);
            w.WriteEndObject();
        });
    }

    private static void Config(Utf8JsonWriter w, DeepSeekV4Config? c)
    {
        if (c is null)
        {
            w.WriteNull("family");
            w.WriteNull("config");
            return;
        }
        w.WriteString("family", DeepSeekV4Config.ModelType);
        w.WriteStartObject("config");
        w.WriteNumber("vocab_size", c.VocabSize);
        w.WriteNumber("hidden_size", c.HiddenSize);
        w.WriteNumber("layer_count", c.LayerCount);
        w.WriteStartArray("compress_ratios");
        foreach (int ratio in c.CompressRatios.Take(c.LayerCount)) w.WriteNumberValue(ratio);
        w.WriteEndArray();
        w.WriteNumber("head_count", c.HeadCount);
        w.WriteNumber("head_dim", c.HeadDim);
        w.WriteNumber("rope_head_dim", c.RopeHeadDim);
        w.WriteNumber("sliding_window", c.SlidingWindow);
        w.WriteNumber("index_top_k", c.IndexTopK);
        w.WriteNumber("expert_count", c.ExpertCount);
        w.WriteNumber("experts_per_token", c.ExpertsPerToken);
        w.WriteNumber("expert_intermediate_size", c.ExpertIntermediateSize);
        w.WriteNumber("context_max", c.ContextMax);
        w.WriteString("draft", c.DraftKind.ToString().ToLowerInvariant());
        w.WriteEndObject();
    }

    private static void Weights(Utf8JsonWriter w, ModelInspection inspection)
    {
        Strings(w, "weight_files", inspection.WeightFiles.Select(f => Path.GetFileName(f)));
        if (inspection.Summary is not { } summary)
        {
            foreach (string name in (string[])["parameters", "storage", "tensor_count", "weight_bytes"]) w.WriteNull(name);
            return;
        }
        w.WriteStartObject("parameters");
        w.WriteNumber("total", summary.ParameterCount);
        w.WriteNumber("active", summary.ActiveParameterCount);
        w.WriteNumber("draft", summary.DraftParameterCount);
        w.WriteEndObject();
        w.WriteStartArray("storage");
        foreach (var usage in summary.Storage)
        {
            w.WriteStartObject();
            w.WriteString("dtype", usage.DType.ToString());
            w.WriteNumber("tensors", usage.TensorCount);
            w.WriteNumber("bytes", usage.ByteLength);
            w.WriteEndObject();
        }
        w.WriteEndArray();
        w.WriteNumber("tensor_count", summary.TensorCount);
        w.WriteNumber("weight_bytes", summary.ByteLength);
    }

    private static void KvStates(Utf8JsonWriter w, IReadOnlyList<KvStateSpec> states)
    {
        w.WriteStartArray("kv_states");
        foreach (var s in states)
        {
            w.WriteStartObject();
            w.WriteString("name", s.Name);
            w.WriteNumber("layers", s.LayerCount);
            w.WriteNumber("row_width", s.Row.Width);
            w.WriteNumber("row_bytes", s.Row.Bytes);
            w.WriteNumber("tokens_per_row", s.Ratio);
            w.WriteString("retention", s.Retention.ToString().ToLowerInvariant());
            if (s.Retention != KvRetention.All) w.WriteNumber("retention_tokens", s.RetentionTokens);
            w.WriteNumber("rows_per_page", s.RowsPerPage);
            w.WriteNumber("page_bytes", s.PageBytes);
            w.WriteEndObject();
        }
        w.WriteEndArray();
    }

    private static void Memory(Utf8JsonWriter w, ModelInspection inspection, int[] contexts)
    {
        w.WriteStartArray("memory");
        foreach (int context in inspection.Config is null ? [] : contexts)
        {
            w.WriteStartObject();
            w.WriteNumber("context", context);
            long total = Bytes(w, inspection.KvStates, context);
            if (inspection.Summary is { } summary) w.WriteNumber("total_bytes", summary.ByteLength + total);
            w.WriteStartObject("kinds");
            foreach (var s in inspection.KvStates) w.WriteNumber(s.Name, ModelInspection.BytesOf(s, context));
            w.WriteEndObject();
            w.WriteStartObject("formats");
            foreach (var format in inspection.Formats)
            {
                w.WriteStartObject(KvRowFormats.Names[format]);
                Bytes(w, inspection.KvStatesIn(format), context);
                w.WriteEndObject();
            }
            w.WriteEndObject();
            w.WriteEndObject();
        }
        w.WriteEndArray();
    }

    private static long Bytes(Utf8JsonWriter w, IReadOnlyList<KvStateSpec> states, int context)
    {
        var (rows, constant) = ModelInspection.KvBytes(states, context);
        w.WriteNumber("rows_bytes", rows);
        w.WriteNumber("constant_bytes", constant);
        w.WriteNumber("kv_bytes", rows + constant);
        return rows + constant;
    }

    private static void Strings(Utf8JsonWriter w, string name, IEnumerable<string> values)
    {
        w.WriteStartArray(name);
        foreach (string value in values) w.WriteStringValue(value);
        w.WriteEndArray();
    }
}

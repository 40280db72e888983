using System.Collections.Immutable;
using System.Text.Json.Nodes;
using Inference.Backends;

namespace Inference.Runtime.Tests.Models;

/// <summary>
/// Names, shapes and dtypes of the published checkpoints, written down from the table of the specification (4.2) and not with
/// the code under test: the strings and the arithmetic here are a second reading of it.
/// </summary>
internal sealed class PublishedTensors
{
    private readonly List<(string Name, DType DType, ImmutableArray<long> Shape)> _list = [];
    private readonly long _d, _heads, _ql, _groups, _experts, _mi, _vocab;
    private readonly bool _base;

    private PublishedTensors(JsonObject config, bool isBase)
    {
        long Number(string key) => (long)config[key]!;
        (_d, _heads, _ql, _groups) = (Number("hidden_size"), Number("num_attention_heads"), Number("q_lora_rank"), Number("o_groups"));
        (_experts, _mi, _vocab, _base) = (Number("n_routed_experts"), Number("moe_intermediate_size"), Number("vocab_size"), isBase);
    }

    /// <summary>The tensors of a config: an MTP block, or three DSpark blocks if it has the keys. Base: FP8 experts with F32 scales.</summary>
    public static List<(string Name, DType DType, ImmutableArray<long> Shape)> Of(JsonObject config, bool isBase = false)
    {
        var t = new PublishedTensors(config, isBase);
        t.BF16("embed.weight", t._vocab, t._d);
        t.BF16("head.weight", t._vocab, t._d);
        t.BF16("norm.weight", t._d);
        t.HcHead("");
        var ratios = config["compress_ratios"]!.AsArray();
        for (var n = 0; n < (int)config["num_hidden_layers"]!; n++)
            t.Layer($"layers.{n}.", (int)ratios[n]!, hash: n < 3);
        if (config.ContainsKey("dspark_block_size"))
            t.DSpark();
        else
            t.Mtp();
        return t._list;
    }

    private void Layer(string p, int r, bool hash)
    {
        BF16(p + "attn_norm.weight", _d);
        BF16(p + "ffn_norm.weight", _d);
        foreach (var site in (string[])["attn", "ffn"])
        {
            F32($"{p}hc_{site}_fn", 24, 4 * _d);
            F32($"{p}hc_{site}_base", 24);
            F32($"{p}hc_{site}_scale", 3);
        }
        F32(p + "attn.attn_sink", _heads);
        Fp8(p + "attn.wq_a", _ql, _d);
        BF16(p + "attn.q_norm.weight", _ql);
        Fp8(p + "attn.wq_b", 512 * _heads, _ql);
        Fp8(p + "attn.wkv", 512, _d);
        BF16(p + "attn.kv_norm.weight", 512);
        Fp8(p + "attn.wo_a", 1024 * _groups, 512 * _heads / _groups);
        Fp8(p + "attn.wo_b", _d, 1024 * _groups);
        if (r > 0)
        {
            var c = r == 4 ? 2 : 1;
            F32(p + "attn.compressor.ape", r, c * 512);
            BF16(p + "attn.compressor.wkv.weight", c * 512, _d);
            BF16(p + "attn.compressor.wgate.weight", c * 512, _d);
            BF16(p + "attn.compressor.norm.weight", 512);
        }
        if (r == 4)
        {
            Fp8(p + "attn.indexer.wq_b", 8192, _ql);
            BF16(p + "attn.indexer.weights_proj.weight", 64, _d);
            F32(p + "attn.indexer.compressor.ape", 4, 256);
            BF16(p + "attn.indexer.compressor.wkv.weight", 256, _d);
            BF16(p + "attn.indexer.compressor.wgate.weight", 256, _d);
            BF16(p + "attn.indexer.compressor.norm.weight", 128);
        }
        BF16(p + "ffn.gate.weight", _experts, _d);
        if (hash)
            Add(p + "ffn.gate.tid2eid", DType.I64, _vocab, 6);
        else
            F32(p + "ffn.gate.bias", _experts);
        for (var e = 0; e < _experts; e++)
        {
            foreach (var (w, rows, columns) in ((string, long, long)[])[("w1", _mi, _d), ("w2", _d, _mi), ("w3", _mi, _d)])
            {
                if (_base)
                {
                    Fp8($"{p}ffn.experts.{e}.{w}", rows, columns, DType.F32);
                    continue;
                }
                Add($"{p}ffn.experts.{e}.{w}.weight", DType.I8, rows, columns / 2);
                Add($"{p}ffn.experts.{e}.{w}.scale", DType.F8E8M0, rows, columns / 32);
            }
        }
        Fp8(p + "ffn.shared_experts.w1", _mi, _d);
        Fp8(p + "ffn.shared_experts.w2", _d, _mi);
        Fp8(p + "ffn.shared_experts.w3", _mi, _d);
    }

    private void Mtp()
    {
        Layer("mtp.0.", 0, hash: false);
        Fp8("mtp.0.e_proj", _d, _d);
        Fp8("mtp.0.h_proj", _d, _d);
        BF16("mtp.0.enorm.weight", _d);
        BF16("mtp.0.hnorm.weight", _d);
        BF16("mtp.0.norm.weight", _d);
        HcHead("mtp.0.");
    }

    private void DSpark()
    {
        for (var s = 0; s < 3; s++)
            Layer($"mtp.{s}.", 0, hash: false);
        Fp8("mtp.0.main_proj", _d, 3 * _d);
        BF16("mtp.0.main_norm.weight", _d);
        BF16("mtp.2.norm.weight", _d);
        HcHead("mtp.2.");
        BF16("mtp.2.markov_head.markov_w1.weight", _vocab, 256);
        BF16("mtp.2.markov_head.markov_w2.weight", _vocab, 256);
        BF16("mtp.2.confidence_head.proj.weight", 1, _d + 256);
    }

    private void HcHead(string p)
    {
        F32(p + "hc_head_fn", 4, 4 * _d);
        F32(p + "hc_head_base", 4);
        F32(p + "hc_head_scale", 1);
    }

    private void Fp8(string name, long rows, long columns, DType scale = DType.F8E8M0)
    {
        Add(name + ".weight", DType.F8E4M3, rows, columns);
        Add(name + ".scale", scale, (rows + 127) / 128, (columns + 127) / 128);
    }

    private void BF16(string name, params ReadOnlySpan<long> shape) => Add(name, DType.BF16, shape);

    private void F32(string name, params ReadOnlySpan<long> shape) => Add(name, DType.F32, shape);

    private void Add(string name, DType dtype, params ReadOnlySpan<long> shape) => _list.Add((name, dtype, [.. shape]));
}

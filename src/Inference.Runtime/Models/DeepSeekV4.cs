// DeepSeek-V4 (Flash, Pro, Base, 0731/0813): hyper-connected residual streams; attention over a sliding window, over rows compressed 4:1
// and picked by an indexer (CSA), or over all rows compressed r:1 (HCA), every row key and value at once; experts routed by token hash
// in the first layers and by score after; an MTP draft block. Specification: section numbers in the comments are those of the
// architecture description in docs/models/deepseek-v4.md.
//
// This file is the forward pass as calls on IBackend, in the order of the paper. It keeps no state of a sequence: everything that
// outlives a call is rows on pages (KvStates), addressed by absolute position, which is why chunking, batching and forking cannot change an answer.
// Owns the weights and scratch memory.
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json;
using Inference.Backends;
using Inference.Backends.Operators;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>How a DeepSeek-V4 model keeps what it caches.</summary>
/// <param name="Rows">How window rows, compressed rows and index rows are stored. Each narrow format brings the rounding whose values it stores.</param>
/// <param name="WideRounding">With <see cref="KvRowFormat.F32"/>: rounding of window and compressed rows all the same, so that the arithmetic of a narrow
/// format can be had in F32.</param>
/// <param name="WideIndexRounding">The same for index rows and their queries.</param>
public sealed record DeepSeekV4Options(
    KvRowFormat Rows = KvRowFormat.F32, RowRounding WideRounding = RowRounding.None, RowRounding WideIndexRounding = RowRounding.None);

/// <inheritdoc cref="IModel"/>
public sealed class DeepSeekV4 : IModel
{
    /// <summary>Rows of a window or compressor-state page.</summary>
    private const int WindowPageRows = 32, OverlapStatePageRows = 8;

    private readonly DeepSeekV4Config _config;
    private readonly DeepSeekV4Options _options;
    private readonly Checkpoint _checkpoint;
    private readonly WeightLoader _loader;
    private readonly OperatorStream _stream;
    private readonly IBackend _backend;
    private readonly RowRounding _rowRounding, _indexRounding;
    private readonly PreparedWeight _embed, _head;
    private readonly Tensor _norm;
    private readonly Collapse _collapse;
    private readonly Layer[] _layers;
    private readonly MtpBlock? _mtp;
    private readonly Kinds _kinds;
    private readonly ScratchArena _scratch;
    private (int Tokens, int Logits, int Pages, bool Draft) _planned;

    private DeepSeekV4(DeepSeekV4Weights weights, Checkpoint checkpoint, IBackend backend, DeepSeekV4Options options, IProgress<LoadProgress>? progress)
    {
        var config = weights.Config;
        Check(options, config);
        (_config, _options, _checkpoint, _backend) = (config, options, checkpoint, backend);
        _loader = new WeightLoader(weights.All, backend, progress);
        _stream = new OperatorStream(backend);
        _scratch = new ScratchArena(backend);
        bool hasMtp = config.DraftKind == DraftKind.Mtp, wide = options.Rows == KvRowFormat.F32;
        _kinds = new Kinds(config, options.Rows);
        _rowRounding = wide ? options.WideRounding : DeepSeekV4KvSize.Row(config, options.Rows).Rounding;
        _indexRounding = wide ? options.WideIndexRounding : DeepSeekV4KvSize.IndexRow(config, options.Rows).Rounding;
        _embed = _loader.Matrix("embed");
        _head = _loader.Matrix("head");
        _norm = _loader.F32("norm.weight");
        _collapse = LoadCollapse("");
        _layers = [.. Enumerable.Range(0, config.LayerCount).Select(l => LoadLayer($"layers.{l}.", config.CompressRatios[l], l))];
        if (hasMtp) _mtp = LoadMtp("mtp.0.");
        Info = new ModelInfo("deepseek_v4", config.VocabSize, config.HiddenSize, config.LayerCount, config.ContextMax, hasMtp,
            DeepSeekV4Checkpoint.Summarise(weights).ParameterCount, KvRowFormats.Names[options.Rows]);
        Work = new DeepSeekV4Work(weights, _kinds.Specs);
    }

    /// <summary>Checks a checkpoint against its config and brings it to a backend. The model owns the checkpoint from here on, also when this throws.</summary>
    /// <exception cref="CheckpointException">The tensors are not those of the config.</exception>
    public static DeepSeekV4 Load(
        DeepSeekV4Config config, Checkpoint checkpoint, IBackend backend, DeepSeekV4Options options, IProgress<LoadProgress>? progress = null)
    {
        try
        {
            return new(DeepSeekV4Checkpoint.Bind(config, checkpoint), checkpoint, backend, options, progress);
        }
        catch
        {
            checkpoint.Dispose();
            throw;
        }
    }

    private static void Check(DeepSeekV4Options options, DeepSeekV4Config config)
    {
        if (options.Rows is KvRowFormat.Fp8WithFp4Index or KvRowFormat.Fp8WithFp8Index && !config.CanRoundRows)
            throw new ArgumentException($"The widths of this model do not allow {options.Rows}: see {nameof(DeepSeekV4Config.CanRoundRows)}.", nameof(options));
        if (options.Rows != KvRowFormat.F32 && (options.WideRounding, options.WideIndexRounding) != (RowRounding.None, RowRounding.None))
            throw new ArgumentException($"{options.Rows} brings its rounding; another one is for F32 rows.", nameof(options));
    }

    public ModelInfo Info { get; }
    public IReadOnlyList<KvStateSpec> KvStates => _kinds.Specs;

    /// <summary>What its steps have to move and to compute at least.</summary>
    public DeepSeekV4Work Work { get; }

    /// <summary>What a model of this config will keep per sequence, known without its weights. <see cref="DeepSeekV4Config.DraftKind"/> counts.</summary>
    public static IReadOnlyList<KvStateSpec> KvStatesOf(DeepSeekV4Config config, KvRowFormat rows) => new Kinds(config, rows).Specs;

    public byte[] Identity()
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(JsonSerializer.SerializeToUtf8Bytes(_config));
        hash.AppendData(JsonSerializer.SerializeToUtf8Bytes(_options));
        hash.AppendData(_checkpoint.Digest());
        return hash.GetHashAndReset();
    }

    public void Forward(ForwardBatch batch)
    {
        if (batch.TokenCount == 0) return;
        bool draft = batch.NextTokenIds.IsPresent && _mtp is not null;
        _scratch.Reset();
        var a = new Activations(_scratch, _config, batch.TokenCount, batch.LogitsRows.D0, draft);
        PlanIfLarger(batch, a, draft);
        Compute(batch, a, draft);
    }

    // A batch larger in some dimension than any before is planned first: the same code, planned instead of run.
    private void PlanIfLarger(ForwardBatch batch, Activations a, bool draft)
    {
        var p = _planned;
        var (tokens, logits, pages) = (batch.TokenCount, batch.LogitsRows.D0, batch.Kv.Max(k => k.PageTable.D1));
        if (tokens <= p.Tokens && logits <= p.Logits && pages <= p.Pages && (!draft || p.Draft)) return;
        _stream.Plan(() => Compute(batch, a, draft));
        _planned = (Math.Max(tokens, p.Tokens), Math.Max(logits, p.Logits), Math.Max(pages, p.Pages), draft || p.Draft);
    }

    // One step, in the order of section 2.16.
    private void Compute(ForwardBatch batch, Activations a, bool draft)
    {
        _stream.Run(new Embed(batch.TokenIds, _embed, a.Streams)); // [T, S, d]: S copies
        foreach (var layer in _layers) Block(layer, batch, a, a.Streams);
        Logits(batch, a, a.Streams, _collapse, _norm, batch.Logits);
        if (draft) Draft(batch, a);
    }

    private void Block(Layer layer, ForwardBatch batch, Activations a, in Tensor streams)
    {
        Collapsed(layer.AttentionSite, streams, a);
        Attend(layer, batch, a);
        _stream.Run(new HyperConnectionPost(streams, a.Sublayer, a.Post, a.Combine, streams));
        Collapsed(layer.FeedForwardSite, streams, a);
        MixtureOfExperts(layer, batch, a);
        _stream.Run(new HyperConnectionPost(streams, a.Sublayer, a.Post, a.Combine, streams));
    }

    // 2.3: a.Hidden = RMSNorm(sum of pre_j X_j), a.Post and a.Combine for the way back.
    private void Collapsed(Site site, in Tensor streams, Activations a)
    {
        _stream.Run(new HyperConnectionPre(streams, site.Mix, site.Base, site.Scale, _config.NormEpsilon, _config.HcEpsilon,
            _config.HcSinkhornIterations, a.Hidden, a.Post, a.Combine));
        _stream.Run(new RmsNorm(a.Hidden, site.Norm, _config.NormEpsilon, a.Hidden));
    }

    private void Attend(Layer layer, ForwardBatch batch, Activations a)
    {
        var w = layer.Attention;
        var window = batch.Kv[_kinds.Window] with { Layer = layer.WindowOrdinal };

        // 2.4: queries through a low rank, one shared row per position.
        _stream.Run(new Linear(a.Hidden, w.QueryDown, a.QueryLowRank));
        _stream.Run(new RmsNorm(a.QueryLowRank, w.QueryNorm, _config.NormEpsilon, a.QueryLowRank)); // qr [T, q_lora]
        _stream.Run(new Linear(a.QueryLowRank, w.QueryUp, a.Query.As(a.T, _config.HeadCount * _config.HeadDim)));
        _stream.Run(new RmsNorm(a.Query, default, _config.NormEpsilon, a.Query)); // per head, [T, H, D]
        _stream.Run(new Rotate(a.Query, batch.Tokens.Position, layer.Rope, Inverse: false));
        _stream.Run(new Linear(a.Hidden, w.KeyValue, a.KeyValue)); // [T, D]
        _stream.Run(new KvInsert(a.KeyValue, w.KeyValueNorm, _config.NormEpsilon, batch.Tokens, layer.Rope, _rowRounding, window));

        PagedRows compressed = default;
        Tensor selected = default;
        if (layer.Compressor is { } compressor)
        {
            compressed = Compress(compressor, layer, batch, a, _rowRounding);
            if (layer.Indexer is { } indexer) selected = Select(indexer, layer, batch, a);
        }

        // 2.9
        _stream.Run(new Attention(a.Query, batch.Tokens, window, _config.SlidingWindow, compressed, layer.Ratio, selected,
            w.Sinks, (float)(1 / Math.Sqrt(_config.HeadDim)), a.Attended));
        _stream.Run(new Rotate(a.Attended, batch.Tokens.Position, layer.Rope, Inverse: true));
        int groupWidth = _config.HeadCount / _config.OutputGroups * _config.HeadDim;
        _stream.Run(new GroupedLinear(a.Attended.As(a.T, _config.OutputGroups, groupWidth), w.OutputDown, a.OutputLowRank));
        _stream.Run(new Linear(a.OutputLowRank.As(a.T, _config.OutputGroups * _config.OutputLowRank), w.OutputUp, a.Sublayer));
    }

    // 2.6: values and gates of this step's tokens into the state rows, finished blocks into compressed rows.
    private PagedRows Compress(Compressor c, Layer layer, ForwardBatch batch, Activations a, RowRounding rounding)
    {
        var (values, gates) = (Narrow(a.CompressorValues, c.Width), Narrow(a.CompressorGates, c.Width)); // [T, C]
        _stream.Run(new Linear(a.Hidden, c.Values, values));
        _stream.Run(new Linear(a.Hidden, c.Gates, gates));
        var rows = batch.Kv[c.RowsKind] with { Layer = c.Ordinal };
        var state = batch.Kv[c.StateKind] with { Layer = c.Ordinal };
        _stream.Run(new CompressorUpdate(values, gates, c.Ape, state, layer.Ratio, layer.Ratio == OverlapRatio, batch.Tokens,
            c.Norm, _config.NormEpsilon, layer.Rope, rounding, rows));
        return rows;
    }

    // [T, width], contiguous, at the start of a wider tensor's memory.
    private static Tensor Narrow(in Tensor t, int width) => Tensor.Create(t.Buffer, DType.F32, t.D0, width, t.ByteOffset);

    // 2.8: the index rows of this step come first, so that the row finished by a token can be picked by it.
    private Tensor Select(Indexer indexer, Layer layer, ForwardBatch batch, Activations a)
    {
        var rows = Compress(indexer.Compressor, layer, batch, a, _indexRounding);
        _stream.Run(new Linear(a.QueryLowRank, indexer.QueryUp, a.IndexQuery.As(a.T, _config.IndexHeadCount * _config.IndexHeadDim)));
        _stream.Run(new Linear(a.Hidden, indexer.HeadWeights, a.IndexHeadWeights)); // [T, index heads]
        float scale = (float)(1 / Math.Sqrt((double)_config.IndexHeadDim * _config.IndexHeadCount));
        _stream.Run(new IndexTopK(a.IndexQuery, a.IndexHeadWeights, scale, batch.Tokens, layer.Rope, _indexRounding, rows, layer.Ratio, a.Selected));
        return a.Selected;
    }

    // 2.10
    private void MixtureOfExperts(Layer layer, ForwardBatch batch, Activations a)
    {
        var w = layer.Experts;
        _stream.Run(new Linear(a.Hidden, w.Router, a.RouterLogits));
        _stream.Run(new Route(a.RouterLogits, RouterScoring.SqrtSoftplus, w.Bias, w.HashTable, batch.TokenIds, _config.RoutedScalingFactor,
            a.ExpertIds, a.ExpertWeights));
        _stream.Run(new Linear(a.Hidden, w.SharedGate, a.SharedGate));
        _stream.Run(new Linear(a.Hidden, w.SharedUp, a.SharedUp));
        _stream.Run(new SwiGlu(a.SharedGate, a.SharedUp, _config.SwigluLimit, a.SharedGate));
        _stream.Run(new Linear(a.SharedGate, w.SharedDown, a.Sublayer));
        _stream.Run(new ExpertGateUp(a.Hidden, a.ExpertIds, a.ExpertWeights, w.Gate, w.Up, _config.SwigluLimit, a.ExpertHidden));
        _stream.Run(new ExpertDownCombine(a.ExpertHidden, a.ExpertIds, w.Down, a.Sublayer, a.Sublayer));
    }

    // 2.11: collapse, norm, head; for the wanted tokens only.
    private void Logits(ForwardBatch batch, Activations a, in Tensor streams, Collapse collapse, in Tensor norm, in Tensor logits)
    {
        if (batch.LogitsRows.D0 == 0) return;
        var (gathered, hidden) = (a.LogitsStreams, a.LogitsHidden);
        _stream.Run(new GatherRows(streams, batch.LogitsRows, gathered));
        _stream.Run(new HyperConnectionHead(gathered, collapse.Mix, collapse.Base, collapse.Scale, _config.NormEpsilon, _config.HcEpsilon, hidden));
        _stream.Run(new RmsNorm(hidden, norm, _config.NormEpsilon, hidden));
        _stream.Run(new Linear(hidden, _head, logits));
    }

    // 2.12: Z[j] = e_proj norm(embed[next]) + h_proj norm(X[j]), one SWA block, its own collapse and norm, the shared head.
    private void Draft(ForwardBatch batch, Activations a)
    {
        var (mtp, d, streams) = (_mtp!, _config.HiddenSize, _config.HcMult);
        var embedded = a.DraftEmbedded; // [T, 1, d]
        _stream.Run(new Embed(batch.NextTokenIds, _embed, embedded));
        _stream.Run(new RmsNorm(embedded.As(a.T, d), mtp.EmbeddingNorm, _config.NormEpsilon, embedded.As(a.T, d)));
        _stream.Run(new Linear(embedded.As(a.T, d), mtp.EmbeddingProjection, a.Sublayer));
        _stream.Run(new RmsNorm(a.Streams, mtp.HiddenNorm, _config.NormEpsilon, a.DraftStreams));
        _stream.Run(new Linear(a.DraftStreams.As(a.T * streams, d), mtp.HiddenProjection, a.DraftProjected.As(a.T * streams, d)));
        // A hyper-connection with weights one and an identity mix is the sum: Z[j] = E + G[j].
        Repeat(a.Ones, streams, static _ => 1);
        Repeat(a.Identity, streams * streams, i => i / streams == i % streams ? 1 : 0);
        _stream.Run(new HyperConnectionPost(a.DraftProjected, a.Sublayer, a.Ones, a.Identity, a.DraftStreams));
        Block(mtp.Layer, batch, a, a.DraftStreams);
        Logits(batch, a, a.DraftStreams, mtp.Collapse, mtp.Norm, batch.DraftLogits);
    }

    // The same pattern for every token.
    private void Repeat(in Tensor tensor, int length, Func<int, float> pattern)
    {
        var values = new float[tensor.ElementCount];
        for (int i = 0; i < values.Length; i++) values[i] = pattern(i % length);
        _backend.Upload(MemoryMarshal.AsBytes(values.AsSpan()), tensor);
    }

    public void Dispose()
    {
        _scratch.Dispose();
        _stream.Dispose();
        _loader.Dispose();
        _checkpoint.Dispose();
    }

    // ---- weights ----

    /// <summary>The one ratio whose compressor overlaps and whose rows an indexer picks (1.3).</summary>
    private const int OverlapRatio = 4;

    private sealed record Site(PreparedWeight Mix, Tensor Base, Tensor Scale, Tensor Norm);
    private sealed record Collapse(PreparedWeight Mix, Tensor Base, Tensor Scale);
    private sealed record AttentionWeights(
        PreparedWeight QueryDown, Tensor QueryNorm, PreparedWeight QueryUp, PreparedWeight KeyValue, Tensor KeyValueNorm,
        PreparedWeight OutputDown, PreparedWeight OutputUp, Tensor Sinks);
    private sealed record Compressor(
        PreparedWeight Values, PreparedWeight Gates, Tensor Ape, Tensor Norm, int RowsKind, int StateKind, int Ordinal)
    {
        public int Width => Values.Rows;
    }
    private sealed record Indexer(PreparedWeight QueryUp, PreparedWeight HeadWeights, Compressor Compressor);
    private sealed record ExpertWeights(
        PreparedWeight Router, Tensor Bias, Tensor HashTable, PreparedWeight[] Gate, PreparedWeight[] Up, PreparedWeight[] Down,
        PreparedWeight SharedGate, PreparedWeight SharedUp, PreparedWeight SharedDown);
    private sealed record Layer(
        int Ratio, int WindowOrdinal, Rope Rope, Site AttentionSite, AttentionWeights Attention, Compressor? Compressor, Indexer? Indexer,
        Site FeedForwardSite, ExpertWeights Experts);
    private sealed record MtpBlock(
        PreparedWeight EmbeddingProjection, PreparedWeight HiddenProjection, Tensor EmbeddingNorm, Tensor HiddenNorm, Tensor Norm,
        Collapse Collapse, Layer Layer);

    private Layer LoadLayer(string p, int ratio, int index)
    {
        var (compressor, indexer) = ((Compressor?)null, (Indexer?)null);
        if (ratio > 0)
        {
            int ordinal = _kinds.Ordinal(ratio, index);
            compressor = LoadCompressor(p + "attn.compressor.", _kinds.Rows(ratio), _kinds.State(ratio), ordinal);
            if (ratio == OverlapRatio)
                indexer = new Indexer(_loader.Matrix(p + "attn.indexer.wq_b"), _loader.Matrix(p + "attn.indexer.weights_proj"),
                    LoadCompressor(p + "attn.indexer.compressor.", _kinds.IndexRows, _kinds.IndexState, ordinal));
        }
        return new Layer(ratio, index, RopeOf(ratio), LoadSite(p, "attn"), LoadAttention(p + "attn."), compressor, indexer,
            LoadSite(p, "ffn"), LoadExperts(p + "ffn.", hashed: index < Math.Min(_config.HashLayerCount, _config.LayerCount)));
    }

    private Site LoadSite(string p, string site) => new(_loader.RawMatrix($"{p}hc_{site}_fn"), _loader.F32($"{p}hc_{site}_base"),
        _loader.F32($"{p}hc_{site}_scale"), _loader.F32($"{p}{site}_norm.weight"));

    private Collapse LoadCollapse(string p) =>
        new(_loader.RawMatrix(p + "hc_head_fn"), _loader.F32(p + "hc_head_base"), _loader.F32(p + "hc_head_scale"));

    private AttentionWeights LoadAttention(string p) => new(
        _loader.Matrix(p + "wq_a"), _loader.F32(p + "q_norm.weight"), _loader.Matrix(p + "wq_b"), _loader.Matrix(p + "wkv"),
        _loader.F32(p + "kv_norm.weight"), _loader.Matrix(p + "wo_a"), _loader.Matrix(p + "wo_b"), _loader.F32(p + "attn_sink"));

    private Compressor LoadCompressor(string p, int rowsKind, int stateKind, int ordinal) => new(
        _loader.Matrix(p + "wkv"), _loader.Matrix(p + "wgate"), _loader.F32(p + "ape"), _loader.F32(p + "norm.weight"), rowsKind, stateKind, ordinal);

    private ExpertWeights LoadExperts(string p, bool hashed)
    {
        PreparedWeight[] Each(string name) =>
            [.. Enumerable.Range(0, _config.ExpertCount).Select(e => _loader.Matrix($"{p}experts.{e}.{name}"))];
        return new ExpertWeights(_loader.Matrix(p + "gate"),
            hashed ? default : _loader.F32(p + "gate.bias"),
            hashed ? _loader.Table(p + "gate.tid2eid", _config.ExpertCount) : default,
            Each("w1"), Each("w3"), Each("w2"),
            _loader.Matrix(p + "shared_experts.w1"), _loader.Matrix(p + "shared_experts.w3"), _loader.Matrix(p + "shared_experts.w2"));
    }

    private MtpBlock LoadMtp(string p) => new(
        _loader.Matrix(p + "e_proj"), _loader.Matrix(p + "h_proj"), _loader.F32(p + "enorm.weight"), _loader.F32(p + "hnorm.weight"),
        _loader.F32(p + "norm.weight"), LoadCollapse(p), LoadLayer(p, ratio: 0, index: _config.LayerCount));

    // 2.1: sliding-only layers and draft blocks rotate plainly; layers with a compressor use the other base with YaRN, for everything.
    private Rope RopeOf(int ratio)
    {
        if (_ropes.TryGetValue(ratio > 0, out var rope)) return rope;
        var yarn = _config.Yarn;
        float[] frequencies = ratio == 0 || yarn is null
            ? RopeFrequencies.Plain(ratio == 0 ? _config.RopeTheta : _config.CompressRopeTheta, _config.RopeHeadDim)
            : RopeFrequencies.Yarn(_config.CompressRopeTheta, _config.RopeHeadDim, yarn.Factor, yarn.BetaFast, yarn.BetaSlow, yarn.OriginalContext);
        return _ropes[ratio > 0] = new Rope(_loader.Constant(frequencies));
    }

    private readonly Dictionary<bool, Rope> _ropes = [];

    // ---- what is kept per sequence (3.1) ----

    /// <summary>The kinds of state of this config, and where each layer's lies.</summary>
    private sealed class Kinds
    {
        private readonly List<KvStateSpec> _specs = [];
        private readonly Dictionary<int, (int Rows, int State)> _byRatio = [];
        private readonly IReadOnlyList<int> _ratios;

        public Kinds(DeepSeekV4Config config, KvRowFormat rows)
        {
            _ratios = [.. config.CompressRatios.Take(config.LayerCount)];
            int d = config.HeadDim, index = config.IndexHeadDim;
            var row = DeepSeekV4KvSize.Row(config, rows);
            Window = Add(KvStateSpec.Window(
                "window", config.LayerCount + (config.DraftKind == DraftKind.Mtp ? 1 : 0), row, config.SlidingWindow, WindowPageRows));
            foreach (int ratio in _ratios.Where(r => r > 0).Distinct().Order())
            {
                int layers = _ratios.Count(r => r == ratio);
                bool overlap = ratio == OverlapRatio;
                _byRatio[ratio] = (
                    Add(KvStateSpec.All(overlap ? "csa-rows" : $"hca-rows-{ratio}", layers, row, ratio)),
                    Add(overlap
                        ? KvStateSpec.Chunk("csa-state", layers, 4 * d, ratio, chunksBefore: 1, OverlapStatePageRows)
                        : KvStateSpec.Chunk($"hca-state-{ratio}", layers, 2 * d, ratio, chunksBefore: 0, Math.Min(ratio, WindowPageRows))));
                if (!overlap) continue;
                IndexRows = Add(KvStateSpec.All("index-rows", layers, DeepSeekV4KvSize.IndexRow(config, rows), ratio));
                IndexState = Add(KvStateSpec.Chunk("index-state", layers, 4 * index, ratio, chunksBefore: 1, OverlapStatePageRows));
            }
        }

        public IReadOnlyList<KvStateSpec> Specs => _specs;
        public int Window { get; }
        public int IndexRows { get; }
        public int IndexState { get; }
        public int Rows(int ratio) => _byRatio[ratio].Rows;
        public int State(int ratio) => _byRatio[ratio].State;

        /// <summary>Ordinal of a layer among those of its ratio.</summary>
        public int Ordinal(int ratio, int layer) => _ratios.Take(layer).Count(r => r == ratio);

        private int Add(KvStateSpec spec)
        {
            _specs.Add(spec);
            return _specs.Count - 1;
        }
    }

    // ---- activations of one step ----

    private sealed class Activations(ScratchArena scratch, DeepSeekV4Config c, int t, int logits, bool draft)
    {
        public readonly int T = t;
        public readonly Tensor Streams = scratch.F32(t, c.HcMult, c.HiddenSize);
        public readonly Tensor Hidden = scratch.F32(t, c.HiddenSize), Sublayer = scratch.F32(t, c.HiddenSize);
        public readonly Tensor Post = scratch.F32(t, c.HcMult), Combine = scratch.F32(t, c.HcMult, c.HcMult);
        public readonly Tensor QueryLowRank = scratch.F32(t, c.QueryLowRank), KeyValue = scratch.F32(t, c.HeadDim);
        public readonly Tensor Query = scratch.F32(t, c.HeadCount, c.HeadDim), Attended = scratch.F32(t, c.HeadCount, c.HeadDim);
        public readonly Tensor OutputLowRank = scratch.F32(t, c.OutputGroups, c.OutputLowRank);
        public readonly Tensor CompressorValues = scratch.F32(t, 2 * c.HeadDim), CompressorGates = scratch.F32(t, 2 * c.HeadDim);
        public readonly Tensor IndexQuery = scratch.F32(t, c.IndexHeadCount, c.IndexHeadDim);
        public readonly Tensor IndexHeadWeights = scratch.F32(t, c.IndexHeadCount), Selected = scratch.I32(t, c.IndexTopK);
        public readonly Tensor RouterLogits = scratch.F32(t, c.ExpertCount);
        public readonly Tensor ExpertIds = scratch.I32(t, c.ExpertsPerToken), ExpertWeights = scratch.F32(t, c.ExpertsPerToken);
        public readonly Tensor ExpertHidden = scratch.F32(t, c.ExpertsPerToken, c.ExpertIntermediateSize);
        public readonly Tensor SharedGate = scratch.F32(t, c.SharedIntermediateSize), SharedUp = scratch.F32(t, c.SharedIntermediateSize);
        public readonly Tensor LogitsStreams = scratch.F32(logits, c.HcMult, c.HiddenSize), LogitsHidden = scratch.F32(logits, c.HiddenSize);
        public readonly Tensor DraftEmbedded = scratch.F32(draft ? t : 0, 1, c.HiddenSize);
        public readonly Tensor DraftStreams = scratch.F32(draft ? t : 0, c.HcMult, c.HiddenSize);
        public readonly Tensor DraftProjected = scratch.F32(draft ? t : 0, c.HcMult, c.HiddenSize);
        public readonly Tensor Ones = scratch.F32(draft ? t : 0, c.HcMult), Identity = scratch.F32(draft ? t : 0, c.HcMult, c.HcMult);
    }
}

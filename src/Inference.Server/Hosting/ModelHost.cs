using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Reference;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Options;

namespace Inference.Server.Hosting;

/// <summary>
/// Makes a <see cref="ServedModel"/> of a model folder: backend, weights, tokenizer, chat encoding, engine. Every verb that needs a model comes
/// here; this is the only file of the product that names a backend's class.
/// </summary>
internal static class ModelHost
{
    private const int DefaultMaxTokens = 4096;

    // Full contexts that the cache holds when its size is automatic.
    private const int AutomaticContexts = 4;

    // Of random weights: the same on every machine, and what `synthesize` writes when nothing else is asked for.
    private const ulong DummySeed = 1;

    /// <summary>What <c>EngineHost</c> calls in the background; logs how far it is, and stops when told to.</summary>
    public static Func<ILoggerFactory, CancellationToken, Task<ServedModel>> Loader(ModelOptions options) => (loggers, cancel) =>
    {
        var logger = loggers.CreateLogger<EngineHost>();
        ServerLog.Loading(logger, options.FolderOrEmbedded);
        if (options.Dummy) ServerLog.DummyWeights(logger, options.FolderOrEmbedded);
        return Task.FromResult(Load(options, loggers, TimeProvider.System, new LoadProgressLog(logger, cancel)));
    };

    /// <summary>Loads everything; the engine is made but not started.</summary>
    /// <param name="progress">Told after each tensor, on the loading thread; may throw to stop.</param>
    /// <exception cref="ModelLoadException">The folder or its weights cannot be used.</exception>
    /// <exception cref="EngineOptionsException">An option does not fit this model.</exception>
    public static ServedModel Load(
        ModelOptions options, ILoggerFactory loggers, TimeProvider time, IProgress<LoadProgress>? progress = null)
    {
        string folder = options.FolderOrEmbedded;
        var defaults = GenerationDefaults.Read(folder);
        var tokenizer = options.Dummy ? TokenizerFactory.Find(folder) : TokenizerFactory.Load(folder);
        var backend = Backend(options);
        try
        {
            var (model, config, weightBytes) = LoadModel(folder, backend, config => RowFormat(options.KvFormat, config), progress, options.Dummy);
            try
            {
                return Serve(options, folder, defaults, tokenizer ?? DummyTokenizer.Of(config.VocabSize), ChatEncodings.For(config), backend, model, weightBytes, loggers, time);
            }
            catch
            {
                model.Dispose();
                throw;
            }
        }
        catch
        {
            backend.Dispose();
            throw;
        }
    }

    /// <summary>Loads a folder's weights: for verbs that drive a model themselves, without engine and tokenizer.</summary>
    /// <param name="rows">How cached rows are stored; null = F32: exact arithmetic.</param>
    /// <param name="dummy">Random weights made in memory instead of those of the folder, which needs none.</param>
    /// <exception cref="ModelLoadException">The folder or its weights cannot be used.</exception>
    public static (DeepSeekV4 Model, DeepSeekV4Config Config, long WeightBytes) LoadModel(
        string folder, IBackend backend, Func<DeepSeekV4Config, KvRowFormat>? rows = null, IProgress<LoadProgress>? progress = null,
        bool dummy = false)
    {
        var opened = ModelFolder.Open(folder);
        var config = DeepSeekV4Config.Read(opened);
        var modelOptions = new DeepSeekV4Options(rows?.Invoke(config) ?? KvRowFormat.F32);
        var checkpoint = dummy ? DummyWeights(opened, config) : Checkpoint.Open(folder);
        long bytes = checkpoint.ByteLength;
        return (DeepSeekV4.Load(config, checkpoint, backend, modelOptions, progress), config, bytes);
    }

    // In the precision that the config names; the draft module as far as the config tells of one.
    private static Checkpoint DummyWeights(ModelFolder folder, DeepSeekV4Config config) =>
        new DeepSeekV4Synthesis(config, SyntheticConfig.StorageOf(folder.ConfigFile, folder.ConfigJson), DummySeed, folder.ConfigFile)
            .InMemory(folder.FolderPath, CancellationToken.None);

    /// <summary>Serving computes what the model was trained to compute (family description 2.0, level P), and stores rows accordingly.</summary>
    /// <exception cref="OptionsException">A format is asked for that the model's widths do not allow.</exception>
    internal static KvRowFormat RowFormat(KvRowFormat? asked, DeepSeekV4Config config)
    {
        if (asked is null) return config.TrainedWithRounding && config.CanRoundRows ? KvRowFormat.Fp8WithFp4Index : KvRowFormat.F32;
        if (asked is KvRowFormat.Fp8WithFp4Index or KvRowFormat.Fp8WithFp8Index && !config.CanRoundRows)
            throw new OptionsException([
                $"{Settings.KvFormat.CommandLine} {KvRowFormats.Names[asked.Value]}: rows of {config.HeadDim} channels, {config.RopeHeadDim} of "
                + $"them rotated, and index rows of {config.IndexHeadDim} do not divide into blocks of 64 and 32; take f32, bf16 or auto"]);
        return asked.Value;
    }

    /// <summary>Puts a loaded model's parts together with an engine.</summary>
    public static ServedModel Serve(
        ModelOptions options, string folder, GenerationDefaults defaults, ModelTokenizer tokenizer, DeepSeekV4ChatEncoding? chat, IBackend backend,
        IModel model, long weightBytes, ILoggerFactory loggers, TimeProvider time)
    {
        var engineOptions = new EngineOptions
        {
            KvCapacityBytes = options.KvCacheBytes ?? AutomaticCacheBytes(options, backend, model, weightBytes),
            ReservedBytes = weightBytes,
            ContextMax = options.ContextMax,
            SequencesMax = options.SequencesMax,
            StepTokensMax = Math.Max(options.StepTokensMax, options.SequencesMax),
            PrefixesMax = options.PrefixesMax,
            SharePrefixes = options.SharePrefixes,
            Disk = options.KvDisk is { } disk ? new KvDiskOptions(disk, options.KvDiskBytes) : null,
            QueueMax = options.QueueMax,
            QueueTokensMax = options.QueueTokensMax,
            TenantWeights = options.TenantWeights,
            PriorityAhead = options.PriorityAhead,
        };
        var engine = new InferenceEngine(model, backend, tokenizer, engineOptions, time, loggers.CreateLogger<InferenceEngine>());
        return new ServedModel
        {
            Name = options.Name ?? Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(folder))),
            Defaults = defaults,
            DefaultMaxTokens = options.DefaultMaxTokens ?? defaults.MaxTokens ?? DefaultMaxTokens,
            DefaultThinking = chat is not null && (options.DefaultThinking ?? options.Folder is not null),
            Tokenizer = tokenizer,
            Chat = chat,
            Backend = backend,
            Model = model,
            Engine = engine,
            Sessions = new KvSessions(engine, time),
            ContextMax = Math.Min(engine.Options.ContextMax ?? model.Info.ContextMax, CacheTokensMax(model, engine) + 1),
        };
    }

    /// <summary>Most positions that one sequence can have in the cache. (The last token of an answer is never put there.)</summary>
    private static int CacheTokensMax(IModel model, InferenceEngine engine) => model.KvStates.Zip(engine.Stats.Kv)
        .Where(k => k.First.Retention == KvRetention.All)
        .Select(k => (int)Math.Min((long)k.Second.TotalPages * k.First.PageTokens, int.MaxValue - 1))
        .DefaultIfEmpty(int.MaxValue - 1).Min();

    /// <summary>Enough for a few full contexts, as far as memory allows: all of the memory would be too much on a machine that does other work.</summary>
    private static long AutomaticCacheBytes(ModelOptions options, IBackend backend, IModel model, long weightBytes)
    {
        long tokens = Math.Clamp((long)AutomaticContexts * (options.ContextMax ?? model.Info.ContextMax), KvStateSpec.BlockTokens, int.MaxValue / 2);
        var capacity = new KvCapacity(
            (int)tokens, options.SequencesMax, Math.Max(options.StepTokensMax, options.SequencesMax), EngineOptions.PrefixesAutomatic);
        long wanted = capacity.BytesOf(model.KvStates);
        return Math.Min(wanted, Math.Max(0, backend.Info.MemoryBytes - weightBytes) / 10 * 9);
    }

    /// <summary>Measures what the machine of a backend can do; null where nothing of ours can.</summary>
    public static DevicePeaks? Peaks(IBackend backend) => backend is CpuBackend cpu ? new Peaks(cpu.Threads) : null;

    /// <summary>The backend that <see cref="ModelOptions.Backend"/> asks for; auto is the fastest one that is right for this machine.</summary>
    public static IBackend Backend(ModelOptions options) => options.Backend switch
    {
        "reference" => new ReferenceBackend(),
        "auto" or "cpu" => new CpuBackend(options.Threads ?? 0),
        _ => throw new OptionsException([$"{Settings.Backend.CommandLine}: there is no backend '{options.Backend}'."]),
    };
}

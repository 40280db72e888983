using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// What is in a model folder, read from config and headers: the weight files are mapped and never touched. Looks at every part even when
/// another is broken, so that one look finds all problems.
/// </summary>
internal sealed class ModelInspection
{
    private readonly List<string> _problems = [];
    private readonly KvRowFormat? _asked;

    private ModelInspection(string folder, KvRowFormat? asked) => (Folder, _asked) = (folder, asked);

    public string Folder { get; }

    /// <summary>Null when config.json cannot be used; with the draft kind of the weights once these were found.</summary>
    public DeepSeekV4Config? Config { get; private set; }

    /// <summary>Null when the weights cannot be used.</summary>
    public ModelSummary? Summary { get; private set; }

    /// <summary>Weight files; empty when they cannot be used.</summary>
    public IReadOnlyList<string> WeightFiles { get; private set; } = [];

    /// <summary>Null when the folder brings none, or a broken one.</summary>
    public ModelTokenizer? Tokenizer { get; private set; }

    /// <summary>Whatever is wrong, each with its way out.</summary>
    public IReadOnlyList<string> Problems => _problems;

    /// <summary>How serving would store cached rows; F32 without a config.</summary>
    public KvRowFormat Format { get; private set; }

    /// <summary>The formats that the model's widths allow.</summary>
    public IEnumerable<KvRowFormat> Formats =>
        KvRowFormats.Names.Keys.Where(f => Config is { CanRoundRows: true } || f is KvRowFormat.F32 or KvRowFormat.BF16);

    /// <summary>Kinds of state that a sequence keeps, its rows stored as <see cref="Format"/>; empty without a config.</summary>
    public IReadOnlyList<KvStateSpec> KvStates => KvStatesIn(Format);

    public IReadOnlyList<KvStateSpec> KvStatesIn(KvRowFormat format) => Config is null ? [] : DeepSeekV4.KvStatesOf(Config, format);

    /// <summary>Memory that one sequence of so many tokens has of a kind of state, in bytes of its pages.</summary>
    public static long BytesOf(KvStateSpec state, int context) => state.PageBytes * state.PagesHeld(context - 1, context);

    /// <summary>That of the kinds that grow with the context, and that of the others.</summary>
    public static (long Rows, long Constant) KvBytes(IReadOnlyList<KvStateSpec> states, int context) =>
        (states.Where(s => s.Retention == KvRetention.All).Sum(s => BytesOf(s, context)),
            states.Where(s => s.Retention != KvRetention.All).Sum(s => BytesOf(s, context)));

    /// <param name="format">How cached rows shall be stored; null = as serving would store them.</param>
    /// <exception cref="OptionsException">The model's widths do not allow that format.</exception>
    public static ModelInspection Of(string folder, KvRowFormat? format = null)
    {
        var inspection = new ModelInspection(folder, format);
        if (Directory.Exists(folder)) inspection.Look();
        else inspection.Try(() => ModelFolder.Open(folder));
        return inspection;
    }

    private void Look()
    {
        Try(() => Config = DeepSeekV4Config.Read(ModelFolder.Open(Folder)));
        if (Config is not null) Format = ModelHost.RowFormat(_asked, Config);
        Checkpoint? checkpoint = null;
        Try(() => checkpoint = Checkpoint.Open(Folder));
        if (checkpoint is not null)
        {
            WeightFiles = [.. checkpoint.Files];
            if (Config is not null) Try(() => Bind(Config, checkpoint));
            checkpoint.Dispose();
        }
        Try(() => Tokenizer = TokenizerFactory.Find(Folder));
        Try(() => GenerationDefaults.Read(Folder));
    }

    private void Bind(DeepSeekV4Config config, Checkpoint checkpoint)
    {
        var weights = DeepSeekV4Checkpoint.Bind(config, checkpoint);
        (Config, Summary) = (weights.Config, DeepSeekV4Checkpoint.Summarise(weights));
    }

    private void Try(Action look)
    {
        try
        {
            look();
        }
        catch (Exception e) when (Fault.Of(e, CancellationToken.None).ExitCode == Verb.BadInput)
        {
            _problems.Add(e.Message);
        }
    }
}

using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;

namespace Inference.Server.Commands;

/// <summary>
/// What is in a model folder, read from config and headers: the weight files are mapped and never touched. Looks at every part even when
/// another is broken, so that one look finds all problems.
/// </summary>
internal sealed class ModelInspection
{
    private readonly List<string> _problems = [];

    private ModelInspection(string folder) => Folder = folder;

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

    /// <summary>Kinds of state that a sequence keeps; empty without a config.</summary>
    public IReadOnlyList<KvStateSpec> KvStates => Config is null ? [] : DeepSeekV4.KvStatesOf(Config, KvRowFormat.F32);

    /// <summary>KV memory of one sequence of so many tokens, in bytes of its pages.</summary>
    public long KvBytes(int context) => KvStates.Sum(s => s.PageBytes * s.PagesHeld(context - 1, context));

    public static ModelInspection Of(string folder)
    {
        var inspection = new ModelInspection(folder);
        if (Directory.Exists(folder)) inspection.Look();
        else inspection.Try(() => ModelFolder.Open(folder));
        return inspection;
    }

    private void Look()
    {
        Try(() => Config = DeepSeekV4Config.Read(ModelFolder.Open(Folder)));
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

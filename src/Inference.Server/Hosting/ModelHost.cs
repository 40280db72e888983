using Inference.Backends;
using Inference.Backends.Reference;
using Inference.Server.Options;

namespace Inference.Server.Hosting;

/// <summary>
/// Makes a <see cref="ServedModel"/> of a model folder: backend, weights, tokenizer, chat encoding, engine. Every verb that needs a model comes
/// here; this is the only file of the product that names a backend's class.
/// </summary>
internal static class ModelHost
{
    /// <summary>The model that ships with the server.</summary>
    public static string EmbeddedFolder => Path.Combine(AppContext.BaseDirectory, "models", "pebble");

    /// <summary>What <c>EngineHost</c> calls in the background.</summary>
    public static Func<ILoggerFactory, CancellationToken, Task<ServedModel>> Loader(ModelOptions options) =>
        (loggers, cancel) => Task.FromResult(Load(options, loggers, TimeProvider.System, cancel));

    /// <summary>Loads everything; the engine is made but not started.</summary>
    /// <exception cref="Exception">Typed by what is wrong: the folder, the weights, the tokenizer, the options.</exception>
    public static ServedModel Load(ModelOptions options, ILoggerFactory loggers, TimeProvider time, CancellationToken cancel = default)
    {
        string folder = options.Folder ?? EmbeddedFolder;
        _ = GenerationDefaults.Read(folder);
        _ = Backend(options);
        throw new NotSupportedException("Loading the model is wired when the family's file is there.");
    }

    /// <summary>The backend that <see cref="ModelOptions.Backend"/> asks for.</summary>
    public static IBackend Backend(ModelOptions options) => options.Backend switch
    {
        "reference" => new ReferenceBackend(),
        _ => throw new OptionsException([$"{Settings.Backend.CommandLine}: '{options.Backend}' is not built in yet; use reference."]),
    };
}

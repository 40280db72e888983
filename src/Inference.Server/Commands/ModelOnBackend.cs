using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>A model without engine and tokenizer, for verbs that drive it themselves. Owns both parts.</summary>
internal sealed record ModelOnBackend(string Folder, DeepSeekV4 Model, IBackend Backend) : IDisposable
{
    /// <param name="asServed">Cached rows are stored as serving would; else as F32: exact arithmetic.</param>
    /// <exception cref="ModelLoadException">The folder is no model that this build serves, or its weights are damaged.</exception>
    public static ModelOnBackend Load(ModelOptions options, bool asServed = false)
    {
        string folder = options.FolderOrEmbedded;
        var backend = ModelHost.Backend(options);
        try
        {
            using var progress = new LoadProgressLine();
            return new ModelOnBackend(folder, ModelHost.LoadModel(folder, backend, asServed ? c => ModelHost.RowFormat(options.KvFormat, c) : null, progress, options.Dummy).Model, backend);
        }
        catch
        {
            backend.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        Model.Dispose();
        Backend.Dispose();
    }
}

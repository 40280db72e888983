using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>A model without engine and tokenizer, for verbs that drive it themselves. Owns both parts.</summary>
internal sealed record ModelOnBackend(string Folder, IModel Model, IBackend Backend) : IDisposable
{
    /// <param name="asServed">Cached rows are rounded as serving would; else arithmetic is exact.</param>
    /// <exception cref="ModelLoadException">The folder is no model that this build serves, or its weights are damaged.</exception>
    public static ModelOnBackend Load(ModelOptions options, bool asServed = false)
    {
        string folder = options.FolderOrEmbedded;
        var backend = ModelHost.Backend(options);
        try
        {
            using var progress = new LoadProgressLine();
            return new ModelOnBackend(folder, ModelHost.LoadModel(folder, backend, c => asServed && ModelHost.Rounding(options, c), progress, options.Dummy).Model, backend);
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

using Inference.Backends;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>A model without engine and tokenizer, for verbs that drive it themselves. Owns both parts.</summary>
internal sealed record ModelOnBackend(string Folder, IModel Model, IBackend Backend) : IDisposable
{
    /// <exception cref="ModelLoadException">The folder is no model that this build serves, or its weights are damaged.</exception>
    public static ModelOnBackend Load(ModelOptions options)
    {
        string folder = options.Folder ?? ModelHost.EmbeddedFolder;
        var backend = ModelHost.Backend(options);
        try
        {
            using var progress = new LoadProgressLine();
            return new ModelOnBackend(folder, ModelHost.LoadModel(folder, backend, progress: progress).Model, backend);
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

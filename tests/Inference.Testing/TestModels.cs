using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Inference.Runtime.Models;
using Inference.Runtime.Weights;

namespace Inference.Testing;

/// <summary>Models for tests on each backend that runs on the processor.</summary>
public static class TestModels
{
    /// <summary>Backends that every model test runs on.</summary>
    public static IReadOnlyList<string> BackendNames { get; } = ["reference", "cpu"];

    /// <summary>A backend whose fresh memory is poisoned, so that reading what nobody wrote shows.</summary>
    public static IBackend CreateBackend(string name) => name switch
    {
        "reference" => new ReferenceBackend(poison: true),
        "cpu" => new CpuBackend(),
        _ => throw new ArgumentException($"no backend {name}"),
    };

    /// <summary>F32 rows with the rounding that the goldens of level Q were made with: rotary channels as they are.</summary>
    public static DeepSeekV4Options Rounded { get; } = new(KvRowFormat.F32, RowRounding.Fp8Block64, RowRounding.HadamardFp4Block32);

    /// <summary>A tiny model with computed weights; dequantised: the values that its storage means, written as F32.</summary>
    public static LoadedModel Load(TinyDeepSeekV4 config, string backend, DeepSeekV4Options? options = null, bool dequantised = false)
    {
        using var folder = new TemporaryFolder();
        config.Write(folder.Path, dequantised);
        return Load(folder.Path, backend, options);
    }

    /// <summary>The model of a folder.</summary>
    public static LoadedModel Load(string folder, string backendName, DeepSeekV4Options? options = null)
    {
        var backend = CreateBackend(backendName);
        var config = DeepSeekV4Config.Read(ModelFolder.Open(folder));
        var model = DeepSeekV4.Load(config, Checkpoint.Open(folder), backend, options ?? new DeepSeekV4Options());
        return new LoadedModel(model, backend);
    }
}

/// <summary>A model and the backend it runs on; disposing ends both.</summary>
public sealed record LoadedModel(IModel Model, IBackend Backend) : IDisposable
{
    public void Dispose()
    {
        Model.Dispose();
        Backend.Dispose();
    }
}

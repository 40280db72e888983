using Grpc.Health.V1;
using Grpc.HealthCheck;

namespace Inference.Server.Hosting;

/// <summary>
/// Tells grpc.health.v1 what the engine says: SERVING while requests are accepted and the engine gets on, NOT_SERVING otherwise. The empty name and every
/// service of ours report the same.
/// </summary>
internal sealed class HealthReporter
{
    /// <summary>What can be asked for, besides the whole server.</summary>
    public static readonly IReadOnlyList<string> Services =
        [V1.Completions.Descriptor.FullName, V1.Tokenization.Descriptor.FullName, V1.Models.Descriptor.FullName];

    private readonly HealthServiceImpl _health;

    public HealthReporter(EngineHost engine, HealthServiceImpl health)
    {
        _health = health;
        engine.StateChanged += Report;
        Report(engine.State);

        void Report(ServingState state) => Set(state == ServingState.Serving && !engine.IsStuck);
    }

    private void Set(bool serving)
    {
        var status = serving ? HealthCheckResponse.Types.ServingStatus.Serving : HealthCheckResponse.Types.ServingStatus.NotServing;
        _health.SetStatus("", status);
        foreach (string service in Services) _health.SetStatus(service, status);
    }
}

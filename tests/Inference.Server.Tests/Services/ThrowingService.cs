using Inference.Server.Hosting;
using Inference.Server.Services;
using Microsoft.Extensions.DependencyInjection;

namespace Inference.Server.Tests.Services;

/// <summary>Makes the models service fail as a bug would: its dependencies cannot be made.</summary>
internal static class ThrowingService
{
    public static void Add(IServiceCollection services) =>
        services.AddTransient<ModelsService>(_ => throw new InvalidOperationException("secret at 0x7f00 in /srv/secret"));
}

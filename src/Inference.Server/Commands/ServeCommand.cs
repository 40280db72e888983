using System.CommandLine;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary><c>inference serve</c>: loads the model and answers calls until a signal ends it.</summary>
internal static class ServeCommand
{
    public const string Name = "serve";

    public static Command Create()
    {
        var command = new Command(Name, "Serve a model over gRPC.");
        var settings = new SettingOptions(command, Settings.All);
        command.SetAction((parsed, _) => RunAsync(settings.Reader(parsed)));
        return command;
    }

    private static async Task<int> RunAsync(OptionsReader reader)
    {
        var options = reader.ReadServer();
        var server = ServerHost.Build(options, ModelHost.Loader(options.Model));
        server.LogSettings(reader.UnknownEnvironmentVariables());
        return await server.RunAsync();
    }
}

using System.CommandLine;

namespace Inference.Server.Commands;

/// <summary>
/// The verbs of the program, one file each in this folder: a static class with a <c>Create</c> that returns its command. A new verb adds its
/// file and its line here.
/// </summary>
internal static class Verbs
{
    public static RootCommand Root() => new RootCommand("Serves open mixture-of-experts language models over gRPC.")
    {
        ServeCommand.Create(),
        RunCommand.Create(),
        ChatCommand.Create(),
        BenchCommand.Create(),
        ScoreCommand.Create(),
        RenderCommand.Create(),
        ParseCommand.Create(),
        TokenizeCommand.Create(),
        InspectCommand.Create(),
    }.WithExamplesInHelp();
}

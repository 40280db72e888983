using System.CommandLine;

namespace Inference.Server.Commands;

/// <summary>
/// The verbs of the program, one file each in this folder: a static class with a <c>Create</c> that returns its command. A new verb adds its
/// file and its line here.
/// </summary>
internal static class Verbs
{
    /// <summary>Reads a command line. There are no response files: a prompt may begin with @.</summary>
    public static ParseResult Parse(IReadOnlyList<string> arguments) =>
        Root().Parse(arguments, new ParserConfiguration { ResponseFileTokenReplacer = null });

    public static RootCommand Root()
    {
        var root = new RootCommand("Serves open mixture-of-experts language models over gRPC.")
        {
            Serve(),
            RunCommand.Create(),
            ChatCommand.Create(),
            BenchCommand.Create(),
            InspectCommand.Create(),
            ScoreCommand.Create(),
            TokenizeCommand.Create(),
            RenderCommand.Create(),
            ParseCommand.Create(),
            SynthesizeCommand.Create(),
        };
        root.HasExamples("inference serve", "inference run 'What are you?'", "inference chat", "inference inspect my-model");
        return root.WithExamplesInHelp();
    }

    private static Command Serve()
    {
        var serve = ServeCommand.Create();
        serve.HasExamples(
            "inference serve",
            "inference serve --model my-model --listen 127.0.0.1:50051 --kv-cache-bytes 16GiB",
            "inference serve --model my-model --tls-listen 0.0.0.0:443 --tls-certificate cert.pem --tls-key key.pem",
            "INFERENCE_MODEL=my-model inference serve --log-format json");
        return serve;
    }
}

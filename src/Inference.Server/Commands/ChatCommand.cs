using System.CommandLine;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary><c>inference chat</c>: a conversation at the terminal, or one read from standard input line by line.</summary>
internal static class ChatCommand
{
    public const string Name = "chat";

    public static Command Create()
    {
        var thinking = new Option<bool>("--thinking") { Description = "Let the model reason before it answers." };
        var system = new Option<string?>("--system") { Description = "System text.", HelpName = "text" };
        var tools = new Option<string?>("--tools")
        {
            Description = "JSON file with the tools that the model may call; you are asked for their results.",
            HelpName = "file",
        };
        var file = new Option<string?>("--file") { Description = "UTF-8 text to talk about; it stands before the first question.", HelpName = "file" };
        var command = new Command(Name, "Talk with the model.") { thinking, system, tools, file };
        var generation = new GenerationArguments(command);
        var settings = new SettingOptions(command, Settings.OfLocalModel);
        command.HasExamples(
            "inference chat",
            "inference chat --file book.txt",
            "inference chat --thinking --system 'You are brief.'",
            "printf 'What are you?\\n/stats\\n' | inference chat");
        command.Runs(async (parsed, cancel) =>
        {
            var definitions = ToolsFile.Read(parsed.GetValue(tools));
            if (parsed.GetValue(file) == "-") throw new InputException("--file: standard input is where the questions come from; give a file.");
            string? text = parsed.GetValue(file) is { } path ? InputFile.TextToAskAbout(path) : null;
            await using var model = await LocalModel.StartAsync(settings.Reader(parsed).ReadModel(), cancel);
            var session = new ChatSession(model, generation.Read(parsed), definitions)
            {
                System = parsed.GetValue(system),
                Thinking = parsed.GetValue(thinking),
                About = text is null ? null : new TextReading(model, text),
            };
            model.ShowsPrefill = true;
            using var loop = new ChatLoop(model, session);
            await loop.RunAsync();
            return Verb.Done;
        });
        return command;
    }
}

using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.Runtime.CompilerServices;

namespace Inference.Server.Commands;

/// <summary>
/// What the verbs of a user at a terminal have in common: exit codes, faults as plain lines on standard error, help with examples. Standard output
/// carries results and nothing else. (<c>serve</c> answers to service managers and has exit codes of its own.)
/// </summary>
internal static class Verb
{
    public const int Done = 0;
    /// <summary>The input was right and the work failed.</summary>
    public const int Failed = 1;
    /// <summary>The command line, a file it names or the model folder is wrong.</summary>
    public const int BadInput = 2;
    /// <summary>Ended by Ctrl-C.</summary>
    public const int Interrupted = 130;

    private static readonly ConditionalWeakTable<Command, string[]> Examples = [];

    /// <summary>What the verb does; every fault becomes lines on standard error and an exit code.</summary>
    public static void Runs(this Command command, Func<ParseResult, CancellationToken, Task<int>> run) =>
        command.SetAction(async (parsed, cancel) =>
        {
            try
            {
                // On another thread, so that Ctrl-C reaches a verb that computes without a pause.
                return await Task.Run(() => run(parsed, cancel), CancellationToken.None);
            }
            catch (Exception e)
            {
                return Report(Fault.Of(e, cancel));
            }
        });

    /// <summary>Command lines shown at the end of the verb's help.</summary>
    public static void HasExamples(this Command command, params string[] lines) => Examples.Add(command, lines);

    /// <summary>The command line is not right: what is wrong with it, and where help is.</summary>
    public static int ReportParseErrors(ParseResult parsed)
    {
        var command = parsed.CommandResult.Command;
        if (command is RootCommand && parsed.UnmatchedTokens.Count > 0)
            return Report(new Fault(BadInput, [
                $"There is no verb '{parsed.UnmatchedTokens[0]}'; there are {string.Join(", ", command.Subcommands.Select(c => c.Name))}.",
                "'inference --help' shows what they do."]));
        string verb = command is RootCommand ? "inference" : $"inference {command.Name}";
        return Report(new Fault(BadInput, [.. parsed.Errors.Select(e => e.Message.TrimEnd('.') + "."), $"'{verb} --help' shows what it takes."]));
    }

    /// <summary>Makes <c>--help</c> show the examples.</summary>
    public static RootCommand WithExamplesInHelp(this RootCommand root)
    {
        var help = root.Options.OfType<HelpOption>().Single();
        help.Action = new HelpWithExamples((HelpAction)help.Action!);
        return root;
    }

    private static int Report(Fault fault)
    {
        for (int i = 0; i < fault.Lines.Count; i++)
            Console.Error.WriteLine(i == 0 ? $"error: {fault.Lines[i]}" : $"       {fault.Lines[i]}");
        return fault.ExitCode;
    }

    private sealed class HelpWithExamples(HelpAction help) : SynchronousCommandLineAction
    {
        public override bool ClearsParseErrors => true;

        public override int Invoke(ParseResult parsed)
        {
            help.Invoke(parsed);
            if (!Examples.TryGetValue(parsed.CommandResult.Command, out var lines)) return Done;
            var output = parsed.InvocationConfiguration.Output;
            output.WriteLine("Examples:");
            foreach (string line in lines) output.WriteLine("  " + line);
            output.WriteLine();
            return Done;
        }
    }
}

// The process `inference`: parses the command line, runs one verb, and turns the faults an operator can mend into plain lines.
using System.CommandLine;
using System.CommandLine.Invocation;
using Inference.Server.Commands;
using Inference.Server.Hosting;
using Inference.Server.Options;

var parsed = Verbs.Parse(args.Length == 0 ? ["--help"] : args);
if (parsed.Action is ParseErrorAction) return Verb.ReportParseErrors(parsed);

// serve and chat handle signals themselves: requests are to end first, Ctrl-C is to stop an answer. run may have much to save when it is stopped.
var configuration = new InvocationConfiguration { EnableDefaultExceptionHandler = false };
if (parsed.CommandResult.Command.Name is ServeCommand.Name or ChatCommand.Name) configuration.ProcessTerminationTimeout = null;
if (parsed.CommandResult.Command.Name == RunCommand.Name) configuration.ProcessTerminationTimeout = RunCommand.SaveLimit;
try
{
    return await parsed.InvokeAsync(configuration);
}
catch (OptionsException e)
{
    foreach (string fault in e.Errors) await Console.Error.WriteLineAsync(fault);
    return ExitCode.Configuration;
}

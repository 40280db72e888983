// Help is complete: every verb has a description, examples, and a description of every option, and the examples parse.
using System.CommandLine;
using System.CommandLine.Parsing;
using Inference.Server.Commands;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class HelpTests
{
    public static TheoryData<string> Names => [.. Verbs.Root().Subcommands.Select(c => c.Name)];

    [Theory, MemberData(nameof(Names))]
    public void Every_verb_describes_itself_and_its_options(string name)
    {
        var command = Verbs.Root().Subcommands.Single(c => c.Name == name);
        Assert.False(string.IsNullOrEmpty(command.Description));
        Assert.All(command.Options, o => Assert.False(string.IsNullOrEmpty(o.Description), o.Name));
        Assert.All(command.Arguments, a => Assert.False(string.IsNullOrEmpty(a.Description), a.Name));
    }

    [Theory, MemberData(nameof(Names))]
    public void Every_verbs_help_ends_with_examples_that_parse(string name)
    {
        var output = new StringWriter();
        Assert.Equal(0, Verbs.Parse([name, "--help"]).Invoke(new InvocationConfiguration { Output = output }));
        string[] lines = output.ToString().Split('\n', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries);
        var examples = lines.SkipWhile(l => l != "Examples:").Skip(1).ToList();
        Assert.NotEmpty(examples);
        foreach (string example in examples)
        {
            string arguments = example[(example.IndexOf($"inference {name}", StringComparison.Ordinal) + "inference".Length)..];
            Assert.Empty(Verbs.Parse([.. CommandLineParser.SplitCommandLine(arguments.Split('|')[0].Replace('\'', '"'))]).Errors);
        }
    }
}

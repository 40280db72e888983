// The console program `Inference.Simulation`: runs seeds, replays one, or plants the bugs of the catalogue and sees that each is found. What it runs
// and what each law says: docs/simulation.md.
using System.Globalization;
using Inference.Simulation;

try
{
    return args switch
    {
        ["run", .. var rest] => Commands.Run(Arguments.Of(rest, "--seeds", "--seconds", "--from", "--kind", "--threads", "--failures")),
        ["replay", var seed, .. var rest] => Commands.Replay(Arguments.Number(seed), Arguments.Of(rest, "--kind", "--trace")),
        ["bugs", .. var rest] => Commands.Bugs(Arguments.Of(rest, "--only", "--seconds", "--threads")),
        _ => Commands.Help(),
    };
}
catch (ArgumentException e)
{
    Console.Error.WriteLine(e.Message);
    return 2;
}

/// <summary>Options after the verb: names with values; <c>--trace</c> may stand alone.</summary>
internal sealed class Arguments
{
    private readonly Dictionary<string, string> _values = [];

    public static Arguments Of(string[] args, params string[] known)
    {
        var arguments = new Arguments();
        for (int i = 0; i < args.Length; i++)
        {
            if (!known.Contains(args[i])) throw new ArgumentException($"{args[i]} is no option here; there are {string.Join(", ", known)}.");
            bool alone = args[i] == "--trace" && (i + 1 == args.Length || args[i + 1].StartsWith('-'));
            if (!alone && i + 1 == args.Length) throw new ArgumentException($"{args[i]} needs a value.");
            arguments._values[args[i]] = alone ? "100" : args[++i];
        }
        return arguments;
    }

    public static int Number(string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int number) ? number : throw new ArgumentException($"'{text}' is no number.");

    public int? Number(string name, int? otherwise) => _values.TryGetValue(name, out string? text) ? Number(text) : otherwise;

    public IReadOnlyList<SimulationKind> Kinds(SimulationKind[] otherwise)
    {
        if (!_values.TryGetValue("--kind", out string? text)) return otherwise;
        return Enum.TryParse<SimulationKind>(text, ignoreCase: true, out var kind) && Enum.IsDefined(kind)
            ? [kind] : throw new ArgumentException($"'{text}' is no kind; there are {string.Join(", ", Enum.GetNames<SimulationKind>()).ToLowerInvariant()}.");
    }
}

// `inference run --file --ask`: the embedded model finds a code in a text of about twenty thousand tokens, made here from its own grammar
// (models/pebble/README.md); Ctrl-C while it reads; what the progress line says.
using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Inference.Server.Commands;
using Inference.Testing;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed partial class RunFileTests
{
    private static readonly string[] Names = ["Yusuf", "Rosa", "Lars", "Viktor", "Petra", "Wanda", "Nora", "David", "Hugo", "Oscar", "Clara"];
    private static readonly string[] Verbs = ["borrowed", "returned", "wrapped", "counted", "painted", "measured", "watched", "lifted", "moved", "carried"];
    private static readonly string[] Kinds = ["soft", "bright", "heavy", "square", "narrow", "hard", "cold", "small", "warm", "old", "quiet", "round"];
    private static readonly string[] Things = ["drawer", "market", "anchor", "garden", "wagon", "window", "engine", "harbor", "island", "cabin", "kitchen"];
    private static readonly string[] Places = ["beside", "under", "behind", "near", "outside"];
    private static readonly string[] Times = ["at noon", "on Monday", "before lunch", "after dinner", "during the storm", "in the morning", "in the evening"];
    private static readonly (double Depth, string City, string Code)[] Codes = [(0.2, "Riga", "5498"), (0.5, "Tunis", "6247"), (0.8, "Warsaw", "8090")];

    [GeneratedRegex("prompt ([0-9,]+) tokens", RegexOptions.CultureInvariant)]
    private static partial Regex PromptTokens();

    // Sentences of nobody's interest, and the codes at their depths.
    private static string Story(int sentences)
    {
        var random = new SeededDraws(7);
        List<string> story = [.. Enumerable.Range(0, sentences).Select(_ =>
            $"{random.Of(Names)} {random.Of(Verbs)} the {random.Of(Kinds)} {random.Of(Things)} {random.Of(Places)} the {random.Of(Things)} {random.Of(Times)}.")];
        foreach (var (depth, city, code) in Codes) story.Insert((int)(depth * story.Count), $"The secret code for {city} is {code}.");
        return string.Join(' ', story);
    }

    [Fact]
    public void A_code_is_found_in_a_long_text()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["story.txt"], Story(1450) + "\r\n");
        var result = Cli.Run("run", "--stats", "--file", folder["story.txt"], "--ask", "What is the secret code for Tunis?").Succeeds();
        Assert.Equal("The secret code for Tunis is 6247.\n", result.Out);
        Assert.InRange(int.Parse(PromptTokens().Match(result.Error).Groups[1].Value, NumberStyles.AllowThousands, CultureInfo.InvariantCulture), 18_000, 22_000);
        Assert.DoesNotContain("Reading", result.Error, StringComparison.Ordinal); // no terminal
    }

    [Fact]
    public void The_text_and_the_question_are_one_message()
    {
        const string text = "The secret code for Riga is 5498. The secret code for Tunis is 6247.", question = "What is the secret code for Riga?";
        string expected = Cli.Run("run", "--temperature", "0", $"{text}\n\n{question}").Succeeds().Out;
        Assert.Equal(expected, Cli.RunWithInput(text + "\n\n\n", "run", "--temperature", "0", "--file", "-", "--ask", question).Succeeds().Out);
    }

    [Fact]
    public async Task Interrupted_while_it_reads_it_ends_without_a_word()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("signals");
        using var process = Cli.Start("run", "--file", "-", "--ask", "What is the secret code for Tunis?");
        await process.StandardInput.WriteAsync(Story(6000)); // half a minute of reading, about
        process.StandardInput.Close();
        await Task.Delay(TimeSpan.FromSeconds(2), TestContext.Current.CancellationToken);
        using (var kill = Process.Start("kill", ["-INT", $"{process.Id}"])) kill.WaitForExit();
        using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(30));
        Assert.Equal("", await process.StandardOutput.ReadToEndAsync(limit.Token));
        Assert.Equal("", await process.StandardError.ReadToEndAsync(limit.Token));
        await process.WaitForExitAsync(limit.Token);
        Assert.Equal(130, process.ExitCode);
    }

    [Fact]
    public void Half_a_question_and_a_text_that_is_none_are_refused()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["empty.txt"], "\n");
        File.WriteAllText(folder["long.txt"], Story(100));
        File.WriteAllBytes(folder["bytes.txt"], [0xFF, 0xFE]);
        Refused(["--file", folder["long.txt"]], "--file", "--ask");
        Refused(["--ask", "What?"], "--file", "--ask");
        Refused(["--file", folder["long.txt"], "--ask", " "], "--file", "--ask");
        Refused(["--file", folder["long.txt"], "--ask", "What?", "hi"], "either a prompt");
        Refused(["--file", folder["long.txt"], "--ask", "What?", "--raw"], "--raw", "--file");
        Refused(["--file", folder["none.txt"], "--ask", "What?"], "--file", "none.txt");
        Refused(["--file", folder["empty.txt"], "--ask", "What?"], "--file", "is empty");
        Refused(["--file", folder["bytes.txt"], "--ask", "What?"], "--file", "not UTF-8");
        Refused(["--file", folder["long.txt"], "--ask", "What?", "--context-max", "1000"], "prompt tokens exceed", "1000");

        static void Refused(string[] arguments, params string[] parts) => Cli.Run(["run", .. arguments]).Fails(2, parts);
    }

    [Fact]
    public void Progress_says_how_much_how_fast_and_how_long()
    {
        Assert.Equal("Reading 8,192 of 20,480 tokens, 2,048 tokens/s, 6.00 s left", PrefillProgressLine.Text(8192, 20_480, TimeSpan.FromSeconds(4)));
        Assert.Equal("Reading 0 of 20,480 tokens", PrefillProgressLine.Text(0, 20_480, TimeSpan.FromSeconds(4)));
    }

    // The same draws on every version of the platform: the minimal standard generator.
    private sealed class SeededDraws(ulong seed)
    {
        private ulong _state = seed;

        public string Of(string[] words) => words[(int)((_state = _state * 48271 % 2147483647) % (ulong)words.Length)];
    }
}

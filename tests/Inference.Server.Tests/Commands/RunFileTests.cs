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
    public async Task Interrupted_while_it_reads_it_says_how_far_it_came()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("signals");
        using var process = Cli.Start("run", "--file", "-", "--ask", "What is the secret code for Tunis?");
        await process.StandardInput.WriteAsync(Story(6000)); // half a minute of reading, about
        process.StandardInput.Close();
        await Task.Delay(TimeSpan.FromSeconds(2), TestContext.Current.CancellationToken);
        Interrupt(process);
        using var limit = new CancellationTokenSource(TimeSpan.FromSeconds(60));
        Assert.Equal("", await process.StandardOutput.ReadToEndAsync(limit.Token));
        string error = await process.StandardError.ReadToEndAsync(limit.Token);
        await process.WaitForExitAsync(limit.Token);
        Assert.Equal(130, process.ExitCode);
        if (error.Length == 0) return; // it had not begun to read
        Assert.Matches(@"^Stopped after reading [\d,]+ of [\d,]+ tokens; they are lost with this process\. --kv-disk FOLDER keeps them", error);
    }

    [Fact]
    public async Task Interrupted_with_a_disk_a_later_process_goes_on()
    {
        if (!OperatingSystem.IsLinux()) Assert.Skip("signals and the disk tier");
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["story.txt"], Story(1450));
        string[] arguments = ["run", "--kv-disk", folder["state"], "--stats", "--file", folder["story.txt"], "--ask", "What is the secret code for Tunis?"];
        int kept = 0;
        for (int wait = 1; kept == 0; wait *= 2) // until it had begun to read when the signal came
        {
            using var process = Cli.Start(arguments);
            process.StandardInput.Close();
            await Task.Delay(TimeSpan.FromSeconds(wait), TestContext.Current.CancellationToken);
            Interrupt(process);
            string error = await process.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
            await process.WaitForExitAsync(TestContext.Current.CancellationToken);
            Assert.True(process.ExitCode == 130, error);
            var match = Saved().Match(error);
            if (match.Success) kept = int.Parse(match.Groups[1].Value, NumberStyles.AllowThousands, CultureInfo.InvariantCulture);
        }
        var again = Cli.Run(arguments).Succeeds();
        Assert.Equal("The secret code for Tunis is 6247.\n", again.Out);
        Assert.Contains($"{kept:N0} cached", again.Error, StringComparison.Ordinal);
        // And when it has been read, another question finds all of the text but what stands after the last snapshot.
        var other = Cli.Run([.. arguments[..^1], "What is the secret code for Riga?"]).Succeeds();
        Assert.Equal("The secret code for Riga is 5498.\n", other.Out);
        Assert.InRange(int.Parse(Cached().Match(other.Error).Groups[1].Value, NumberStyles.AllowThousands, CultureInfo.InvariantCulture), Math.Max(kept, 14_000), 22_000);
    }

    [Fact]
    public async Task A_chat_about_a_text_goes_on_after_its_reading_was_stopped()
    {
        if (OperatingSystem.IsWindows()) Assert.Skip("signals");
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["story.txt"], Story(1450));
        using var process = Cli.Start("chat", "--file", folder["story.txt"]);
        await process.StandardInput.WriteLineAsync("/stats");
        await UntilAsync("No answer yet.");
        await process.StandardInput.WriteLineAsync("What is the secret code for Riga?");
        await Task.Delay(TimeSpan.FromSeconds(0.7), TestContext.Current.CancellationToken);
        Interrupt(process);
        string stopped = await UntilAsync("the next question goes on from there");
        string kept = Kept().Match(stopped).Groups[1].Value;
        Assert.NotEqual("0", kept);
        await process.StandardInput.WriteLineAsync("What is the secret code for Tunis?");
        await UntilAsync("The secret code for Tunis is 6247.");
        await process.StandardInput.WriteLineAsync("/stats");
        Assert.Contains($"{kept} cached", await UntilAsync("all answers"), StringComparison.Ordinal);
        process.StandardInput.Close();
        await process.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.Equal(0, process.ExitCode);

        async Task<string> UntilAsync(string text)
        {
            using var limit = new CancellationTokenSource(TimeSpan.FromMinutes(5)); // seconds on a quiet machine
            string seen = "";
            while (!seen.Contains(text, StringComparison.Ordinal))
                seen += await process.StandardOutput.ReadLineAsync(limit.Token) + "\n";
            return seen;
        }
    }

    [GeneratedRegex(@"Stopped after reading ([\d,]+) of")]
    private static partial Regex Kept();

    [GeneratedRegex(@"tokens, of which ([\d,]+) are saved: the same text is read on from there\.")]
    private static partial Regex Saved();

    [GeneratedRegex(@"([\d,]+) cached")]
    private static partial Regex Cached();

    private static void Interrupt(Process process)
    {
        using var kill = Process.Start("kill", ["-INT", $"{process.Id}"]);
        kill.WaitForExit();
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
        // What was in the cache says nothing about speed.
        Assert.Equal("Reading 8,192 of 20,480 tokens, 1,024 tokens/s, 12.0 s left", PrefillProgressLine.Text(8192, 20_480, TimeSpan.FromSeconds(4), 4096));
        Assert.Equal("Reading 4,096 of 20,480 tokens", PrefillProgressLine.Text(4096, 20_480, TimeSpan.FromSeconds(4), 4096));
    }

    // The same draws on every version of the platform: the minimal standard generator.
    private sealed class SeededDraws(ulong seed)
    {
        private ulong _state = seed;

        public string Of(string[] words) => words[(int)((_state = _state * 48271 % 2147483647) % (ulong)words.Length)];
    }
}

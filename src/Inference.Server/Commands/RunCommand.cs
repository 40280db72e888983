using System.CommandLine;
using System.Text;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.Tokenization;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// <c>inference run</c>: one answer, streamed. Standard output carries the answer and nothing else, so that it can be piped; outside of a
/// terminal reasoning goes to standard error.
/// </summary>
internal static class RunCommand
{
    public const string Name = "run";

    /// <summary>How long the state of a text may take to be saved after Ctrl-C: a million tokens are gigabytes at most.</summary>
    public static readonly TimeSpan SaveLimit = TimeSpan.FromMinutes(2);

    public static Command Create()
    {
        var prompt = new Argument<string?>("prompt")
        {
            Description = "What to say to the model; - reads it from standard input.",
            Arity = ArgumentArity.ZeroOrOne,
        };
        var file = new Option<string?>("--file") { Description = "UTF-8 text to ask about, as long as the context; - for standard input. Goes with --ask.", HelpName = "file" };
        var ask = new Option<string?>("--ask") { Description = "The question about the text of --file.", HelpName = "question" };
        var raw = new Option<bool>("--raw") { Description = "Take the prompt as it is, without the chat format: the model goes on with the text." };
        var thinking = new Option<bool>("--thinking") { Description = "Let the model reason first." };
        var system = new Option<string?>("--system") { Description = "System text.", HelpName = "text" };
        var tools = new Option<string?>("--tools") { Description = "JSON file with the tools that the model may call.", HelpName = "file" };
        var stats = new Option<bool>("--stats") { Description = "Print tokens, time to the first token and speed to standard error." };
        var command = new Command(Name, "Answer one prompt.") { prompt, file, ask, raw, thinking, system, tools, stats };
        var generation = new GenerationArguments(command);
        var settings = new SettingOptions(command, Settings.OfLocalModel);
        command.HasExamples(
            "inference run 'What are you?'",
            "inference run --thinking --stats 'Add 57 and 25.'",
            "inference run --raw --max-tokens 40 --temperature 0.8 --seed 7 'Once there was'",
            "inference run --file report.txt --ask 'What did it cost?'",
            "inference run --kv-disk ~/inference-state --file book.txt --ask 'Who owns the teapot?'",
            "cat report.txt | inference run --system 'Answer in one sentence.' -");
        command.Validators.Add(result =>
        {
            if (result.GetValue(prompt) is null && result.GetValue(file) is null && result.GetValue(ask) is null)
                result.AddError("Required argument missing: give a prompt, or --file and --ask.");
        });
        command.Runs(async (parsed, cancel) =>
        {
            bool isRaw = parsed.GetValue(raw);
            if (isRaw && (parsed.GetValue(thinking) || parsed.GetValue(system) is not null || parsed.GetValue(tools) is not null))
                throw new InputException("--raw takes the prompt as it is; --thinking, --system and --tools belong to the chat format.");
            var (text, about) = Prompt(parsed.GetValue(prompt), parsed.GetValue(file), parsed.GetValue(ask), isRaw);
            var definitions = ToolsFile.Read(parsed.GetValue(tools));
            await using var model = await LocalModel.StartAsync(ForPrompt(settings.Reader(parsed).ReadModel(), about + text), cancel);
            model.ShowsPrefill = true;
            using var output = new StreamWriter(Console.OpenStandardOutput(), new UTF8Encoding(false), 4096);
            var view = new AnswerView(output, Console.Error, styled: !Console.IsOutputRedirected);
            var (finished, seed) = isRaw
                ? await ContinueAsync(model, text, generation.Read(parsed), view, cancel)
                : await AnswerAsync(
                    new ChatSession(model, generation.Read(parsed), definitions)
                    {
                        System = parsed.GetValue(system),
                        Thinking = parsed.GetValue(thinking),
                        About = about is null ? null : new TextReading(model, about),
                    },
                    text, view, cancel);
            if (parsed.GetValue(stats)) Console.Error.WriteLine($"{AnswerStats.Line(finished)}; seed {seed}");
            return finished.Reason == FinishReason.Cancelled ? Verb.Interrupted : Verb.Done;
        });
        return command;
    }

    // What is said, and the text that it is said about.
    private static (string Text, string? About) Prompt(string? prompt, string? file, string? ask, bool isRaw)
    {
        if (file is null && ask is null)
        {
            string text = prompt == "-" ? InputFile.Text("-", "prompt") : prompt!;
            return text.Length > 0 ? (text, null) : throw new InputException("The prompt is empty; give some text.");
        }
        if (file is null || string.IsNullOrWhiteSpace(ask)) throw new InputException("--file and --ask go together: a text, and a question about it.");
        if (prompt is not null) throw new InputException("Give either a prompt, or --file and --ask.");
        if (isRaw) throw new InputException("--raw takes the prompt as it is; --file and --ask belong to the chat format.");
        return (ask, InputFile.TextToAskAbout(file));
    }

    // The engine's first step is as large as any it may make, and the user waits for it: no larger than the prompt can need, which has no more
    // tokens than bytes.
    private static ModelOptions ForPrompt(ModelOptions options, string prompt) =>
        options with { StepTokensMax = Math.Min(options.StepTokensMax, Encoding.UTF8.GetByteCount(prompt)) };

    private static async Task<(GenerationFinished, ulong)> AnswerAsync(ChatSession session, string text, AnswerView view, CancellationToken cancel)
    {
        var answer = await session.AskAsync(text, view, cancel);
        if (answer.Kept is { } kept && session.About is not null)
            Console.Error.WriteLine(TextReading.Stopped(kept, answer.Finished.Usage.PromptTokens, answer.Saved, goesOn: false));
        return (answer.Finished, answer.Seed);
    }

    private static async Task<(GenerationFinished, ulong)> ContinueAsync(
        LocalModel model, string text, GenerationChoices choices, AnswerView view, CancellationToken cancel)
    {
        var request = choices.Request(model.Served, model.Served.Encode(text, AddedTokenPolicy.All));
        var finished = await model.GenerateAsync(request, piece =>
        {
            view.Show(new CompletionEvent(CompletionEventKind.ContentDelta, piece));
            view.Flush();
        }, cancel);
        view.End();
        return (finished, request.Sampling.Seed);
    }
}

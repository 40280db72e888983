using System.Text;
using System.Text.Json;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Spectre.Console;

namespace Inference.Server.Commands;

/// <summary>
/// The dialogue of <c>chat</c>: reads a line, does what it says, shows the answer, until the end. It owns the terminal while it runs, Ctrl-C
/// included: once stops an answer, once more leaves. A fault of one answer is told and the dialogue goes on.
/// </summary>
internal sealed class ChatLoop : IDisposable
{
    private static readonly (string Usage, string Help)[] Commands =
    [
        ("/help", "show this"),
        ("/reset", "forget the conversation; system text and options stay"),
        ("/system TEXT", "set the system text; without TEXT, take it away"),
        ("/thinking on|off", "let the model reason before it answers, or not"),
        ("/stats", "tokens and speed of the last answer and of all"),
        ("/save FILE", "write the conversation as JSON, as 'render --messages' reads it"),
        ("/exit", "leave; so do Ctrl-D and Ctrl-C"),
    ];

    private readonly LocalModel _model;
    private readonly ChatSession _session;
    private readonly bool _styled = !Console.IsOutputRedirected;
    private readonly bool _interactive = !Console.IsInputRedirected && !Console.IsOutputRedirected;
    private readonly StreamWriter _output = new(Console.OpenStandardOutput(), new UTF8Encoding(false), 4096) { AutoFlush = false };
    private readonly TextReader _input = new StreamReader(Console.OpenStandardInput(), new UTF8Encoding(false));
    private readonly IAnsiConsole _terminal = Tables.Terminal();
    private readonly LineEditor _editor = new();
    private readonly List<Answer> _answers = [];
    private CancellationTokenSource? _answering;

    public ChatLoop(LocalModel model, ChatSession session)
    {
        (_model, _session) = (model, session);
        Console.CancelKeyPress += OnInterrupt;
    }

    public async Task RunAsync()
    {
        if (_interactive) Greet();
        while (ReadTurn() is { } text)
        {
            if (text.Length == 0) continue;
            if (text[0] != '/') await AnswerAsync((view, cancel) => AskAsync(text, view, cancel));
            else if (!Obey(text)) return;
        }
    }

    private Task<Answer> AskAsync(string text, AnswerView view, CancellationToken cancel)
    {
        if (_session.OpenCalls.Count == 0) return _session.AskAsync(text, view, cancel);
        // The text is the first call's result; the others are asked for one by one.
        var results = new List<string> { text };
        while (results.Count < _session.OpenCalls.Count && Read(ResultPrompt(results.Count)) is { } next) results.Add(next);
        while (results.Count < _session.OpenCalls.Count) results.Add("");
        return _session.GiveResultsAsync(results, view, cancel);
    }

    private async Task AnswerAsync(Func<AnswerView, CancellationToken, Task<Answer>> ask)
    {
        using var stop = new CancellationTokenSource();
        Volatile.Write(ref _answering, stop);
        try
        {
            var answer = await ask(new AnswerView(_output, _output, _styled), stop.Token);
            _answers.Add(answer);
            if (answer.Kept is { } kept) Say(TextReading.Stopped(kept, answer.Finished.Usage.PromptTokens, answer.Saved, goesOn: true));
            else if (answer.Finished.Reason == FinishReason.Cancelled) Say("(stopped)");
            else if (answer.Finished.Reason == FinishReason.Length) Say("(cut off: the token limit; --max-tokens raises it)");
            if (_interactive) _output.WriteLine();
        }
        catch (Exception e) when (e is RequestRejectedException or ChatEncodingException or AnswerException or KvSessionException)
        {
            foreach (string line in Fault.Of(e, CancellationToken.None).Lines) Console.Error.WriteLine(line);
        }
        finally
        {
            Volatile.Write(ref _answering, null);
            _output.Flush();
        }
    }

    // ---- input ----

    private string? ReadTurn()
    {
        string? line = Read(_session.OpenCalls.Count == 0 ? "> " : ResultPrompt(0));
        // A backslash at the end takes the next line along.
        while (line is not null && line.EndsWith('\\') && Read(". ") is { } more) line = $"{line[..^1]}\n{more}";
        return line?.Trim();
    }

    private string ResultPrompt(int call) => $"result of {_session.OpenCalls[call].Name}> ";

    private string? Read(string prompt)
    {
        _output.Flush();
        return _interactive ? _editor.Read(prompt) : _input.ReadLine();
    }

    private void OnInterrupt(object? sender, ConsoleCancelEventArgs e)
    {
        if (Volatile.Read(ref _answering) is { IsCancellationRequested: false } answering)
        {
            e.Cancel = true;
            answering.Cancel();
            return;
        }
        Console.Out.WriteLine();
        Environment.Exit(Verb.Done);
    }

    // ---- commands ----

    /// <summary>Does what a line that begins with a slash says; false when that is to leave.</summary>
    private bool Obey(string line)
    {
        string name = line.Split(' ', '\n')[0], argument = line[name.Length..].Trim();
        switch (name)
        {
            case "/exit" or "/quit":
                return false;
            case "/help":
                Help();
                break;
            case "/reset":
                _session.Reset();
                Say("The conversation is forgotten.");
                break;
            case "/system":
                _session.System = argument.Length == 0 ? null : argument;
                Say(argument.Length == 0 ? "No system text any more." : "System text set; /reset begins anew with it.");
                break;
            case "/thinking":
                Think(argument);
                break;
            case "/stats":
                Stats();
                break;
            case "/save":
                Save(argument);
                break;
            default:
                Say($"There is no command {name}; /help shows those there are.");
                break;
        }
        return true;
    }

    private void Think(string argument)
    {
        if (argument is "on" or "off") _session.Thinking = argument == "on";
        else if (argument.Length > 0) Say("Give on or off.");
        Say($"Thinking is {(_session.Thinking ? "on" : "off")}.");
    }

    private void Save(string file)
    {
        if (file.Length == 0)
        {
            Say("Give a file: /save conversation.json");
            return;
        }
        try
        {
            using (var stream = File.Create(file))
            using (var writer = new Utf8JsonWriter(stream, new JsonWriterOptions { Indented = true, Encoder = ResultOutput.Encoder }))
                _session.Save(writer);
            Say($"Saved {_session.Messages.Count} messages in {file}.");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            Say($"{file} cannot be written: {e.Message}");
        }
    }

    // ---- what it says itself ----

    private void Greet()
    {
        var served = _model.Served;
        _terminal.MarkupLine($"[bold green]{Markup.Escape(served.Name)}[/]  [dim]{Markup.Escape(served.Info.Family)}, {Markup.Escape(served.Backend.Info.Device)}[/]");
        _terminal.MarkupLine("[dim]/help shows the commands. Ctrl-C stops an answer, /exit leaves.[/]");
        _terminal.WriteLine();
    }

    private void Help()
    {
        var grid = new Grid().AddColumn(new GridColumn().NoWrap().PadRight(3)).AddColumn();
        foreach (var (usage, help) in Commands) grid.AddRow(new Text(usage, new Style(Color.Green)), new Text(help));
        _terminal.Write(grid);
        Say("A line that ends with \\ goes on in the next.");
    }

    private void Stats()
    {
        if (_answers.Count == 0)
        {
            Say("No answer yet.");
            return;
        }
        var last = _answers[^1].Finished;
        long used = last.Usage.PromptTokens + last.Usage.OutputTokens;
        var grid = new Grid().AddColumn(new GridColumn().NoWrap().PadRight(3)).AddColumn(new GridColumn().NoWrap());
        Row("last answer", AnswerStats.Line(last));
        Row("seed", $"{_answers[^1].Seed}");
        Row("all answers", $"{_answers.Count}, {Units.Whole(_answers.Sum(a => (long)a.Finished.Usage.OutputTokens))} output tokens");
        Row("context", $"{Units.Whole(used)} of {Units.Whole(_model.Served.ContextMax)} tokens");
        _terminal.Write(grid);

        void Row(string name, string value) => grid.AddRow(new Text(name, new Style(Color.Green)), new Text(value));
    }

    private void Say(string text)
    {
        _output.Flush();
        _terminal.Write(new Text(text + "\n", new Style(decoration: Decoration.Dim)));
    }

    public void Dispose()
    {
        Console.CancelKeyPress -= OnInterrupt;
        _output.Dispose();
        _input.Dispose();
    }
}

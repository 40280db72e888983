using System.Text;
using Inference.Runtime.Chat;

namespace Inference.Server.Commands;

/// <summary>
/// Shows an answer while it comes. In a terminal reasoning is dim and tool calls are marked, and control characters that a model writes are
/// shown instead of sent, so that no answer can move the cursor or rename the window. Elsewhere it is plain text: the answer on one writer,
/// reasoning on another. One view per answer.
/// </summary>
internal sealed class AnswerView(TextWriter answer, TextWriter reasoning, bool styled)
{
    private const string Dim = "\u001b[2m", Cyan = "\u001b[36m", Reset = "\u001b[0m";

    private enum Part { None, Reasoning, Content, Call }

    private Part _part;
    private bool _atLineStart = true;

    /// <summary>The next step of the answer.</summary>
    public void Show(CompletionEvent e)
    {
        switch (e.Kind)
        {
            case CompletionEventKind.ReasoningDelta:
                Enter(Part.Reasoning);
                Write(styled ? answer : reasoning, e.Text);
                break;
            case CompletionEventKind.ContentDelta:
                Enter(Part.Content);
                Write(answer, e.Text);
                break;
            case CompletionEventKind.ToolCallStart:
                Enter(Part.Call);
                if (!_atLineStart) NewLine(answer);
                answer.Write(styled ? $"{Cyan}tool call {Visible(e.Text)}{Reset} {Dim}" : $"[tool call] {e.Text} ");
                _atLineStart = false;
                break;
            case CompletionEventKind.ToolCallArgumentsDelta:
                Write(answer, e.Text);
                break;
            case CompletionEventKind.ToolCallEnd:
                EndCall("");
                break;
            case CompletionEventKind.ToolCallCutOff:
                EndCall(" (unfinished)");
                break;
        }
    }

    /// <summary>Everything so far is on its way to the reader.</summary>
    public void Flush()
    {
        answer.Flush();
        reasoning.Flush();
    }

    /// <summary>The answer is over: the next text begins on a line of its own.</summary>
    public void End()
    {
        Enter(Part.None);
        if (!_atLineStart) NewLine(answer);
        Flush();
    }

    private void Enter(Part next)
    {
        if (next == _part) return;
        if (_part == Part.Reasoning)
        {
            var writer = styled ? answer : reasoning;
            if (styled) writer.Write(Reset);
            NewLine(writer);
            if (styled && next != Part.None) NewLine(writer);
        }
        if (next == Part.Reasoning && styled) answer.Write(Dim);
        _part = next;
    }

    private void EndCall(string note)
    {
        answer.Write(styled ? Reset + note : note);
        NewLine(answer);
    }

    private void NewLine(TextWriter writer)
    {
        writer.Write('\n');
        _atLineStart = true;
    }

    private void Write(TextWriter writer, string text)
    {
        if (text.Length == 0) return;
        writer.Write(styled ? Visible(text) : text);
        _atLineStart = text[^1] == '\n';
    }

    // C0 controls as their Unicode pictures, C1 controls and DEL as a replacement; line ends and tabs stay.
    private static string Visible(string text)
    {
        if (!text.Any(IsHidden)) return text;
        var shown = new StringBuilder(text.Length);
        foreach (char c in text) shown.Append(!IsHidden(c) ? c : c < ' ' ? (char)(0x2400 + c) : '\uFFFD');
        return shown.ToString();
    }

    private static bool IsHidden(char c) => char.IsControl(c) && c is not ('\n' or '\t');
}

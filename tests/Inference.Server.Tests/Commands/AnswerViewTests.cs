using Inference.Runtime.Chat;
using Inference.Server.Commands;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class AnswerViewTests
{
    private static readonly CompletionEvent[] ThoughtTextAndCall =
    [
        new(CompletionEventKind.ReasoningDelta, "Hm"), new(CompletionEventKind.ReasoningDelta, "."),
        new(CompletionEventKind.ContentDelta, "Let me "), new(CompletionEventKind.ContentDelta, "look."),
        new(CompletionEventKind.ToolCallStart, "find", 0), new(CompletionEventKind.ToolCallArgumentsDelta, "{\"a\": 1}", 0),
        new(CompletionEventKind.ToolCallEnd, "", 0),
    ];

    [Fact]
    public void Plain_text_keeps_reasoning_apart_from_the_answer()
    {
        var (answer, reasoning) = Show(styled: false, ThoughtTextAndCall);
        Assert.Equal("Let me look.\n[tool call] find {\"a\": 1}\n", answer);
        Assert.Equal("Hm.\n", reasoning);
    }

    [Fact]
    public void A_terminal_shows_reasoning_dim_and_calls_marked()
    {
        var (answer, reasoning) = Show(styled: true, ThoughtTextAndCall);
        Assert.Equal("\u001b[2mHm.\u001b[0m\n\nLet me look.\n\u001b[36mtool call find\u001b[0m \u001b[2m{\"a\": 1}\u001b[0m\n", answer);
        Assert.Equal("", reasoning);
    }

    [Fact]
    public void A_call_that_was_cut_off_is_told()
    {
        var (answer, _) = Show(styled: false,
            new(CompletionEventKind.ToolCallStart, "find", 0), new(CompletionEventKind.ToolCallArgumentsDelta, "{\"a\"", 0), new(CompletionEventKind.ToolCallCutOff, "", 0));
        Assert.Equal("[tool call] find {\"a\" (unfinished)\n", answer);
    }

    [Fact]
    public void No_answer_can_steer_the_terminal()
    {
        const string hostile = "a\u001b]0;title\u0007b\u009bc\td\ne\u007f";
        Assert.Equal("a␛]0;title␇b\uFFFDc\td\ne\uFFFD\n", Show(styled: true, new CompletionEvent(CompletionEventKind.ContentDelta, hostile)).Answer);
        // A file gets what the model said.
        Assert.Equal(hostile + "\n", Show(styled: false, new CompletionEvent(CompletionEventKind.ContentDelta, hostile)).Answer);
    }

    [Fact]
    public void Every_answer_ends_with_one_line_end()
    {
        Assert.Equal("", Show(styled: false).Answer);
        Assert.Equal("a\n", Show(styled: false, new CompletionEvent(CompletionEventKind.ContentDelta, "a")).Answer);
        Assert.Equal("a\n", Show(styled: false, new CompletionEvent(CompletionEventKind.ContentDelta, "a\n")).Answer);
        Assert.Equal("\u001b[2ma\u001b[0m\n", Show(styled: true, new CompletionEvent(CompletionEventKind.ReasoningDelta, "a")).Answer);
    }

    private static (string Answer, string Reasoning) Show(bool styled, params CompletionEvent[] events)
    {
        var (answer, reasoning) = (new StringWriter(), new StringWriter());
        var view = new AnswerView(answer, reasoning, styled);
        foreach (var e in events) view.Show(e);
        view.End();
        return (answer.ToString(), reasoning.ToString());
    }
}

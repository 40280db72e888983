using System.Text;
using System.Text.Json;
using CsCheck;
using Inference.Runtime.Chat;
using Xunit;

namespace Inference.Runtime.Tests.Chat;

public sealed class CompletionStreamParserTests
{
    private const string Eos = "<｜end▁of▁sentence｜>";
    private const string Block = "\n\n<｜DSML｜tool_calls>\n";
    private const string BlockEnd = "</｜DSML｜tool_calls>";
    private const string Invoke = "<｜DSML｜invoke name=\"f\">\n";
    private const string InvokeEnd = "</｜DSML｜invoke>\n";

    // ---- against the released parser

    [Fact]
    public void Messages_are_those_of_the_released_parser()
    {
        Assert.Equal(80, EncodingFixtures.Completions.Count);
        foreach (var (text, mode, message) in EncodingFixtures.Completions)
            AssertSameJson(message!, ParsedMessageJson.Write(DeepSeekV4ChatEncoding.Parse(text, mode)));
    }

    [Fact]
    public void Broken_completions_are_refused_where_the_released_parser_refuses()
    {
        Assert.Equal(600, EncodingFixtures.BrokenCompletions.Count);
        foreach (var (text, mode, message) in EncodingFixtures.BrokenCompletions)
        {
            if (message is not null)
                AssertSameJson(message, ParsedMessageJson.Write(DeepSeekV4ChatEncoding.Parse(text, mode)));
            else
                Assert.Throws<CompletionFormatException>(() => DeepSeekV4ChatEncoding.Parse(text, mode));
        }
    }

    [Fact]
    public void What_was_parsed_renders_to_the_same_text()
    {
        var encoding = new DeepSeekV4ChatEncoding(EncodingRelease.Ga);
        foreach (var (text, mode, _) in EncodingFixtures.Completions)
        {
            var question = ChatMessage.Of(ChatRole.User, "q");
            var options = new ChatRenderOptions { ThinkingMode = mode };
            var answer = DeepSeekV4ChatEncoding.Parse(text, mode).ToChatMessage();
            Assert.Equal(
                encoding.Render(new Conversation([question]), options).Text + text,
                encoding.Render(new Conversation([question, answer]), options).Text);
        }
    }

    // ---- whatever the split

    [Theory]
    [InlineData(CompletionParsing.Strict)]
    [InlineData(CompletionParsing.Lenient)]
    public void Every_cut_in_two_gives_the_whole_parse(CompletionParsing parsing)
    {
        foreach (var (text, mode, _) in EncodingFixtures.Completions)
        {
            string whole = Outcome(mode, parsing, text);
            for (int cut = 0; cut <= text.Length; cut++)
                AssertOutcome(whole, mode, parsing, text, cut);
        }
    }

    [Theory]
    [InlineData(CompletionParsing.Strict)]
    [InlineData(CompletionParsing.Lenient)]
    public void One_character_at_a_time_gives_the_whole_parse(CompletionParsing parsing)
    {
        foreach (var (text, mode, _) in EncodingFixtures.Completions.Concat(EncodingFixtures.BrokenCompletions))
            AssertOutcome(Outcome(mode, parsing, text), mode, parsing, text, Enumerable.Range(0, text.Length).ToArray());
    }

    [Theory]
    [InlineData(CompletionParsing.Strict)]
    [InlineData(CompletionParsing.Lenient)]
    public void Random_cuts_give_the_whole_parse(CompletionParsing parsing)
    {
        var cases = EncodingFixtures.Completions.Concat(EncodingFixtures.BrokenCompletions).ToList();
        var gen = from index in Gen.Int[0, cases.Count - 1]
                  from cuts in Gen.Int[0, cases[index].Text.Length].Array[0, 12]
                  select (index, cuts);
        gen.Sample(
            pick =>
            {
                var (text, mode, _) = cases[pick.index];
                AssertOutcome(Outcome(mode, parsing, text), mode, parsing, text, pick.cuts);
            },
            iter: 4_000,
            threads: 1);
    }

    [Fact]
    public void Strict_and_lenient_agree_on_whole_completions()
    {
        foreach (var (text, mode, _) in EncodingFixtures.Completions)
            Assert.Equal(Outcome(mode, CompletionParsing.Strict, text), Outcome(mode, CompletionParsing.Lenient, text));
    }

    // ---- holding back

    [Theory]
    [InlineData("a < b, a << b", "a < b, a << b")]
    [InlineData("line\n", "line")]
    [InlineData("line\n\n", "line")]
    [InlineData("line\n\n\n", "line\n")]
    [InlineData("line\n\nx", "line\n\nx")]
    [InlineData("x\n\n<｜DSML", "x")]
    [InlineData("x\n<｜DSML｜tool_call", "x")]
    [InlineData("x<｜DSML｜tool_cat", "x<｜DSML｜tool_cat")]
    [InlineData("x<｜end", "x")]
    [InlineData("x<｜User｜>", "x<｜User｜>")]
    [InlineData("x</think>", "x</think>")]
    [InlineData("🙂", "🙂")]
    public void Only_what_may_become_a_marker_is_held_back(string text, string passedOn)
    {
        Assert.Equal(passedOn, ContentSoFar(text, cutEverywhere: false));
        Assert.Equal(passedOn, ContentSoFar(text, cutEverywhere: true));
    }

    [Fact]
    public void Argument_values_stream_while_they_come()
    {
        var parser = new CompletionStreamParser(ThinkingMode.Chat);
        var events = new List<CompletionEvent>();
        string Arguments() => string.Concat(events.Where(e => e.Kind == CompletionEventKind.ToolCallArgumentsDelta).Select(e => e.Text));

        parser.Push(Block + Invoke, events);
        Assert.Empty(events);
        parser.Push("<｜DSML｜parameter", events);
        Assert.Equal(new CompletionEvent(CompletionEventKind.ToolCallStart, "f", 0), events.Single());
        parser.Push(" name=\"k\" string=\"true\">a\"b", events);
        Assert.Equal("{\"k\": \"a\\\"b", Arguments());
        parser.Push("</", events);
        Assert.Equal("{\"k\": \"a\\\"b", Arguments());
        parser.Push("p>\n</｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">[1,", events);
        Assert.Equal("{\"k\": \"a\\\"b</p>\\n\", \"n\": [1,", Arguments());
        parser.Push("2]</｜DSML｜parameter>\n" + InvokeEnd, events);
        Assert.Equal("{\"k\": \"a\\\"b</p>\\n\", \"n\": [1,2]}", Arguments());
        Assert.Equal(CompletionEventKind.ToolCallEnd, events[^1].Kind);
        Assert.False(parser.Ended);
        parser.Push(BlockEnd + Eos, events);
        Assert.True(parser.Ended);
        Assert.Null(parser.Violation);
    }

    [Fact]
    public void Every_event_is_whole_characters()
    {
        string text = "🙂🙂</think>🙂x🙂" + Block + Invoke + "<｜DSML｜parameter name=\"🙂\" string=\"true\">🙂\"🙂</｜DSML｜parameter>\n" + InvokeEnd + BlockEnd + Eos;
        foreach (var e in Feed(ThinkingMode.Thinking, CompletionParsing.Strict, text, Enumerable.Range(0, text.Length).ToArray()).Events)
            Assert.Equal(e.Text, Encoding.UTF8.GetString(Encoding.UTF8.GetBytes(e.Text)));
        Assert.Equal("a", ContentSoFar("a\ud83d", cutEverywhere: true));
    }

    // ---- strict refusals

    public static TheoryData<ThinkingMode, string, CompletionViolation, string> Violations => new()
    {
        { ThinkingMode.Thinking, "r" + Block, CompletionViolation.ToolCallInReasoning, "\n\n<" },
        { ThinkingMode.Thinking, "r", CompletionViolation.ReasoningNotEnded, "" },
        { ThinkingMode.Thinking, "r" + Eos, CompletionViolation.ControlToken, "<" },
        { ThinkingMode.Thinking, "r<think></think>" + Eos, CompletionViolation.ControlToken, "<think>" },
        { ThinkingMode.Thinking, "r｜DSML｜</think>" + Eos, CompletionViolation.ControlToken, "｜" },
        { ThinkingMode.Thinking, "r</think>c</think>" + Eos, CompletionViolation.ControlToken, "</think><" },
        { ThinkingMode.Chat, "<think>c" + Eos, CompletionViolation.ControlToken, "<think>" },
        { ThinkingMode.Chat, "c</think>" + Eos, CompletionViolation.ControlToken, "</think>" },
        { ThinkingMode.Chat, "c<｜begin▁of▁sentence｜>" + Eos, CompletionViolation.ControlToken, "<｜begin" },
        { ThinkingMode.Chat, "c\n<｜DSML｜tool_calls>", CompletionViolation.ControlToken, "｜DSML" },
        { ThinkingMode.Chat, "c", CompletionViolation.EndOfSequenceMissing, "" },
        { ThinkingMode.Chat, "", CompletionViolation.EndOfSequenceMissing, "" },
        { ThinkingMode.Chat, "c\n\n<｜DSML｜tool_calls", CompletionViolation.ToolBlockNotEnded, "" },
        { ThinkingMode.Chat, "c\n\n<｜DSML｜tool_calls>" + Invoke, CompletionViolation.ToolBlockFormat, "><" },
        { ThinkingMode.Chat, Block + "x" + Invoke, CompletionViolation.ToolBlockFormat, ">\nx" },
        { ThinkingMode.Chat, Block + "<｜DSML｜invoke name=f>\n" + InvokeEnd + BlockEnd + Eos, CompletionViolation.ToolNameFormat, " name=f" },
        { ThinkingMode.Chat, Block + "<｜DSML｜invoke name=\"f\">" + InvokeEnd + BlockEnd + Eos, CompletionViolation.ToolNameFormat, " name=\"f\"" },
        { ThinkingMode.Chat, Block + "<｜DSML｜invoke name=\"f\">\n\n\n" + InvokeEnd + BlockEnd + Eos, CompletionViolation.ToolNameFormat, " name=\"f\"" },
        { ThinkingMode.Chat, Block + Invoke, CompletionViolation.ToolBlockNotEnded, " name=\"f\">\n" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"maybe\">v</｜DSML｜parameter>", CompletionViolation.ParameterFormat, "k\" string=\"maybe" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter name=\" string=\"true\">v</｜DSML｜parameter>", CompletionViolation.ParameterFormat, " string=\"true" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter  name=\"k\" string=\"true\">v", CompletionViolation.ParameterFormat, "  name=\"k\"" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">v/｜DSML｜parameter>", CompletionViolation.ParameterFormat, "/｜DSML" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">v</｜DSML｜parameter> \n", CompletionViolation.ParameterFormat, "> \n" },
        { ThinkingMode.Chat, Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">v", CompletionViolation.ToolBlockNotEnded, "" },
        {
            ThinkingMode.Chat,
            Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"k\" string=\"true\">2",
            CompletionViolation.ParameterRepeated,
            "k\" string=\"true\">2"
        },
        { ThinkingMode.Chat, Block + BlockEnd + " " + Eos, CompletionViolation.TextAfterToolCalls, " <" },
        { ThinkingMode.Chat, Block + BlockEnd, CompletionViolation.EndOfSequenceMissing, "" },
        { ThinkingMode.Chat, "c" + Eos + "d", CompletionViolation.TextAfterEnd, "d" },
        { ThinkingMode.Chat, Block + BlockEnd + Eos + Eos, CompletionViolation.TextAfterEnd, "<" },
    };

    [Theory]
    [MemberData(nameof(Violations))]
    public void Strict_refuses_with_the_reason_and_the_place(ThinkingMode mode, string text, CompletionViolation violation, string at)
    {
        var fault = Assert.Throws<CompletionFormatException>(() => DeepSeekV4ChatEncoding.Parse(text, mode));
        Assert.Equal(violation, fault.Violation);
        Assert.StartsWith(at, text[(int)fault.Position..]);
        Assert.Equal("completion", fault.Field);
        Assert.Contains(violation.ToString(), fault.Message);

        string whole = Outcome(mode, CompletionParsing.Strict, text);
        AssertOutcome(whole, mode, CompletionParsing.Strict, text, Enumerable.Range(0, text.Length).ToArray());
    }

    [Fact]
    public void A_strict_parser_keeps_refusing()
    {
        var parser = new CompletionStreamParser(ThinkingMode.Chat, CompletionParsing.Strict);
        var events = new List<CompletionEvent>();
        var first = Assert.Throws<CompletionFormatException>(() => parser.Push("ok<think>", events));
        Assert.Equal("ok", ParsedMessage.FromEvents(events).Content);
        Assert.Same(first, Assert.Throws<CompletionFormatException>(() => parser.Push("more", events)));
        Assert.Same(first, Assert.Throws<CompletionFormatException>(() => parser.Complete(events)));
    }

    [Fact]
    public void A_completed_parser_takes_no_more_text()
    {
        var parser = new CompletionStreamParser(ThinkingMode.Chat);
        var events = new List<CompletionEvent>();
        parser.Push("a", events);
        parser.Complete(events);
        parser.Complete(events);
        Assert.Single(events);
        Assert.Throws<InvalidOperationException>(() => parser.Push("b", events));
    }

    [Theory]
    [InlineData("name=\"f\">\n", "f")]
    [InlineData("name=\"f\">\n\n", "f")]
    [InlineData(" \n\tname=\"f\">\n", "f")]
    [InlineData(" name=\"\">\n", "")]
    [InlineData(" name=\"a\">\nb\" c\">\n", "a\">\nb\" c")]
    public void Strict_reads_names_as_the_reference_does(string head, string name)
    {
        var message = DeepSeekV4ChatEncoding.Parse(Block + "<｜DSML｜invoke" + head + InvokeEnd + BlockEnd + Eos, ThinkingMode.Chat);
        Assert.Equal(new ToolCall(null, name, "{}"), message.ToolCalls.Single());
    }

    [Theory]
    [InlineData("v</｜DSML｜parameter>\n", "v")]
    [InlineData("v<\n/｜DSML｜parameter>\n", "v")]
    [InlineData("v\n</｜DSML｜parameter>\n", "v\n")]
    [InlineData("<</｜DSML｜parameter>\n", "<")]
    public void Strict_reads_the_end_of_a_value_as_the_reference_does(string tail, string value)
    {
        string text = Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"false\">" + tail + InvokeEnd + BlockEnd + Eos;
        Assert.Equal($"{{\"k\": {value}}}", DeepSeekV4ChatEncoding.Parse(text, ThinkingMode.Chat).ToolCalls.Single().Arguments);
        string whole = Outcome(ThinkingMode.Chat, CompletionParsing.Strict, text);
        AssertOutcome(whole, ThinkingMode.Chat, CompletionParsing.Strict, text, Enumerable.Range(0, text.Length).ToArray());
    }

    [Fact]
    public void A_value_may_hold_anything_but_its_own_closing_tag()
    {
        const string value = "</param>\n</｜DSML｜invoke>\n" + Block + "<think>" + Eos + "</｜DSML｜paramete";
        var message = DeepSeekV4ChatEncoding.Parse(
            Block + Invoke + "<｜DSML｜parameter name=\"a\" b\" string=\"true\">" + value + "</｜DSML｜parameter>\n" + InvokeEnd + BlockEnd + Eos,
            ThinkingMode.Chat);
        using var arguments = JsonDocument.Parse(message.ToolCalls.Single().Arguments);
        Assert.Equal(value, arguments.RootElement.GetProperty("a\" b").GetString());
    }

    // ---- lenient

    [Theory]
    [InlineData("", "", "")]
    [InlineData("thinking", "thinking", "")]
    [InlineData("thinking</thi", "thinking</thi", "")]
    [InlineData("r</think>", "r", "")]
    [InlineData("r</think>c", "r", "c")]
    [InlineData("r</think>c\n\n<｜DSML｜tool", "r", "c\n\n<｜DSML｜tool")]
    [InlineData("r</think>c<｜end▁of", "r", "c<｜end▁of")]
    [InlineData("r<｜end▁of▁sentence｜>more", "r", "")]
    [InlineData("r</think>c<｜end▁of▁sentence｜>more", "r", "c")]
    [InlineData("r\n\n<｜DSML｜tool_calls></think>c</think><think>d", "r\n\n<｜DSML｜tool_calls>", "c</think><think>d")]
    public void Lenient_takes_text_that_ends_anywhere(string text, string reasoning, string content)
    {
        foreach (var message in LenientWays(ThinkingMode.Thinking, text))
        {
            Assert.Equal((reasoning, content), (message.ReasoningContent, message.Content));
            Assert.Empty(message.ToolCalls);
            Assert.Empty(message.UnfinishedToolCalls);
        }
    }

    [Fact]
    public void A_cut_call_is_unfinished_wherever_the_cut_is()
    {
        const string first = Invoke + InvokeEnd;
        const string second = "<｜DSML｜invoke name=\"g\">\n<｜DSML｜parameter name=\"k\" string=\"true\">value</｜DSML｜parameter>\n</｜DSML｜invoke";
        string text = "c" + Block + first + second;
        const string whole = "{\"k\": \"value\"}";
        for (int length = ("c" + Block + first).Length; length < text.Length; length++)
        {
            foreach (string end in new[] { "", Eos, Eos + "x" })
            {
                var message = DeepSeekV4ChatEncoding.Parse(text[..length] + end, ThinkingMode.Chat, CompletionParsing.Lenient);
                Assert.Equal("c", message.Content);
                Assert.Equal(new ToolCall(null, "f", "{}"), message.ToolCalls.Single());
                Assert.All(message.UnfinishedToolCalls, call => Assert.Equal("g", call.Name));
                // Half a closing tag before an end token is part of the value.
                Assert.All(message.UnfinishedToolCalls, call => Assert.StartsWith(call.Arguments.Split('<')[0], whole));
                Assert.InRange(message.UnfinishedToolCalls.Count, 0, 1);
            }
        }
        Assert.Equal(2, DeepSeekV4ChatEncoding.Parse(text, ThinkingMode.Chat, CompletionParsing.Lenient).ToolCalls.Count);
    }

    [Theory]
    [InlineData("c\n<｜DSML｜tool_calls>", "c")]
    [InlineData("c<｜DSML｜tool_calls>", "c")]
    [InlineData("c\n\n<｜DSML｜tool_calls>  \n\n", "c")]
    public void Lenient_forgives_white_space_around_tags(string start, string content)
    {
        string text = start + "<｜DSML｜invoke name=\"f\" >\n".Replace(" >", ">", StringComparison.Ordinal)
            + "<｜DSML｜parameter name=\"k\" string=\"false\">1</｜DSML｜parameter>" + "</｜DSML｜invoke>\r\n" + BlockEnd;
        foreach (var message in LenientWays(ThinkingMode.Chat, text))
        {
            Assert.Equal(content, message.Content);
            Assert.Equal(new ToolCall(null, "f", "{\"k\": 1}"), message.ToolCalls.Single());
        }
    }

    public static TheoryData<string, string, int, int, CompletionViolation> Malformed => new()
    {
        { "c" + Block + "junk" + BlockEnd, "c\n\n<｜DSML｜tool_calls>\njunk" + BlockEnd, 0, 0, CompletionViolation.ToolBlockFormat },
        {
            "c" + Block + "<｜DSML｜invoke name=f>\n" + InvokeEnd + BlockEnd,
            "c<｜DSML｜invoke name=f>\n" + InvokeEnd + BlockEnd, 0, 0, CompletionViolation.ToolNameFormat
        },
        {
            Block + Invoke + InvokeEnd + Invoke + "<｜DSML｜parameter name=\"k\">1</｜DSML｜parameter>\n" + InvokeEnd + BlockEnd,
            "<｜DSML｜parameter name=\"k\">1</｜DSML｜parameter>\n" + InvokeEnd + BlockEnd, 1, 1, CompletionViolation.ParameterFormat
        },
        {
            Block + Invoke + InvokeEnd + "oops" + BlockEnd + Block + Invoke + InvokeEnd + BlockEnd,
            "</｜DSML｜invoke>\noops" + BlockEnd, 2, 0, CompletionViolation.ToolBlockFormat
        },
        {
            Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"k\" string=\"true\">2</｜DSML｜parameter>\n",
            "<｜DSML｜parameter name=\"k\" string=\"true\">2</｜DSML｜parameter>\n", 0, 1, CompletionViolation.ParameterRepeated
        },
        { Block + "<｜DSML｜invoke" + new string('x', 5000) + Eos, "<｜DSML｜invoke" + new string('x', 5000), 0, 0, CompletionViolation.ToolNameFormat },
        { "c" + Block + new string(' ', 17) + Invoke, "c" + Block + new string(' ', 17) + Invoke, 0, 0, CompletionViolation.ToolBlockFormat },
    };

    [Theory]
    [MemberData(nameof(Malformed))]
    public void Lenient_makes_content_of_what_it_cannot_read(string text, string content, int calls, int unfinished, CompletionViolation violation)
    {
        foreach (var message in LenientWays(ThinkingMode.Chat, text))
        {
            Assert.Equal(content, message.Content);
            Assert.Equal((calls, unfinished), (message.ToolCalls.Count, message.UnfinishedToolCalls.Count));
        }
        var parser = new CompletionStreamParser(ThinkingMode.Chat);
        parser.Push(text, []);
        parser.Complete([]);
        Assert.Equal(violation, parser.Violation);
    }

    [Theory]
    [InlineData("<｜DSML｜invoke name=\"", "\">\n" + InvokeEnd + BlockEnd + Eos)]
    [InlineData(Invoke + "<｜DSML｜parameter name=\"", "\" string=\"false\">1</｜DSML｜parameter>\n" + InvokeEnd + BlockEnd + Eos)]
    public void How_long_a_tag_may_be_does_not_depend_on_the_cuts(string start, string end)
    {
        var callCounts = new List<int>();
        for (int length = 4060; length <= 4110; length++)
        {
            string text = Block + start + new string('x', length) + end;
            string whole = Outcome(ThinkingMode.Chat, CompletionParsing.Lenient, text);
            AssertOutcome(whole, ThinkingMode.Chat, CompletionParsing.Lenient, text, Enumerable.Range(0, text.Length).ToArray());
            callCounts.Add(DeepSeekV4ChatEncoding.Parse(text, ThinkingMode.Chat, CompletionParsing.Lenient).ToolCalls.Count);
        }
        Assert.Equal(1, callCounts[0]);
        Assert.Equal(0, callCounts[^1]);
    }

    [Fact]
    public void Lenient_keeps_text_after_a_block()
    {
        string text = "a" + Block + Invoke + InvokeEnd + BlockEnd + "\n\nb" + Block + Invoke + InvokeEnd + BlockEnd + Eos;
        foreach (var message in LenientWays(ThinkingMode.Chat, text))
        {
            Assert.Equal("a\n\nb", message.Content);
            Assert.Equal(2, message.ToolCalls.Count);
        }
    }

    // ---- time

    public static TheoryData<string, string> LongTexts => new()
    {
        { "", "\n" },
        { "", "<" },
        { "", "a\n\n<｜DSML" },
        { Block + "<｜DSML｜invoke name=\"", "x" },
        { Block + "<｜DSML｜invoke name=\"", "\">\n" },
        { Block + Invoke + "<｜DSML｜parameter", "\"" },
        { Block + Invoke + "<｜DSML｜parameter name=\"k\" string=\"true\">", "</｜DSML｜" },
        { Block, Invoke + InvokeEnd },
        { "", Block + "x" },
    };

    [Theory]
    [MemberData(nameof(LongTexts))]
    public void Time_is_linear_however_the_text_comes(string start, string repeated)
    {
        foreach (var parsing in new[] { CompletionParsing.Strict, CompletionParsing.Lenient })
        {
            foreach (int step in new[] { 1, int.MaxValue })
            {
                LinearTime.Check(50_000, size =>
                {
                    string text = start + string.Concat(Enumerable.Repeat(repeated, size / repeated.Length));
                    return () => FeedInSteps(text, parsing, step);
                });
            }
        }
    }

    private static void FeedInSteps(string text, CompletionParsing parsing, int step)
    {
        var parser = new CompletionStreamParser(ThinkingMode.Chat, parsing);
        var events = new List<CompletionEvent>();
        try
        {
            for (int at = 0; at < text.Length;)
            {
                int length = Math.Min(step, text.Length - at);
                parser.Push(text.AsSpan(at, length), events);
                events.Clear();
                at += length;
            }
            parser.Complete(events);
        }
        catch (CompletionFormatException)
        {
        }
    }

    // ---- helpers

    private static string ContentSoFar(string text, bool cutEverywhere)
    {
        var parser = new CompletionStreamParser(ThinkingMode.Chat);
        var events = new List<CompletionEvent>();
        foreach (string piece in cutEverywhere ? text.Select(c => c.ToString()) : [text])
            parser.Push(piece, events);
        return ParsedMessage.FromEvents(events).Content;
    }

    private static IEnumerable<ParsedMessage> LenientWays(ThinkingMode mode, string text)
    {
        yield return DeepSeekV4ChatEncoding.Parse(text, mode, CompletionParsing.Lenient);
        yield return ParsedMessage.FromEvents(Feed(mode, CompletionParsing.Lenient, text, Enumerable.Range(0, text.Length).ToArray()).Events);
    }

    private static void AssertOutcome(string whole, ThinkingMode mode, CompletionParsing parsing, string text, params int[] cuts)
    {
        string actual = Outcome(mode, parsing, text, cuts);
        if (whole != actual)
            Assert.Fail($"cut at {string.Join(", ", cuts)}: {whole} became {actual}, text {JsonSerializer.Serialize(text)}");
    }

    // Everything a reader of the events can see, with deltas of a kind joined: independent of the cuts or the test fails.
    private static string Outcome(ThinkingMode mode, CompletionParsing parsing, string text, params int[] cuts)
    {
        var (events, fault, violation) = Feed(mode, parsing, text, cuts);
        var outcome = new StringBuilder();
        CompletionEvent? last = null;
        foreach (var e in events)
        {
            Assert.True(e.Text.Length > 0 || e.Kind is CompletionEventKind.ToolCallStart or CompletionEventKind.ToolCallEnd or CompletionEventKind.ToolCallCutOff);
            if (last is null || last.Value.Kind != e.Kind || last.Value.ToolCallIndex != e.ToolCallIndex)
                outcome.Append($"|{e.Kind} {e.ToolCallIndex}: ");
            outcome.Append(e.Text);
            last = e;
        }
        return outcome.Append($"|{fault?.Violation} {fault?.Position} {violation}").ToString();
    }

    private static (List<CompletionEvent> Events, CompletionFormatException? Fault, CompletionViolation? Violation) Feed(
        ThinkingMode mode, CompletionParsing parsing, string text, params int[] cuts)
    {
        var parser = new CompletionStreamParser(mode, parsing);
        var events = new List<CompletionEvent>();
        try
        {
            int from = 0;
            foreach (int cut in cuts.Order().Append(text.Length))
            {
                parser.Push(text.AsSpan(from, cut - from), events);
                from = cut;
            }
            parser.Complete(events);
            return (events, null, parser.Violation);
        }
        catch (CompletionFormatException fault)
        {
            return (events, fault, parser.Violation);
        }
    }

    private static void AssertSameJson(string expected, string actual)
    {
        using var left = JsonDocument.Parse(expected);
        using var right = JsonDocument.Parse(actual);
        Assert.True(JsonElement.DeepEquals(left.RootElement, right.RootElement), $"expected {expected}, got {actual}");
    }
}

// Takes a DeepSeek-V4 completion apart while it is being generated: text deltas in, events out (specification 5.7).
//
// A machine over the unread text, one state per place in the grammar. Text is passed on as soon as it cannot be the
// start of a marker; only such a start is held back (and half of a surrogate pair, so that every event is whole
// characters). The opening tags of calls and parameters are read whole. Arguments stream as JSON text.
//
// It knows no token ids and no network, and never looks at what the arguments mean. One parser per completion, owned
// by its caller, not thread-safe.
//
// Invariant: the events put together depend on the text alone, never on how it was cut; each character is looked at a
// bounded number of times.

namespace Inference.Runtime.Chat;

/// <summary>What a parser does with text that breaks the format.</summary>
public enum CompletionParsing
{
    /// <summary>As the reference: the first violation is an exception, a missing end token is one too.</summary>
    Strict,

    /// <summary>
    /// For serving: a text may end anywhere (calls it cuts off are marked so), the end token ends it wherever it
    /// stands, control tokens elsewhere are text, and the text of a malformed call becomes content.
    /// </summary>
    Lenient,
}

/// <summary>Parses one completion piece by piece.</summary>
public sealed class CompletionStreamParser
{
    /// <summary>Longest opening tag that the lenient parser waits for before it takes it for text.</summary>
    private const int HeadCharsMax = 4096;

    /// <summary>Most white space that the lenient parser skips between two tags.</summary>
    private const int GapCharsMax = 16;

    private enum State
    {
        Reasoning,
        Content,
        BeforeInvoke,
        InvokeHead,
        ParameterHead,
        ParameterName,
        ParameterValue,
        AfterParameter,
        AfterBlock,
        Ended,
    }

    private readonly bool _strict;
    private readonly PendingText _pending = new();
    private readonly ToolCallBuilder _call = new();
    private State _state;
    private List<CompletionEvent> _events = [];
    private CompletionFormatException? _failure;
    private bool _complete;

    // Text of the tag in hand: given back as content when a lenient parse gives the tag up.
    private string _opener = "";

    /// <param name="mode">How the prompt ended: <see cref="RenderedPrompt.CompletionMode"/>.</param>
    public CompletionStreamParser(ThinkingMode mode, CompletionParsing parsing = CompletionParsing.Lenient)
    {
        _strict = parsing == CompletionParsing.Strict;
        _state = mode == ThinkingMode.Thinking ? State.Reasoning : State.Content;
    }

    /// <summary>First violation that a lenient parse passed over; null when the text was well formed so far.</summary>
    public CompletionViolation? Violation { get; private set; }

    /// <summary>True once the end token was read: nothing that follows belongs to the message.</summary>
    public bool Ended => _state == State.Ended;

    /// <summary>Takes the next piece of the completion and adds the events that it settles.</summary>
    /// <exception cref="CompletionFormatException">Strict parsing: the text breaks the format (again on later calls).</exception>
    public void Push(ReadOnlySpan<char> delta, List<CompletionEvent> events)
    {
        if (_complete)
            throw new InvalidOperationException("the completion was already completed");
        if (_failure is not null)
            throw _failure;
        _pending.Append(delta);
        Run(events);
    }

    /// <summary>Says that no more text comes and adds the last events. A second call does nothing.</summary>
    /// <exception cref="CompletionFormatException">Strict parsing: the text is not whole.</exception>
    public void Complete(List<CompletionEvent> events)
    {
        if (_complete && _failure is null)
            return;
        _complete = true;
        Run(events);
        FinishState();
    }

    private void Run(List<CompletionEvent> events)
    {
        if (_failure is not null)
            throw _failure;
        _events = events;
        while (Step())
        {
        }
    }

    private bool Step() => _state switch
    {
        State.Reasoning => StepText(_strict ? DeepSeekV4Stops.StrictReasoning : DeepSeekV4Stops.LenientReasoning),
        State.Content => StepText(_strict ? DeepSeekV4Stops.StrictContent : DeepSeekV4Stops.LenientContent),
        State.BeforeInvoke => StepGap(DeepSeekV4Wire.InvokeStart, DeepSeekV4Wire.CallsEnd),
        State.InvokeHead => StepInvokeHead(),
        State.ParameterHead => StepParameterHead(),
        State.ParameterName => StepParameterName(),
        State.ParameterValue => StepValue(_strict ? DeepSeekV4Stops.StrictValue : DeepSeekV4Stops.LenientValue),
        State.AfterParameter => StepGap(DeepSeekV4Wire.ParameterStart, DeepSeekV4Wire.InvokeEnd),
        State.AfterBlock => StepAfterBlock(),
        _ => StepEnded(),
    };

    // ---- reasoning and content

    private bool StepText(StopSet stops)
    {
        var kind = _state == State.Reasoning ? CompletionEventKind.ReasoningDelta : CompletionEventKind.ContentDelta;
        bool found = _pending.FindStop(stops, _complete, out int length, out string stop);
        if (length > 0)
            _events.Add(new CompletionEvent(kind, _pending.Take(length).ToString()));
        return found && OnTextStop(stop);
    }

    private bool OnTextStop(string stop)
    {
        bool opensCalls = stop.EndsWith(DeepSeekV4Wire.CallsStart, StringComparison.Ordinal);
        if (_state == State.Reasoning && opensCalls)
            return Fail(CompletionViolation.ToolCallInReasoning);
        if (stop == DeepSeekV4Wire.EndOfSequence && (_state == State.Content || !_strict))
            return Enter(State.Ended, stop);
        if (stop == DeepSeekV4Wire.ThinkEnd && _state == State.Reasoning)
            return Enter(State.Content, stop);
        return opensCalls ? Enter(State.BeforeInvoke, stop) : Fail(CompletionViolation.ControlToken);
    }

    // ---- tool-call block

    // Between two tags: '>' and a line break, then one of two tags.
    private bool StepGap(string first, string second)
    {
        int gap = GapLength();
        if (gap < 0)
            return _pending.Text is not ("" or ">") && FailInBlock();
        var rest = _pending.Text[gap..];
        if (rest.StartsWith(first))
            return EnterTag(first, gap);
        if (rest.StartsWith(second))
            return EnterTag(second, gap);
        if (IsUnfinished(rest, first, out bool cut) || IsUnfinished(rest, second, out cut))
            return cut && CutOff();
        return FailInBlock();
    }

    private bool FailInBlock() =>
        Fail(_state == State.BeforeInvoke ? CompletionViolation.ToolBlockFormat : CompletionViolation.ParameterFormat);

    // Characters before the next tag; -1 when what stands there is no gap (or not a whole one yet).
    private int GapLength()
    {
        var text = _pending.Text;
        if (_strict)
            return text.StartsWith(">\n") ? 2 : -1;
        if (text.StartsWith(DeepSeekV4Wire.EndOfSequence) || IsStartOf(text, DeepSeekV4Wire.EndOfSequence))
            return 0;
        if (text[0] != '>')
            return -1;
        int gap = 1;
        while (gap < text.Length && gap <= GapCharsMax && char.IsWhiteSpace(text[gap]))
            gap++;
        return gap > GapCharsMax ? -1 : gap;
    }

    private bool EnterTag(string tag, int gap)
    {
        _pending.Take(gap);
        if (tag == DeepSeekV4Wire.CallsEnd)
            return Enter(_strict ? State.AfterBlock : State.Content, tag);
        if (tag == DeepSeekV4Wire.InvokeEnd)
            return EndCall();
        return Enter(tag == DeepSeekV4Wire.InvokeStart ? State.InvokeHead : State.ParameterHead, tag);
    }

    private bool StepInvokeHead()
    {
        var stops = _strict ? DeepSeekV4Stops.StrictInvokeHead : DeepSeekV4Stops.LenientInvokeHead;
        if (!FindHeadEnd(stops, CompletionViolation.ToolNameFormat, out int length, out string stop, out bool failed))
            return failed;
        if (stop == DeepSeekV4Wire.EndOfSequence)
            return CutOff();
        if (!TryReadName(_pending.Text[..length], out var name))
            return Fail(CompletionViolation.ToolNameFormat);
        _call.Begin(name.ToString(), _events);
        _pending.Take(length);
        return stop == DeepSeekV4Wire.InvokeEnd ? EndCall() : Enter(State.ParameterHead, stop);
    }

    // ' name="NAME">' and one or two line breaks.
    private bool TryReadName(ReadOnlySpan<char> head, out ReadOnlySpan<char> name)
    {
        const string opening = "name=\"";
        const string closing = "\">";
        head = head.TrimStart();
        name = default;
        int breaks = head.Length - head.TrimEnd(_strict ? "\n" : " \t\r\n").Length;
        if (_strict && breaks is not (1 or 2))
            return false;
        head = head[..^breaks];
        if (head.Length < opening.Length + closing.Length || !head.StartsWith(opening) || !head.EndsWith(closing))
            return false;
        name = head[opening.Length..^closing.Length];
        return true;
    }

    private bool StepParameterHead()
    {
        var text = _pending.Text;
        if (text.StartsWith(DeepSeekV4Wire.NameAttribute))
            return Enter(State.ParameterName, DeepSeekV4Wire.NameAttribute, opener: DeepSeekV4Wire.ParameterStart + DeepSeekV4Wire.NameAttribute);
        if (IsUnfinished(text, DeepSeekV4Wire.NameAttribute, out bool cut))
            return cut && CutOff();
        return Fail(CompletionViolation.ParameterFormat);
    }

    // The name goes on to the first '" string="true">' or '" string="false">', whatever it holds.
    private bool StepParameterName()
    {
        var stops = _strict ? DeepSeekV4Stops.StrictParameterName : DeepSeekV4Stops.LenientParameterName;
        if (!FindHeadEnd(stops, CompletionViolation.ParameterFormat, out int length, out string stop, out bool failed))
            return failed;
        if (stop == DeepSeekV4Wire.EndOfSequence)
            return CutOff();
        if (stop is not (DeepSeekV4Wire.StringAttribute or DeepSeekV4Wire.JsonAttribute))
            return Fail(CompletionViolation.ParameterFormat);
        string name = _pending.Text[..length].ToString();
        if (!_call.BeginParameter(name, isString: stop == DeepSeekV4Wire.StringAttribute, _events))
            return Fail(CompletionViolation.ParameterRepeated);
        _pending.Take(length);
        return Enter(State.ParameterValue, stop);
    }

    private bool StepValue(StopSet stops)
    {
        bool found = _pending.FindStop(stops, final: false, out int length, out string stop);
        if (length > 0)
            _call.AppendValue(_pending.Take(length), _events);
        if (!found)
            return false;
        if (stop == DeepSeekV4Wire.EndOfSequence)
            return CutOff();
        if (stop is not (DeepSeekV4Wire.ParameterEnd or DeepSeekV4Stops.BrokenParameterEnd))
            return Fail(CompletionViolation.ParameterFormat);
        _call.EndParameter(_events);
        return Enter(State.AfterParameter, stop);
    }

    private bool EndCall()
    {
        _call.End(_events);
        return Enter(State.BeforeInvoke, DeepSeekV4Wire.InvokeEnd);
    }

    // ---- the end

    private bool StepAfterBlock()
    {
        if (_pending.Text.StartsWith(DeepSeekV4Wire.EndOfSequence))
            return Enter(State.Ended, DeepSeekV4Wire.EndOfSequence);
        return !IsStartOf(_pending.Text, DeepSeekV4Wire.EndOfSequence) && Fail(CompletionViolation.TextAfterToolCalls);
    }

    private bool StepEnded()
    {
        if (_pending.Text.IsEmpty)
            return false;
        if (_strict)
            return Fail(CompletionViolation.TextAfterEnd);
        _pending.Take(_pending.Text.Length);
        return false;
    }

    // The end token inside a call.
    private bool CutOff()
    {
        Violation ??= CompletionViolation.ToolBlockNotEnded;
        _call.CutOff(_events);
        _pending.Take(_pending.Text.Length);
        _state = State.Ended;
        return false;
    }

    private void FinishState()
    {
        switch (_state)
        {
            case State.Ended:
                break;
            case State.Reasoning:
                FailAtEnd(CompletionViolation.ReasoningNotEnded);
                break;
            case State.Content or State.AfterBlock:
                FailAtEnd(CompletionViolation.EndOfSequenceMissing);
                break;
            default:
                FailAtEnd(CompletionViolation.ToolBlockNotEnded);
                _call.CutOff(_events);
                break;
        }
    }

    // ---- helpers

    private bool Enter(State state, string consumed, string? opener = null)
    {
        _pending.Take(consumed.Length);
        _state = state;
        _opener = opener ?? consumed;
        return true;
    }

    // Finds where an opening tag ends. A lenient parse gives up a tag whose end does not begin within the limit; that
    // must not depend on how much text has come, so it waits until no end can begin there any more.
    private bool FindHeadEnd(StopSet stops, CompletionViolation violation, out int length, out string stop, out bool failed)
    {
        bool found = _pending.FindHeadEnd(stops, out length, out stop);
        bool tooLong = found ? length > HeadCharsMax : length >= HeadCharsMax + stops.LengthMax;
        failed = !_strict && tooLong && Fail(violation);
        return found && !failed;
    }

    /// <summary>Strict: throws. Lenient: the tag in hand and what follows is content; true, because that is progress.</summary>
    private bool Fail(CompletionViolation violation)
    {
        if (_strict)
            Throw(violation);
        Violation ??= violation;
        _call.CutOff(_events);
        _events.Add(new CompletionEvent(CompletionEventKind.ContentDelta, _opener));
        _state = State.Content;
        return true;
    }

    // A lenient parse may end anywhere; that the end token is missing means nothing then, since servers strip it.
    private void FailAtEnd(CompletionViolation violation)
    {
        if (_strict)
            Throw(violation);
        if (violation != CompletionViolation.EndOfSequenceMissing)
            Violation ??= violation;
    }

    private void Throw(CompletionViolation violation)
    {
        _failure = new CompletionFormatException(violation, _pending.Position);
        throw _failure;
    }

    private static bool IsStartOf(ReadOnlySpan<char> text, string whole) => text.Length < whole.Length && whole.AsSpan().StartsWith(text);

    // The text is a beginning of the literal so far. For the lenient parser the end token may come anywhere in it.
    private bool IsUnfinished(ReadOnlySpan<char> text, string literal, out bool cut)
    {
        cut = false;
        if (_strict)
            return IsStartOf(text, literal);
        for (int length = 0; length <= text.CommonPrefixLength(literal); length++)
        {
            cut = text[length..].StartsWith(DeepSeekV4Wire.EndOfSequence);
            if (cut || IsStartOf(text[length..], DeepSeekV4Wire.EndOfSequence))
                return true;
        }
        return false;
    }
}

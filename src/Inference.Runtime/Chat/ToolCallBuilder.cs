using System.Text;

namespace Inference.Runtime.Chat;

/// <summary>
/// Writes the events of one call after the other: name, then the arguments as JSON text in pieces. String values are
/// quoted, all others go through as they are, whether they are JSON or not (specification 5.7).
/// </summary>
internal sealed class ToolCallBuilder
{
    private readonly HashSet<string> _keys = [];
    private readonly StringBuilder _json = new();
    private int _index = -1;
    private bool _open;
    private bool _isString;

    public void Begin(string name, List<CompletionEvent> events)
    {
        _index++;
        _open = true;
        _keys.Clear();
        events.Add(new CompletionEvent(CompletionEventKind.ToolCallStart, name, _index));
    }

    /// <returns>False, and nothing done, when the call already has this parameter.</returns>
    public bool BeginParameter(string key, bool isString, List<CompletionEvent> events)
    {
        if (!_keys.Add(key))
            return false;
        _isString = isString;
        _json.Append(_keys.Count == 1 ? "{" : ", ");
        PythonJson.AppendQuoted(_json, key);
        _json.Append(isString ? ": \"" : ": ");
        Emit(events);
        return true;
    }

    public void AppendValue(ReadOnlySpan<char> piece, List<CompletionEvent> events)
    {
        if (_isString)
            PythonJson.AppendEscaped(_json, piece);
        else
            _json.Append(piece);
        Emit(events);
    }

    public void EndParameter(List<CompletionEvent> events)
    {
        if (!_isString)
            return;
        _json.Append('"');
        Emit(events);
    }

    public void End(List<CompletionEvent> events)
    {
        _json.Append(_keys.Count == 0 ? "{}" : "}");
        Emit(events);
        Close(CompletionEventKind.ToolCallEnd, events);
    }

    /// <summary>Ends the call that is open, if there is one, as unfinished.</summary>
    public void CutOff(List<CompletionEvent> events)
    {
        if (_open)
            Close(CompletionEventKind.ToolCallCutOff, events);
    }

    private void Close(CompletionEventKind kind, List<CompletionEvent> events)
    {
        _open = false;
        events.Add(new CompletionEvent(kind, "", _index));
    }

    private void Emit(List<CompletionEvent> events)
    {
        events.Add(new CompletionEvent(CompletionEventKind.ToolCallArgumentsDelta, _json.ToString(), _index));
        _json.Clear();
    }
}

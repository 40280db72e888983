// A recursive reader over one string, by the rules of Python's json.loads in strict mode: white space is blank, tab,
// CR and LF; control characters inside strings are errors; NaN, Infinity and -Infinity are numbers; an escaped
// surrogate pair is one character and a lone one stays as it is.
//
// Each character is looked at a bounded number of times. Depth is bounded by PythonJson.DepthMax, so hostile nesting
// is an error and not the end of the process.

using System.Buffers;
using System.Text;

namespace Inference.Runtime.Chat;

internal ref struct PythonJsonReader
{
    /// <summary>Characters that a JSON string cannot hold as they are.</summary>
    public static readonly SearchValues<char> StringStops =
        SearchValues.Create("\"\\" + string.Concat(Enumerable.Range(0, 0x20).Select(c => (char)c)));

    // Below this many members, looking for a repeated key among them is faster than keeping a dictionary.
    private const int IndexedMembersMin = 16;

    private readonly ReadOnlySpan<char> _json;
    private int _at;
    private int _depth;

    private PythonJsonReader(ReadOnlySpan<char> json) => _json = json;

    public static PythonValue Read(ReadOnlySpan<char> json)
    {
        var reader = new PythonJsonReader(json);
        reader.SkipWhiteSpace();
        var value = reader.ReadValue();
        reader.SkipWhiteSpace();
        return reader._at == json.Length ? value : throw reader.Fault("unexpected text after the JSON value");
    }

    private PythonValue ReadValue()
    {
        switch (Peek())
        {
            case '"': return PythonValue.OfString(ReadString());
            case '{': return ReadObject();
            case '[': return ReadArray();
            case 'n' when TakeWord("null"): return PythonValue.Null;
            case 't' when TakeWord("true"): return PythonValue.True;
            case 'f' when TakeWord("false"): return PythonValue.False;
            case 'N' when TakeWord("NaN"): return PythonValue.OfNumber("NaN");
            case 'I' when TakeWord("Infinity"): return PythonValue.OfNumber("Infinity");
            case '-' when TakeWord("-Infinity"): return PythonValue.OfNumber("-Infinity");
            default: return ReadNumber();
        }
    }

    private PythonValue ReadObject()
    {
        Enter();
        var members = new List<KeyValuePair<string, PythonValue>>();
        Dictionary<string, int>? index = null;
        SkipWhiteSpace();
        if (!Take('}'))
        {
            do
            {
                SkipWhiteSpace();
                if (Peek() != '"')
                    throw Fault("expected a member name in double quotes");
                string key = ReadString();
                SkipWhiteSpace();
                Expect(':', "expected ':' after a member name");
                SkipWhiteSpace();
                SetMember(members, ref index, key, ReadValue());
                SkipWhiteSpace();
            }
            while (Take(','));
            Expect('}', "expected ',' or '}'");
        }
        _depth--;
        return PythonValue.OfObject(members);
    }

    private PythonValue ReadArray()
    {
        Enter();
        var items = new List<PythonValue>();
        SkipWhiteSpace();
        if (!Take(']'))
        {
            do
            {
                SkipWhiteSpace();
                items.Add(ReadValue());
                SkipWhiteSpace();
            }
            while (Take(','));
            Expect(']', "expected ',' or ']'");
        }
        _depth--;
        return PythonValue.OfArray(items);
    }

    private PythonValue ReadNumber()
    {
        int start = _at;
        Take('-');
        if (!Take('0') && !TakeDigits())
        {
            _at = start;
            throw Fault("expected a value");
        }
        int end = _at;
        if (Take('.'))
            end = TakeDigits() ? _at : end;
        _at = end;
        if (Peek() is 'e' or 'E')
        {
            _at++;
            if (Peek() is '+' or '-')
                _at++;
            end = TakeDigits() ? _at : end;
        }
        _at = end;
        return PythonValue.OfNumber(PythonNumber.Canonical(_json[start..end]));
    }

    private string ReadString()
    {
        _at++;
        int plain = _json[_at..].IndexOfAny(StringStops);
        if (plain >= 0 && _json[_at + plain] == '"')
        {
            string text = _json.Slice(_at, plain).ToString();
            _at += plain + 1;
            return text;
        }
        return ReadStringWithEscapes();
    }

    private string ReadStringWithEscapes()
    {
        var text = new StringBuilder();
        while (true)
        {
            int plain = _json[_at..].IndexOfAny(StringStops);
            if (plain < 0)
            {
                _at = _json.Length;
                throw Fault("unterminated string");
            }
            text.Append(_json.Slice(_at, plain));
            _at += plain;
            if (Take('"'))
                return text.ToString();
            if (!Take('\\'))
                throw Fault("control character in a string");
            text.Append(ReadEscape());
        }
    }

    private char ReadEscape()
    {
        char c = Peek();
        char meaning = c switch
        {
            '"' or '\\' or '/' => c,
            'b' => '\b',
            'f' => '\f',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => ReadHexEscape(),
            _ => throw Fault("invalid escape in a string"),
        };
        _at++;
        return meaning;
    }

    // Leaves _at on the last hex digit. Pairs need no care: two escapes in a row give the two units of one character.
    private char ReadHexEscape()
    {
        int value = 0;
        for (int i = 1; i <= 4; i++)
        {
            if (_at + i >= _json.Length || !char.IsAsciiHexDigit(_json[_at + i]))
                throw Fault("invalid \\u escape in a string");
            value = (value << 4) | HexValue(_json[_at + i]);
        }
        _at += 4;
        return (char)value;
    }

    private static int HexValue(char c) => c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;

    private static void SetMember(
        List<KeyValuePair<string, PythonValue>> members, ref Dictionary<string, int>? index, string key, PythonValue value)
    {
        int at = index is not null
            ? index.GetValueOrDefault(key, -1)
            : members.FindIndex(member => member.Key == key);
        if (at >= 0)
        {
            members[at] = new(key, value);
            return;
        }
        members.Add(new(key, value));
        if (index is not null)
            index[key] = members.Count - 1;
        else if (members.Count == IndexedMembersMin)
            index = members.Select((member, i) => (member.Key, i)).ToDictionary(pair => pair.Key, pair => pair.i);
    }

    private void Enter()
    {
        if (++_depth > PythonJson.DepthMax)
            throw Fault($"nested deeper than {PythonJson.DepthMax} levels");
        _at++;
    }

    private readonly char Peek() => _at < _json.Length ? _json[_at] : '\0';

    private bool Take(char c)
    {
        if (_at >= _json.Length || _json[_at] != c)
            return false;
        _at++;
        return true;
    }

    private bool TakeWord(string word)
    {
        if (!_json[_at..].StartsWith(word))
            return false;
        _at += word.Length;
        return true;
    }

    private bool TakeDigits()
    {
        int start = _at;
        while (_at < _json.Length && char.IsAsciiDigit(_json[_at]))
            _at++;
        return _at > start;
    }

    private void Expect(char c, string problem)
    {
        if (!Take(c))
            throw Fault(problem);
    }

    private void SkipWhiteSpace()
    {
        while (_at < _json.Length && _json[_at] is ' ' or '\t' or '\n' or '\r')
            _at++;
    }

    private readonly PythonJsonException Fault(string problem) => new(problem, _at);
}

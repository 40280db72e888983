using System.Text;

namespace Inference.Server.Commands;

/// <summary>
/// Reads a line at the terminal: arrows, Home, End, word and line deletion, a history. The line stays on one row and scrolls sideways, so that
/// nothing depends on how a terminal wraps. It owns the terminal's row while it reads. Ctrl-C empties a line and leaves an empty one,
/// as Ctrl-D does.
/// </summary>
internal sealed class LineEditor
{
    private readonly List<string> _history = [];
    private readonly StringBuilder _line = new();
    private int _cursor;
    private int _recalled;

    /// <returns>The line; null at the end of the input.</returns>
    public string? Read(string prompt)
    {
        _line.Clear();
        (_cursor, _recalled) = (0, _history.Count);
        bool before = Console.TreatControlCAsInput;
        Console.TreatControlCAsInput = true;
        try
        {
            while (true)
            {
                Draw(prompt);
                var key = Console.ReadKey(intercept: true);
                if (key.Key == ConsoleKey.Enter) return Enter();
                if (IsControl(key, 'D') && _line.Length == 0 || IsControl(key, 'C') && _line.Length == 0) return Leave();
                Edit(key);
            }
        }
        finally
        {
            Console.TreatControlCAsInput = before;
        }
    }

    private string Enter()
    {
        string line = _line.ToString();
        if (line.Trim().Length > 0 && (_history.Count == 0 || _history[^1] != line)) _history.Add(line);
        Console.Out.WriteLine();
        return line;
    }

    private static string? Leave()
    {
        Console.Out.WriteLine();
        return null;
    }

    private void Edit(ConsoleKeyInfo key)
    {
        switch (key.Key)
        {
            case ConsoleKey.LeftArrow:
                _cursor = Previous(_cursor);
                break;
            case ConsoleKey.RightArrow:
                _cursor = Next(_cursor);
                break;
            case ConsoleKey.Home:
                _cursor = 0;
                break;
            case ConsoleKey.End:
                _cursor = _line.Length;
                break;
            case ConsoleKey.UpArrow:
                Recall(_recalled - 1);
                break;
            case ConsoleKey.DownArrow:
                Recall(_recalled + 1);
                break;
            case ConsoleKey.Backspace:
                Remove(Previous(_cursor), _cursor);
                break;
            case ConsoleKey.Delete:
                Remove(_cursor, Next(_cursor));
                break;
            default:
                if (key.Modifiers.HasFlag(ConsoleModifiers.Control)) EditControl(key);
                else if (!char.IsControl(key.KeyChar)) Insert(key.KeyChar);
                break;
        }
    }

    private void EditControl(ConsoleKeyInfo key)
    {
        if (IsControl(key, 'A')) _cursor = 0;
        else if (IsControl(key, 'E')) _cursor = _line.Length;
        else if (IsControl(key, 'K')) Remove(_cursor, _line.Length);
        else if (IsControl(key, 'U')) Remove(0, _cursor);
        else if (IsControl(key, 'W')) Remove(WordStart(), _cursor);
        else if (IsControl(key, 'D')) Remove(_cursor, Next(_cursor));
        else if (IsControl(key, 'C')) Remove(0, _line.Length);
    }

    private static bool IsControl(ConsoleKeyInfo key, char letter) =>
        key.Modifiers.HasFlag(ConsoleModifiers.Control) && key.Key == ConsoleKey.A + (letter - 'A');

    private void Insert(char c) => _line.Insert(_cursor++, c);

    private void Remove(int from, int to)
    {
        _line.Remove(from, to - from);
        _cursor = from;
    }

    private void Recall(int index)
    {
        if (index < 0 || index > _history.Count) return;
        _recalled = index;
        _line.Clear().Append(index < _history.Count ? _history[index] : "");
        _cursor = _line.Length;
    }

    private int WordStart()
    {
        int at = _cursor;
        while (at > 0 && char.IsWhiteSpace(_line[at - 1])) at--;
        while (at > 0 && !char.IsWhiteSpace(_line[at - 1])) at--;
        return at;
    }

    private int Previous(int at) => at == 0 ? 0 : at - (at > 1 && char.IsSurrogatePair(_line[at - 2], _line[at - 1]) ? 2 : 1);

    private int Next(int at) =>
        at == _line.Length ? at : at + (at + 1 < _line.Length && char.IsSurrogatePair(_line[at], _line[at + 1]) ? 2 : 1);

    // The part of the line around the cursor that fits the row.
    private void Draw(string prompt)
    {
        int room = Math.Max(8, Console.WindowWidth - prompt.Length - 1);
        int start = _cursor, left = 0;
        while (start > 0 && left + Width(start - 1) < room) left += Width(--start);
        int end = _cursor, total = left;
        while (end < _line.Length && total + Width(end) < room) total += Width(end++);
        string shown = _line.ToString(start, end - start);
        string back = total > left ? $"\u001b[{total - left}D" : "";
        Console.Out.Write($"\r\u001b[1;32m{prompt}\u001b[0m{shown}\u001b[K{back}");
        Console.Out.Flush();
    }

    /// <summary>Terminal columns of one UTF-16 unit; both halves of a pair together make a wide character.</summary>
    private int Width(int at)
    {
        char c = _line[at];
        if (char.IsSurrogate(c)) return 1;
        if (char.GetUnicodeCategory(c) is System.Globalization.UnicodeCategory.NonSpacingMark or System.Globalization.UnicodeCategory.EnclosingMark
            or System.Globalization.UnicodeCategory.Format) return 0;
        bool wide = c is >= '\u1100' and <= '\u115F' or >= '\u2E80' and <= '\uA4CF' or >= '\uAC00' and <= '\uD7A3' or >= '\uF900' and <= '\uFAFF'
            or >= '\uFE30' and <= '\uFE6F' or >= '\uFF00' and <= '\uFF60' or >= '\uFFE0' and <= '\uFFE6';
        return wide ? 2 : 1;
    }
}

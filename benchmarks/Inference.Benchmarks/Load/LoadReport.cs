using System.Globalization;
using System.Text;

namespace Inference.Benchmarks.Load;

/// <summary>Rows of goal and figure, printed as they come and kept for the table.</summary>
internal sealed class LoadReport
{
    private readonly List<string> _rows = [];

    public bool AllMet { get; private set; } = true;

    public void Goal(string what, string goal, string figure, bool met)
    {
        AllMet &= met;
        Row(what, goal, figure, met ? "met" : "**missed**");
    }

    /// <summary>A figure that explains others, without a goal of its own.</summary>
    public void Figure(string what, string figure) => Row(what, "", figure, "");

    public static string Ms(double seconds) => (seconds * 1000).ToString("#,0.#", CultureInfo.InvariantCulture) + " ms";

    public static string Percent(double share) => (share * 100).ToString("0.0", CultureInfo.InvariantCulture) + " %";

    public static string Number(double value) => value.ToString("#,0.#", CultureInfo.InvariantCulture);

    public override string ToString()
    {
        var text = new StringBuilder("| measured | goal | figure | |\n|---|---|---|---|\n");
        foreach (string row in _rows) text.Append(row).Append('\n');
        return text.ToString();
    }

    private void Row(string what, string goal, string figure, string met)
    {
        _rows.Add($"| {what} | {goal} | {figure} | {met} |");
        Console.WriteLine($"{what}: {figure}{(goal.Length > 0 ? $"  (goal: {goal}; {met})" : "")}");
    }
}

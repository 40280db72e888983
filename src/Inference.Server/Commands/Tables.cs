using Spectre.Console;

namespace Inference.Server.Commands;

/// <summary>How tables of this program look: light lines in a terminal, as wide as they need to be elsewhere.</summary>
internal static class Tables
{
    private const int WidthElsewhere = 200;

    /// <summary>Standard output.</summary>
    public static IAnsiConsole Terminal()
    {
        if (Console.IsOutputRedirected) AnsiConsole.Profile.Width = WidthElsewhere;
        return AnsiConsole.Console;
    }

    /// <summary>An empty table; <see cref="Show"/> writes it under its title.</summary>
    public static Table New(params TableColumn[] columns) => new Table { Border = TableBorder.Simple }.AddColumns(columns);

    public static void Show(this IAnsiConsole terminal, string title, Table table)
    {
        terminal.Write(new Text(title + "\n", new Style(Color.Green)));
        terminal.Write(table);
    }

    public static TableColumn Text(string name) => new TableColumn(name).LeftAligned().NoWrap();

    public static TableColumn Number(string name) => new TableColumn(name).RightAligned().NoWrap();
}

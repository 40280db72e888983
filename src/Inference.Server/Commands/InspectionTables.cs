using System.Globalization;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Spectre.Console;

namespace Inference.Server.Commands;

/// <summary>An inspection as tables for people.</summary>
internal static class InspectionTables
{
    public static void Write(ModelInspection inspection, int[] contexts)
    {
        var terminal = Tables.Terminal();
        terminal.Write(Model(inspection));
        terminal.WriteLine();
        if (inspection.Summary is { } summary) terminal.Show("Weights as stored", Storage(summary));
        terminal.Show("State of a sequence", States(inspection.KvStates));
        terminal.Show("Memory of one sequence", Memory(inspection, contexts));
    }

    private static Grid Model(ModelInspection inspection)
    {
        var c = inspection.Config!;
        var grid = new Grid().AddColumn(new GridColumn().NoWrap().PadRight(3)).AddColumn();
        Row("folder", inspection.Folder);
        Row("family", DeepSeekV4Config.ModelType);
        if (inspection.Summary is { } summary) Row("parameters", Parameters(summary));
        Row("layers", $"{c.LayerCount}: {Layers(c)}");
        Row("hidden size", Units.Whole(c.HiddenSize));
        Row("heads", $"{c.HeadCount} of {c.HeadDim} ({c.RopeHeadDim} rotary), one shared key/value row; window {Units.Whole(c.SlidingWindow)}");
        Row("experts", $"{c.ExpertCount}, {c.ExpertsPerToken} per token and one shared, {Units.Whole(c.ExpertIntermediateSize)} wide");
        Row("vocabulary", Units.Whole(c.VocabSize));
        Row("tokenizer", inspection.Tokenizer is { } tokenizer ? $"{Units.Whole(tokenizer.VocabSize)} ids" : "none");
        Row("context", $"{Units.Whole(c.ContextMax)} tokens");
        Row("draft", c.DraftKind switch { DraftKind.Mtp => "MTP block", DraftKind.DSpark => "DSpark module", _ => "none" });
        if (inspection.WeightFiles.Count > 0) Row("weight files", Units.Whole(inspection.WeightFiles.Count));
        return grid;

        void Row(string name, string value) => grid.AddRow(new Text(name, new Style(Color.Green)), new Text(value));
    }

    private static string Parameters(ModelSummary s) =>
        $"{Units.Count(s.ParameterCount)}, {Units.Count(s.ActiveParameterCount)} active per token" +
        (s.DraftParameterCount > 0 ? $"; {Units.Count(s.DraftParameterCount)} more in the draft module" : "");

    private static string Layers(DeepSeekV4Config c) => string.Join(", ", Enumerable.Range(0, c.LayerCount).Select(l => c.CompressRatios[l])
        .GroupBy(r => r).OrderBy(g => g.Key).Select(g => g.Key switch
        {
            0 => $"{g.Count()} window only",
            DeepSeekV4Config.OverlapRatio => $"{g.Count()} with the best {Units.Whole(c.IndexTopK)} rows of {g.Key}:1",
            _ => $"{g.Count()} with all rows of {g.Key}:1",
        }));

    private static Table Storage(ModelSummary summary)
    {
        var table = Tables.New(Tables.Text("dtype"), Tables.Number("tensors"), Tables.Number("bytes"), Tables.Number("share"));
        foreach (var usage in summary.Storage)
            table.AddRow(usage.DType.ToString(), Units.Whole(usage.TensorCount), Units.Bytes(usage.ByteLength),
                ((double)usage.ByteLength / summary.ByteLength).ToString("P1", CultureInfo.InvariantCulture));
        return table.AddRow("all", Units.Whole(summary.TensorCount), Units.Bytes(summary.ByteLength), "");
    }

    private static Table States(IReadOnlyList<KvStateSpec> states)
    {
        var table = Tables.New(Tables.Text("kind"), Tables.Number("layers"), Tables.Number("row"), Tables.Number("tokens per row"),
            Tables.Text("kept"), Tables.Number("memory"));
        foreach (var s in states)
        {
            double perToken = (double)s.PageBytes / s.PageTokens;
            table.AddRow(s.Name, $"{s.LayerCount}", Units.Whole(s.Row.Width), $"{s.Ratio}", s.Retention switch
            {
                KvRetention.All => "all rows",
                KvRetention.Window => $"last {Units.Whole(s.RetentionTokens)} tokens",
                _ => $"unfinished {Units.Whole(s.RetentionTokens)} tokens" + (s.ChunksBefore > 0 ? $" and {s.ChunksBefore} chunk before" : ""),
            }, s.Retention == KvRetention.All ? $"{Units.Digits(perToken)} B per token" : Units.Bytes(s.PageBytes * s.PagesHeld(1 << 20, (1 << 20) + 1)));
        }
        return table;
    }

    private static Table Memory(ModelInspection inspection, int[] contexts)
    {
        var table = Tables.New(Tables.Number("context"), Tables.Number("state"), Tables.Number("with weights"));
        foreach (int context in contexts)
            table.AddRow(Units.Whole(context), Units.Bytes(inspection.KvBytes(context)),
                inspection.Summary is { } s ? Units.Bytes(s.ByteLength + inspection.KvBytes(context)) : "");
        return table;
    }
}

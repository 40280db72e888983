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
        string format = KvRowFormats.Names[inspection.Format];
        terminal.Show($"State of a sequence, rows stored as {format}", States(inspection.KvStates, contexts[^1]));
        terminal.Show($"Memory of one sequence, rows stored as {format}", Memory(inspection, contexts));
        terminal.Show($"Memory of {Units.Whole(contexts[^1])} tokens by format (--kv-format)", Formats(inspection, contexts[^1]));
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

    private static Table States(IReadOnlyList<KvStateSpec> states, int context)
    {
        var table = Tables.New(Tables.Text("kind"), Tables.Number("layers"), Tables.Number("row"), Tables.Number("bytes"), Tables.Number("tokens per row"),
            Tables.Text("kept"), Tables.Number("memory"), Tables.Number($"at {Units.Whole(context)}"));
        foreach (var s in states)
        {
            double perToken = (double)s.PageBytes / s.PageTokens;
            table.AddRow(s.Name, $"{s.LayerCount}", Units.Whole(s.Row.Width), Units.Whole(s.Row.Bytes), $"{s.Ratio}", s.Retention switch
            {
                KvRetention.All => "all rows",
                KvRetention.Slot => "state after the last token",
                KvRetention.Window => $"last {Units.Whole(s.RetentionTokens)} tokens",
                _ => $"unfinished {Units.Whole(s.RetentionTokens)} tokens" + (s.ChunksBefore > 0 ? $" and {s.ChunksBefore} chunk before" : ""),
            }, s.Retention == KvRetention.All ? $"{Units.Digits(perToken)} B per token" : "constant", Units.Bytes(ModelInspection.BytesOf(s, context)));
        }
        return table;
    }

    private static Table Memory(ModelInspection inspection, int[] contexts)
    {
        var table = Tables.New(
            Tables.Number("context"), Tables.Number("rows"), Tables.Number("constant state"), Tables.Number("together"), Tables.Number("with weights"));
        foreach (int context in contexts)
        {
            var (rows, constant) = ModelInspection.KvBytes(inspection.KvStates, context);
            table.AddRow(Units.Whole(context), Units.Bytes(rows), Units.Bytes(constant), Units.Bytes(rows + constant),
                inspection.Summary is { } s ? Units.Bytes(s.ByteLength + rows + constant) : "");
        }
        return table;
    }

    private static Table Formats(ModelInspection inspection, int context)
    {
        var table = Tables.New(Tables.Text("format"), Tables.Number("row"), Tables.Number("index row"), Tables.Number("per token"), Tables.Number("rows"),
            Tables.Number("constant state"), Tables.Number("together"));
        foreach (var format in inspection.Formats)
        {
            var (rows, constant) = ModelInspection.KvBytes(inspection.KvStatesIn(format), context);
            table.AddRow(KvRowFormats.Names[format], $"{DeepSeekV4KvSize.Row(inspection.Config!, format).Bytes} B",
                $"{DeepSeekV4KvSize.IndexRow(inspection.Config!, format).Bytes} B",
                $"{Units.Digits(DeepSeekV4KvSize.Of(inspection.Config!, format).BytesPerToken)} B", Units.Bytes(rows), Units.Bytes(constant),
                Units.Bytes(rows + constant));
        }
        return table;
    }
}

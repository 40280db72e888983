using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.Json;
using Inference.Runtime.Models;
using Inference.Server.Options;
using Spectre.Console;

namespace Inference.Server.Commands;

/// <summary>A measurement with everything that is needed to compare it with another: machine, model, program, load.</summary>
internal sealed record BenchReport(
    DateTimeOffset Date, string Processor, int LogicalCores, long MemoryBytes, string OperatingSystem, string Runtime, string Version, string Model, bool Dummy, ModelInfo Info,
    string Backend, string Device, int StepTokensMax, ulong Seed)
{
    public List<BenchResult> Cells { get; } = [];

    public List<ContextResult> Contexts { get; } = [];

    public static BenchReport Begin(ModelOnBackend loaded, ModelOptions options, ulong seed)
    {
        var assembly = typeof(BenchReport).Assembly;
        return new BenchReport(
            DateTimeOffset.UtcNow, Machine.ProcessorName(), Environment.ProcessorCount, GC.GetGCMemoryInfo().TotalAvailableMemoryBytes,
            RuntimeInformation.OSDescription, RuntimeInformation.FrameworkDescription,
            assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "",
            Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(loaded.Folder))), options.Dummy, loaded.Model.Info,
            loaded.Backend.Info.Name, loaded.Backend.Info.Device, options.StepTokensMax, seed);
    }

    /// <summary>Field names are a contract; times are in milliseconds.</summary>
    public void WriteJson(Stream output)
    {
        using (var w = new Utf8JsonWriter(output, new JsonWriterOptions { Indented = true, Encoder = ResultOutput.Encoder })) Write(w);
        output.WriteByte((byte)'\n');
    }

    private void Write(Utf8JsonWriter w)
    {
        w.WriteStartObject();
        w.WriteString("date", Date);
        w.WriteStartObject("machine");
        w.WriteString("processor", Processor);
        w.WriteNumber("logical_cores", LogicalCores);
        w.WriteNumber("memory_bytes", MemoryBytes);
        w.WriteString("operating_system", OperatingSystem);
        w.WriteString("runtime", Runtime);
        w.WriteEndObject();
        w.WriteString("version", Version);
        w.WriteStartObject("model");
        w.WriteString("name", Model);
        w.WriteString("family", Info.Family);
        w.WriteNumber("parameters", Info.ParameterCount);
        w.WriteString("weights", Dummy ? "random" : "stored");
        w.WriteEndObject();
        w.WriteString("backend", Backend);
        w.WriteString("device", Device);
        w.WriteString("kv_format", Info.KvFormat);
        w.WriteNumber("step_tokens_max", StepTokensMax);
        w.WriteNumber("seed", Seed);
        w.WriteStartArray("cells");
        foreach (var cell in Cells) Write(w, cell);
        w.WriteEndArray();
        w.WriteStartArray("contexts");
        foreach (var context in Contexts) Write(w, context);
        w.WriteEndArray();
        w.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter w, BenchResult r)
    {
        w.WriteStartObject();
        w.WriteNumber("prompt_tokens", r.Cell.PromptTokens);
        w.WriteNumber("output_tokens", r.Cell.OutputTokens);
        w.WriteNumber("concurrency", r.Cell.Concurrency);
        w.WriteNumber("requests", r.Clocks.Count);
        w.WriteNumber("elapsed_ms", r.Elapsed.TotalMilliseconds);
        w.WriteNumber("output_tokens_per_second", r.OutputTokensPerSecond);
        w.WriteNumber("total_tokens_per_second", r.TotalTokensPerSecond);
        Write(w, "ttft_ms", r.TimeToFirstToken);
        Write(w, "tpot_ms", r.TimePerOutputToken);
        w.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter w, ContextResult r)
    {
        w.WriteStartObject();
        w.WriteNumber("context_tokens", r.Context);
        w.WriteString("rows", r.Computed ? "computed" : "filled");
        Write(w, "prefill", r.Prefill);
        Write(w, "decode", r.Decode);
        w.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter w, string name, TimingResult t)
    {
        w.WriteStartObject(name);
        w.WriteNumber("step_tokens", t.Tokens);
        Write(w, "wall", t.Wall);
        Write(w, "processor", t.Processor);
        w.WriteStartArray("parts");
        foreach (var part in t.Work)
        {
            w.WriteStartObject();
            w.WriteString("name", part.Name);
            w.WriteNumber("step_bytes", part.Bytes);
            w.WriteNumber("step_operations", part.Operations);
            w.WriteEndObject();
        }
        w.WriteEndArray();
        w.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter w, string name, TimingSide t)
    {
        w.WriteStartObject(name);
        w.WriteNumber("ms_per_token", t.Milliseconds);
        w.WriteNumber("read_bytes_per_second", t.ReadPerSecond);
        w.WriteNumber("operations_per_second", t.OperationsPerSecond);
        w.WriteNumber("move_ms_per_token", t.MoveMilliseconds);
        w.WriteNumber("compute_ms_per_token", t.ComputeMilliseconds);
        w.WriteNumber("floor_ms_per_token", t.FloorMilliseconds);
        w.WriteNumber("ratio", t.Ratio);
        w.WriteEndObject();
    }

    private static void Write(Utf8JsonWriter w, string name, Spread? spread)
    {
        if (spread is null)
        {
            w.WriteNull(name);
            return;
        }
        w.WriteStartObject(name);
        w.WriteNumber("mean", spread.Mean);
        w.WriteNumber("p50", spread.P50);
        w.WriteNumber("p99", spread.P99);
        w.WriteEndObject();
    }
}

/// <summary>A report as a table for people.</summary>
internal static class BenchTables
{
    public static void Write(BenchReport report)
    {
        var terminal = Tables.Terminal();
        terminal.WriteLine($"{report.Model} ({report.Info.Family}, {Units.Count(report.Info.ParameterCount)} parameters{(report.Dummy ? ", random weights" : "")}, {report.Info.KvFormat} rows) on {report.Backend}: {report.Device}");
        terminal.WriteLine($"{report.Processor}, {report.LogicalCores} logical cores; {report.OperatingSystem}; {report.Date:yyyy-MM-dd HH:mm} UTC");
        if (report.Cells.Count > 0) WriteCells(report, terminal);
        if (report.Contexts.Count > 0) WriteContexts(report, terminal);
    }

    private static void WriteContexts(BenchReport report, IAnsiConsole terminal)
    {
        terminal.WriteLine(
            $"Rows of the first {Units.Whole(ContextBench.ComputedTokens)} positions are computed, those after them are copies of their pages (filled); "
            + $"up to {Units.Whole(ContextBench.CrossCheckTokens)} tokens also all computed.");
        terminal.WriteLine("Floor: bytes over the read bandwidth plus operations over the multiply-add peak, both measured in turn with the steps. Processor time is per");
        terminal.WriteLine("thread: others on the machine do not count in it. Medians of rounds, ratios within a round.");
        var table = Tables.New(
            Tables.Text("step"), Tables.Number("context"), Tables.Text("rows"), Tables.Text("clock"), Tables.Number("ms per\ntoken"), Tables.Number("moved\nMB"),
            Tables.Number("over\nGB/s"), Tables.Number("ms"), Tables.Number("computed\nGFLOP"), Tables.Number("over\nGFLOP/s"), Tables.Number("ms"),
            Tables.Number("floor\nms"), Tables.Number("ratio"));
        foreach (var (name, of) in new (string, Func<ContextResult, TimingResult>)[] { ("decode", r => r.Decode), ("prefill", r => r.Prefill) })
            foreach (var (r, t) in report.Contexts.Select(r => (r, of(r))))
                foreach (var (clock, side) in new[] { ("processor", t.Processor), ("wall", t.Wall) })
                    table.AddRow(
                        t.Tokens == 1 ? name : $"{name} {t.Tokens}", Units.Whole(r.Context), r.Computed ? "computed" : "filled", clock, Units.Digits(side.Milliseconds),
                        Units.Digits(t.Bytes / 1e6 / t.Tokens), Units.Digits(side.ReadPerSecond / 1e9), Units.Digits(side.MoveMilliseconds),
                        Units.Digits(t.Operations / 1e9 / t.Tokens), Units.Digits(side.OperationsPerSecond / 1e9), Units.Digits(side.ComputeMilliseconds),
                        Units.Digits(side.FloorMilliseconds), Units.Digits(side.Ratio));
        terminal.Write(table);
        var parts = Tables.New([Tables.Text("decoding one token\nMB / GFLOP"), .. report.Contexts.Where(r => !r.Computed).Select(r => Tables.Number(Units.Whole(r.Context)))]);
        for (int i = 0; i < report.Contexts[0].Decode.Work.Count; i++)
            parts.AddRow([report.Contexts[0].Decode.Work[i].Name, .. report.Contexts.Where(r => !r.Computed).Select(r => r.Decode.Work[i])
                .Select(p => $"{Units.Digits(p.Bytes / 1e6)} / {Units.Digits(p.Operations / 1e9)}")]);
        terminal.Write(parts);
    }

    private static void WriteCells(BenchReport report, IAnsiConsole terminal)
    {
        var table = Tables.New(
            Tables.Number("prompt"), Tables.Number("output"), Tables.Number("at a time"), Tables.Number("requests"), Tables.Number("output\ntokens/s"),
            Tables.Number("all\ntokens/s"), Tables.Number("first token ms\nmean / p50 / p99"), Tables.Number("per output token ms\nmean / p50 / p99"));
        foreach (var r in report.Cells)
            table.AddRow(
                Units.Whole(r.Cell.PromptTokens), Units.Whole(r.Cell.OutputTokens), Units.Whole(r.Cell.Concurrency), Units.Whole(r.Clocks.Count),
                Units.Digits(r.OutputTokensPerSecond), Units.Digits(r.TotalTokensPerSecond), Text(r.TimeToFirstToken), Text(r.TimePerOutputToken));
        terminal.Write(table);
    }

    private static string Text(Spread? s) => s is null ? "-" : $"{Units.Digits(s.Mean)} / {Units.Digits(s.P50)} / {Units.Digits(s.P99)}";
}

/// <summary>What can be known of this machine.</summary>
internal static class Machine
{
    /// <summary>The processor's name, where the system tells it; else its architecture.</summary>
    public static string ProcessorName()
    {
        const string file = "/proc/cpuinfo";
        string? line = File.Exists(file) ? File.ReadLines(file).FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal)) : null;
        return line?.Split(':', 2)[^1].Trim() ?? Environment.GetEnvironmentVariable("PROCESSOR_IDENTIFIER") ?? RuntimeInformation.ProcessArchitecture.ToString();
    }
}

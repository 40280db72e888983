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
    string Backend, string Device, int StepTokensMax, BenchPlan Plan)
{
    public List<BenchResult> Cells { get; } = [];

    public static BenchReport Begin(ModelOnBackend loaded, ModelOptions options, BenchPlan plan)
    {
        var assembly = typeof(BenchReport).Assembly;
        return new BenchReport(
            DateTimeOffset.UtcNow, Machine.ProcessorName(), Environment.ProcessorCount, GC.GetGCMemoryInfo().TotalAvailableMemoryBytes,
            RuntimeInformation.OSDescription, RuntimeInformation.FrameworkDescription,
            assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "",
            Path.GetFileName(Path.TrimEndingDirectorySeparator(Path.GetFullPath(loaded.Folder))), options.Dummy, loaded.Model.Info,
            loaded.Backend.Info.Name, loaded.Backend.Info.Device, options.StepTokensMax, plan);
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
        w.WriteNumber("step_tokens_max", StepTokensMax);
        w.WriteNumber("seed", Plan.Seed);
        w.WriteStartArray("cells");
        foreach (var cell in Cells) Write(w, cell);
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
        terminal.WriteLine($"{report.Model} ({report.Info.Family}, {Units.Count(report.Info.ParameterCount)} parameters{(report.Dummy ? ", random weights" : "")}) on {report.Backend}: {report.Device}");
        terminal.WriteLine($"{report.Processor}, {report.LogicalCores} logical cores; {report.OperatingSystem}; {report.Date:yyyy-MM-dd HH:mm} UTC");
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

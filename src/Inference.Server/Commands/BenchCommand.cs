using System.CommandLine;
using Inference.Runtime.Engine;
using Inference.Server.Hosting;
using Inference.Server.Options;

namespace Inference.Server.Commands;

/// <summary>
/// <c>inference bench</c>: how fast a model runs here, in this process, without network and without text: token ids in, token ids out. Every
/// combination of the lists is one cell: all its requests are of one shape, and so many of them run at a time. With --context instead: time per token
/// at the end of long contexts, beside what the machine allows.
/// </summary>
internal static class BenchCommand
{
    public static Command Create()
    {
        var prompts = ListOption("--prompt-tokens", "Lengths of the prompts.", "128,1024");
        var outputs = ListOption("--output-tokens", "Lengths of the answers.", "64");
        var concurrencies = ListOption("--concurrency", "Requests at a time.", "1,4,16");
        var requests = Numbers.Whole("--requests", "Requests per cell. Default: twice the concurrency, at least 4.", 1, 1_000_000);
        var contexts = new Option<string?>("--context")
        {
            Description = "Instead of requests: time per token at the end of contexts of these lengths, and what memory and arithmetic of this machine "
                + $"allow. Rows beyond the first {Units.Whole(ContextBench.ComputedTokens)} positions are filled in, not computed.",
            HelpName = "n,n,...",
        };
        var seed = Numbers.Seed("--seed", "Of the random prompts. Default: 1.");
        var json = new Option<string?>("--json") { Description = "Write all figures to this file; - for standard output instead of the table.", HelpName = "file" };
        var command = new Command("bench", "Measure throughput and latency of a model on this machine.") { prompts, outputs, concurrencies, requests, contexts, seed, json };
        var settings = new SettingOptions(command, [Settings.Model, Settings.Dummy, Settings.Backend, Settings.Threads, Settings.StepTokensMax, Settings.KvFormat]);
        command.HasExamples(
            "inference bench",
            "inference bench --prompt-tokens 512 --output-tokens 128 --concurrency 1,8 --json bench.json",
            "inference bench --model my-model --threads 8",
            "inference bench --model deepseek-v4-1b --dummy",
            "inference bench --model deepseek-v4-1b --dummy --context 4096,131072,1048576");
        command.Validators.Add(result =>
        {
            if (result.GetValue(contexts) is null) return;
            foreach (var option in (Option[])[prompts, outputs, concurrencies, requests])
                if (result.GetResult(option) is { Implicit: false }) result.AddError($"--context measures single steps; leave {option.Name} out.");
        });
        command.Runs((parsed, cancel) => parsed.GetValue(contexts) is { } lengths
            ? Task.FromResult(Run(settings.Reader(parsed).ReadModel(), List(lengths, "--context"), parsed.GetValue(seed) ?? 1, parsed.GetValue(json), cancel))
            : RunAsync(
            settings.Reader(parsed).ReadModel(),
            new BenchPlan(
                List(parsed.GetValue(prompts)!, "--prompt-tokens"), List(parsed.GetValue(outputs)!, "--output-tokens"),
                List(parsed.GetValue(concurrencies)!, "--concurrency"), parsed.GetValue(requests), parsed.GetValue(seed) ?? 1),
            parsed.GetValue(json), cancel));
        return command;
    }

    private static Option<string> ListOption(string name, string help, string value) =>
        new(name) { Description = help, HelpName = "n,n,...", DefaultValueFactory = _ => value };

    private static int[] List(string text, string option) => InputFile.Numbers(text, option, 1, 1 << 28);

    private static int Run(ModelOptions options, int[] contexts, ulong seed, string? json, CancellationToken cancel)
    {
        using var file = json is null ? null : json == "-" ? Console.OpenStandardOutput() : Create(json);
        using var loaded = ModelOnBackend.Load(options, asServed: true);
        foreach (int context in contexts) RequireMeasurable(context, loaded, options.StepTokensMax);
        var peaks = ModelHost.Peaks(loaded.Backend)
            ?? throw new InputException($"--context: there is no yardstick for the backend {loaded.Backend.Info.Name}; give --backend cpu.");
        var report = BenchReport.Begin(loaded, options, seed);
        using var bench = new ContextBench(loaded, peaks, contexts.Max(), options.StepTokensMax, unchecked((int)seed));
        using (var progress = new BenchProgress())
            foreach (int context in contexts)
                foreach (bool computed in context <= ContextBench.CrossCheckTokens ? new[] { true, false } : [false])
                    report.Contexts.Add(bench.Measure(context, computed, what => progress.Show($"context {Units.Whole(context)}: {what}"), cancel));
        if (json is not "-") BenchTables.Write(report);
        if (file is not null) report.WriteJson(file);
        return Verb.Done;
    }

    private static void RequireMeasurable(int context, ModelOnBackend loaded, int stepTokens)
    {
        int min = ContextBench.ContextMin(stepTokens), max = loaded.Model.Info.ContextMax;
        if (context < min || context > max)
            throw new InputException($"--context: {context} is not in {min} to {max}: a prefill step and {ContextBench.TailTokens} decode steps must fit, and the model's context is the limit.");
    }

    private static async Task<int> RunAsync(ModelOptions options, BenchPlan plan, string? json, CancellationToken cancel)
    {
        // Before the work: a path that cannot be written should not cost a measurement.
        using var file = json is null ? null : json == "-" ? Console.OpenStandardOutput() : Create(json);
        using var loaded = ModelOnBackend.Load(options, asServed: true);
        var report = BenchReport.Begin(loaded, options, plan.Seed);
        await using var engine = await BenchEngine.StartAsync(loaded, options, plan, cancel);
        using (var progress = new BenchProgress())
            foreach (var (index, cell) in plan.Cells.Index())
            {
                int ended = 0;
                Show();
                report.Cells.Add(await engine.MeasureAsync(cell, plan, () => { Interlocked.Increment(ref ended); Show(); }, cancel));

                void Show() => progress.Show(
                    $"{index + 1}/{plan.Cells.Count}: prompt {cell.PromptTokens}, output {cell.OutputTokens}, {cell.Concurrency} at a time: "
                    + $"{ended} of {plan.RequestsOf(cell)} requests");
            }
        if (json is not "-") BenchTables.Write(report);
        if (file is not null) report.WriteJson(file);
        return Verb.Done;
    }

    private static FileStream Create(string path)
    {
        try
        {
            return File.Create(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new InputException($"--json: '{path}' cannot be written: {e.Message}", e);
        }
    }
}

/// <summary>One shape of load.</summary>
internal sealed record BenchCell(int PromptTokens, int OutputTokens, int Concurrency);

/// <summary>What a user asked to be measured.</summary>
internal sealed record BenchPlan(int[] PromptTokens, int[] OutputTokens, int[] Concurrency, int? Requests, ulong Seed)
{
    private const int RequestsMin = 4, RoundsDefault = 2;

    /// <summary>In the order in which they run.</summary>
    public IReadOnlyList<BenchCell> Cells { get; } =
        [.. from p in PromptTokens from o in OutputTokens from c in Concurrency select new BenchCell(p, o, c)];

    public int LengthMax => PromptTokens.Max() + OutputTokens.Max();

    /// <summary>The same on every machine, another for every cell, so that no cell meets the prompts of one before.</summary>
    public int SeedOf(BenchCell cell) => unchecked((int)((((Seed * 1_000_003) + (ulong)cell.PromptTokens) * 1_000_003 + (ulong)cell.OutputTokens) * 1_000_003) + cell.Concurrency);

    public int RequestsOf(BenchCell cell) => Requests ?? Math.Max(RequestsMin, RoundsDefault * cell.Concurrency);
}

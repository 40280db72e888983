// `roofline`: how near the kernels come to what the machine can do, in a minute or two. Every round measures the yardstick and each kernel once, in
// turn, so that a change of the machine's mood meets all of them; the table shows the median and the best round.
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;

namespace Inference.Benchmarks;

internal sealed unsafe class Roofline(int threads, int rounds)
{
    private const int Columns = 4096;
    private const long ReadBytes = 512L << 20;

    private readonly StringBuilder _report = new();

    /// <summary>Arguments: [--threads n] [--rounds n] [--only name] [--out file] [--note text].</summary>
    public static int Run(string[] args)
    {
        int threads = CpuTopology.PhysicalCores(), rounds = 9;
        string only = "", output = "", note = "";
        for (var i = 0; i + 1 < args.Length; i += 2)
        {
            switch (args[i])
            {
                case "--threads": threads = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--rounds": rounds = int.Parse(args[i + 1], CultureInfo.InvariantCulture); break;
                case "--only": only = args[i + 1]; break;
                case "--out": output = args[i + 1]; break;
                case "--note": note = args[i + 1]; break;
                default: throw new ArgumentException($"roofline: unknown option {args[i]}");
            }
        }
        var roofline = new Roofline(threads, rounds);
        roofline.Header(note);
        if (only is "" or "matvec") roofline.MatVec();
        if (only is "" or "gemm") roofline.Gemm();
        if (only is "" or "attention") roofline.Attention();
        if (only is "" or "index") roofline.Index();
        if (only is "" or "formats") roofline.Formats();
        if (only is "" or "small") roofline.Small();
        if (output.Length > 0)
        {
            Directory.CreateDirectory(Path.GetDirectoryName(Path.GetFullPath(output))!);
            File.WriteAllText(output, roofline._report.ToString());
        }
        return 0;
    }

    private void Line(FormattableString line)
    {
        var text = line.ToString(CultureInfo.InvariantCulture);
        Console.WriteLine(text);
        _report.Append(text).Append('\n');
    }

    private void Header(string note)
    {
        Line($"# Kernels on {CpuTopology.ProcessorName()}");
        Line($"");
        Line($"{DateTime.UtcNow:yyyy-MM-dd}, {threads} threads, {RuntimeInformation.FrameworkDescription}, {RuntimeInformation.OSDescription}, load {Load()}. {note}");
        Line($"");
        Line($"Every round ({rounds} of them) measures the yardstick and each kernel in turn. \"Processor time\": work per second that our threads were");
        Line($"running, median and best round; others on the machine do not count, but a thread that runs alone has all the memory bandwidth to itself.");
        Line($"\"Wall\": work per second by the clock, median. Ratios: kernel to yardstick of the same round, median over the rounds.");
    }

    private static string Load()
    {
        try
        {
            return File.ReadAllText("/proc/loadavg").Split(' ')[0];
        }
        catch (IOException)
        {
            return "unknown";
        }
    }

    private void MatVec()
    {
        using var bench = new Workbench(threads);
        using var pool = new WorkerPool(threads);
        using var memory = new HostBuffer(ReadBytes);
        new Span<byte>(memory.Data, (int)ReadBytes).Fill(1);
        var x = bench.Random(1, Columns);
        (string Name, WeightScheme Scheme, int Rows)[] kernels =
        [
            ("BF16", WeightScheme.BF16, 65536), ("FP8 E4M3, 128x128 E8M0", Workbench.Fp8, 131072),
            ("FP8 E4M3, 32x32 E8M0", Workbench.Fp8Square32, 131072), ("FP4 E2M1, E8M0 per 32", Workbench.Fp4, 262144), ("F32", WeightScheme.F32, 32768),
        ];
        var actions = new List<(string, double, Action)> { ("read", ReadBytes, () => Peaks.Read(pool, memory.Data, ReadBytes)) };
        foreach (var (name, scheme, rows) in kernels)
        {
            var weight = bench.Weight(scheme, rows, Columns);
            var op = new Linear(x, weight, bench.Empty(DType.F32, 1, rows));
            actions.Add((name, Workbench.WeightBytes(scheme, rows, Columns), () => bench.Backend.Enqueue(op)));
        }
        Line($"");
        Line($"## One token times a matrix (decoding), K = {Columns}, 512 MB of weights");
        Table("GB/s of weights", "of read bandwidth", actions, 1e9);
    }

    private void Gemm()
    {
        using var bench = new Workbench(threads);
        using var pool = new WorkerPool(threads);
        const int Rows = 2048;
        var actions = new List<(string, double, Action)> { ("FMA peak", 2.0 * Peaks.MultiplyItem * 4 * threads, () => Peaks.Multiply(pool, 4 * threads)) };
        foreach (var tokens in new[] { 2, 4, 8, 32, 128 })
        {
            foreach (var (name, scheme) in new[] { ("BF16", WeightScheme.BF16), ("FP8", Workbench.Fp8), ("FP8 32x32", Workbench.Fp8Square32), ("FP4", Workbench.Fp4) })
            {
                if (tokens is 2 or 8 or 32 && (name is "BF16" or "FP8 32x32")) continue;
                var op = new Linear(bench.Random(tokens, Columns), bench.Weight(scheme, Rows, Columns), bench.Empty(DType.F32, tokens, Rows));
                var repeat = Math.Max(1, 256 / tokens);
                actions.Add(($"{name}, {tokens} tokens", 2.0 * tokens * Rows * Columns * repeat, () =>
                {
                    for (var i = 0; i < repeat; i++) bench.Backend.Enqueue(op);
                }
                ));
            }
        }
        Line($"");
        Line($"## Several tokens times a matrix [{Rows}, {Columns}]");
        Table("GFLOP/s", "of FMA peak", actions, 1e9);
    }

    private void Attention()
    {
        using var bench = new Workbench(threads);
        using var pool = new WorkerPool(threads);
        var actions = new List<(string, double, Action)> { ("FMA peak", 2.0 * Peaks.MultiplyItem * 4 * threads, () => Peaks.Multiply(pool, 4 * threads)) };
        foreach (var (tokens, selected) in new[] { (1, 512), (16, 512), (1, 8192) })
        {
            var op = Workloads.Attention(bench, tokens, selected);
            var work = Workloads.AttentionWork(tokens, selected);
            var repeat = Math.Max(1, (int)(2e9 / work));
            actions.Add(($"{tokens} tokens, {Workloads.AttentionHeads} heads, {Workloads.Window} + {selected} rows of {Workloads.RowWidth}", work * repeat, () =>
            {
                for (var i = 0; i < repeat; i++) bench.Backend.Enqueue(op);
            }
            ));
        }
        Line($"");
        Line($"## Attention");
        Table("GFLOP/s", "of FMA peak", actions, 1e9);
    }

    private void Index()
    {
        using var bench = new Workbench(threads);
        using var pool = new WorkerPool(threads);
        var actions = new List<(string, double, Action)> { ("FMA peak", 2.0 * Peaks.MultiplyItem * 4 * threads, () => Peaks.Multiply(pool, 4 * threads)) };
        foreach (var (tokens, visible) in new[] { (1, 4096), (1, 65536), (16, 4096) })
        {
            // The queries are scratch: they are rounded again and again, which changes nothing of the work.
            var op = Workloads.Index(bench, tokens, visible);
            var work = Workloads.IndexWork(tokens, visible);
            var repeat = Math.Max(1, (int)(2e9 / work));
            actions.Add(($"{tokens} tokens, {Workloads.IndexHeads} heads of {Workloads.IndexWidth}, best {Workloads.TopK} of {visible}", work * repeat, () =>
            {
                for (var i = 0; i < repeat; i++) bench.Backend.Enqueue(op);
            }
            ));
        }
        Line($"");
        Line($"## Index scores and top-k");
        Table("GFLOP/s", "of FMA peak", actions, 1e9);
    }

    /// <summary>The kernels that read cached rows, per format, against the same rows stored as F32.</summary>
    private void Formats()
    {
        foreach (var (tokens, selected) in new[] { (1, 512), (16, 512), (1, 8192) })
        {
            using var bench = new Workbench(threads);
            RowFormat[] formats = [Workloads.RowWidth, RowFormat.BF16(Workloads.RowWidth), RowFormat.Fp8(Workloads.RowWidth, 64)];
            Line($"");
            Line($"## Attention by row format: {tokens} tokens, {Workloads.AttentionHeads} heads, {Workloads.Window} + {selected} rows of {Workloads.RowWidth}");
            ByFormat(formats, Workloads.AttentionWork(tokens, selected), f =>
            {
                var op = Workloads.Attention(bench, tokens, selected, f);
                return () => bench.Backend.Enqueue(op);
            });
        }
        foreach (var (tokens, visible) in new[] { (1, 4096), (1, 262_144), (16, 4096) })
        {
            using var bench = new Workbench(threads);
            RowFormat[] formats = [Workloads.IndexWidth, RowFormat.BF16(Workloads.IndexWidth), RowFormat.Fp8OneScale(Workloads.IndexWidth), RowFormat.Fp4(Workloads.IndexWidth)];
            Line($"");
            Line($"## Index scores by row format: {tokens} tokens, {Workloads.IndexHeads} heads of {Workloads.IndexWidth}, best {Workloads.TopK} of {visible}");
            ByFormat(formats, Workloads.IndexWork(tokens, visible), f =>
            {
                var op = Workloads.Index(bench, tokens, visible, f);
                return () => bench.Backend.Enqueue(op);
            });
        }
    }

    private void ByFormat(RowFormat[] formats, double work, Func<RowFormat, Action> make)
    {
        var repeat = Math.Max(1, (int)(2e9 / work));
        var actions = new List<(string, double, Action)>();
        foreach (var format in formats)
        {
            var call = make(format);
            actions.Add(($"{format.Encoding}, {format.Bytes} B, {(double)format.Bytes / formats[0].Bytes:0.00} of F32", work * repeat, () =>
            {
                for (var i = 0; i < repeat; i++) call();
            }
            ));
        }
        Table("GFLOP/s", "of F32", actions, 1e9);
    }

    /// <summary>What a call costs when there is next to nothing to do: one token, the sizes of the embedded model.</summary>
    private void Small()
    {
        using var bench = new Workbench(threads);
        const int Hidden = 128, Streams = 4, Heads = 4, HeadDim = 144, Rotary = 16, Position = 300;
        var rope = new Rope(bench.Vector(RopeFrequencies.Plain(10000, Rotary)));
        var tokens = bench.Tokens(1, Position);
        Tensor streams = bench.Random(1, Streams, Hidden), hidden = bench.Random(1, Hidden), queries = bench.Random(1, Heads, HeadDim), ones = bench.Vector([.. Enumerable.Repeat(1f, HeadDim)]);
        Tensor post = bench.Random(1, Streams), combine = bench.Random(1, Streams, Streams), output = bench.Empty(DType.F32, 1, 1024);
        Tensor ids = bench.Vector([3, 5]).As(1, 2), weights = bench.Random(1, 2);
        var window = bench.Rows(512, 32, HeadDim, 3);
        var compressed = bench.Rows(128, 8, HeadDim, 4);
        var selected = bench.Vector([.. Enumerable.Range(0, 32)]).As(1, 32);
        PreparedWeight[] Experts(int rows, int columns) => [.. Enumerable.Range(0, 16).Select(i => bench.Weight(WeightScheme.BF16, rows, columns, i + 1))];
        PreparedWeight[] gate = Experts(64, Hidden), up = Experts(64, Hidden), down = Experts(Hidden, 64);
        var mix = bench.Weight(WeightScheme.F32, 24, Streams * Hidden);
        Tensor coefficients = bench.Vector(new float[24]), scale = bench.Vector([1f, 1f, 1f]), bias = bench.Vector(new float[16]), inner = bench.Random(1, 2, 64);
        Line($"");
        Line($"## One token of a small model (hidden {Hidden}, {Heads} heads of {HeadDim}, 16 experts of 64): microseconds per call");
        Line($"");
        Line($"| call | median | best |");
        Line($"|---|---|---|");
        Call("RmsNorm", new RmsNorm(hidden, ones.First(Hidden), 1e-6f, output.Columns(0, Hidden)));
        Call("Linear BF16 [128, 64]", new Linear(bench.Random(1, 64), bench.Weight(WeightScheme.BF16, 128, 64), output.Columns(0, 128)));
        Call("Linear BF16 [576, 64]", new Linear(bench.Random(1, 64), bench.Weight(WeightScheme.BF16, 576, 64), output.Columns(0, 576)));
        Call("Linear BF16 [1024, 128]", new Linear(hidden, bench.Weight(WeightScheme.BF16, 1024, Hidden), output));
        Call("HyperConnectionPre", new HyperConnectionPre(streams, mix, coefficients, scale, 1e-6f, 1e-6f, 20, output.Columns(0, Hidden), post, combine));
        Call("HyperConnectionPost", new HyperConnectionPost(streams, hidden, post, combine, streams));
        Call("Rotate", new Rotate(queries, tokens.Position, rope, false));
        Call("KvInsert", new KvInsert(bench.Random(1, HeadDim), ones, 1e-6f, tokens, rope, RowRounding.Fp8Block64, window));
        Call("Attention, 32 + 32 rows", new Attention(queries, tokens, window, 32, compressed, 4, selected, bias.First(Heads), 0.08f, output.As(1, 1024).Columns(0, Heads * HeadDim).As(1, Heads, HeadDim)));
        Call("Route, 2 of 16", new Route(bench.Random(1, 16), RouterScoring.SqrtSoftplus, bias, default, default, 1.5f, bench.Vector([0, 0]).As(1, 2), bench.Random(1, 2)));
        Call("ExpertGateUp", new ExpertGateUp(hidden, ids, weights, gate, up, 10, inner));
        Call("ExpertDownCombine", new ExpertDownCombine(inner, ids, down, hidden, hidden));

        void Call<TOp>(string name, TOp op) where TOp : struct, IOperator
        {
            const int Calls = 5000;
            var series = new Series();
            for (var round = -1; round < rounds; round++)
            {
                var sample = Sample.Of(1, () =>
                {
                    for (var i = 0; i < Calls; i++) bench.Backend.Enqueue(op);
                });
                if (round >= 0) series.Add(sample);
            }
            Line($"| {name} | {series.Median / Calls * 1e6:F2} | {series.Best / Calls * 1e6:F2} |");
        }
    }

    /// <summary>Measures all actions in turn; the first is the yardstick.</summary>
    private void Table(string unit, string ratio, List<(string Name, double Work, Action Run)> actions, double scale)
    {
        var series = actions.ConvertAll(_ => new Series());
        for (var round = -1; round < rounds; round++)
        {
            for (var i = 0; i < actions.Count; i++)
            {
                var sample = Sample.Of(threads, actions[i].Run);
                if (round >= 0) series[i].Add(sample); // the first round warms up
            }
        }
        Line($"");
        Line($"| kernel | {unit}, processor time: median | best | wall: median | {ratio}: processor time | wall |");
        Line($"|---|---|---|---|---|---|");
        for (var i = 0; i < actions.Count; i++)
        {
            double work = actions[i].Work / scale, relative = actions[i].Work / actions[0].Work;
            var share = relative * series[i].TimesFasterThan(series[0], s => s.PerThread);
            var wallShare = relative * series[i].TimesFasterThan(series[0], s => s.Wall);
            Line($"| {actions[i].Name} | {work / series[i].Median:F1} | {work / series[i].Best:F1} | {work / series[i].MedianWall:F1} | {share:P0} | {wallShare:P0} |");
        }
    }
}

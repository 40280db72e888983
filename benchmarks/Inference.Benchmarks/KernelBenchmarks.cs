// The kernels under BenchmarkDotNet, for a closer look than the roofline gives: `-- --filter *MatVec*`. Each class measures its yardstick as baseline,
// so the Ratio column is the share of what the machine can do (1 / Ratio for the yardstick's speed).
using BenchmarkDotNet.Attributes;
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;

namespace Inference.Benchmarks;

/// <summary>One token times 512 MB of weights, beside reading 512 MB.</summary>
[MemoryDiagnoser]
public unsafe class MatVecBenchmarks
{
    private const int Columns = 4096;
    private const long Bytes = 512L << 20;
    private Workbench _bench = null!;
    private WorkerPool _pool = null!;
    private HostBuffer _memory = null!;
    private Linear _bf16, _fp8, _fp4;

    [GlobalSetup]
    public void Setup()
    {
        var threads = CpuTopology.PhysicalCores();
        _bench = new Workbench(threads);
        _pool = new WorkerPool(threads);
        _memory = new HostBuffer(Bytes);
        new Span<byte>(_memory.Data, (int)Bytes).Fill(1);
        var x = _bench.Random(1, Columns);
        _bf16 = Linear(WeightScheme.BF16, 65536, x);
        _fp8 = Linear(Workbench.Fp8, 131072, x);
        _fp4 = Linear(Workbench.Fp4, 262144, x);
    }

    private Linear Linear(WeightScheme scheme, int rows, in Tensor x) => new(x, _bench.Weight(scheme, rows, Columns), _bench.Empty(DType.F32, 1, rows));

    [Benchmark(Baseline = true)]
    public void Read() => Peaks.Read(_pool, _memory.Data, Bytes);

    [Benchmark]
    public void BF16() => _bench.Backend.Enqueue(_bf16);

    [Benchmark]
    public void Fp8Tiles128() => _bench.Backend.Enqueue(_fp8);

    [Benchmark]
    public void Fp4Groups32() => _bench.Backend.Enqueue(_fp4);

    [GlobalCleanup]
    public void Cleanup()
    {
        _bench.Dispose();
        _pool.Dispose();
        _memory.Dispose();
    }
}

/// <summary>Several tokens times a matrix [2048, 4096], beside as many multiply-adds on registers.</summary>
[MemoryDiagnoser]
public class GemmBenchmarks
{
    private const int Rows = 2048, Columns = 4096;
    private Workbench _bench = null!;
    private WorkerPool _pool = null!;
    private Linear _bf16, _fp8, _fp4;
    private int _items;

    [Params(4, 128)]
    public int Tokens { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        var threads = CpuTopology.PhysicalCores();
        _bench = new Workbench(threads);
        _pool = new WorkerPool(threads);
        _items = (int)Math.Max(1, (long)Tokens * Rows * Columns / Peaks.MultiplyItem);
        var x = _bench.Random(Tokens, Columns);
        _bf16 = Linear(WeightScheme.BF16, x);
        _fp8 = Linear(Workbench.Fp8, x);
        _fp4 = Linear(Workbench.Fp4, x);
    }

    private Linear Linear(WeightScheme scheme, in Tensor x) => new(x, _bench.Weight(scheme, Rows, Columns), _bench.Empty(DType.F32, Tokens, Rows));

    /// <summary>As many multiply-adds as the products, to the nearest 192 million.</summary>
    [Benchmark(Baseline = true)]
    public void MultiplyAdds() => Peaks.Multiply(_pool, _items);

    [Benchmark]
    public void BF16() => _bench.Backend.Enqueue(_bf16);

    [Benchmark]
    public void Fp8Tiles128() => _bench.Backend.Enqueue(_fp8);

    [Benchmark]
    public void Fp4Groups32() => _bench.Backend.Enqueue(_fp4);

    [GlobalCleanup]
    public void Cleanup()
    {
        _bench.Dispose();
        _pool.Dispose();
    }
}

/// <summary>Attention and index selection with the sizes of DeepSeek-V4: 64 heads, one shared row per position.</summary>
[MemoryDiagnoser]
public class AttentionBenchmarks
{
    private Workbench _bench = null!;
    private Attention _attention;
    private IndexTopK _index;

    [Params(1, 16)]
    public int Tokens { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _bench = new Workbench(CpuTopology.PhysicalCores());
        _attention = Workloads.Attention(_bench, Tokens, selected: 512);
        _index = Workloads.Index(_bench, Tokens, visible: 4096);
    }

    /// <summary>128 window rows and 512 selected ones.</summary>
    [Benchmark]
    public void Attention() => _bench.Backend.Enqueue(_attention);

    /// <summary>The best 512 of 4096 rows.</summary>
    [Benchmark]
    public void IndexTopK() => _bench.Backend.Enqueue(_index);

    [GlobalCleanup]
    public void Cleanup() => _bench.Dispose();
}

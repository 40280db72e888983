using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed unsafe class CpuBackendTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Enqueue_allocates_no_managed_memory(int threads)
    {
        using var backend = new CpuBackend(threads, grainWork: 1);
        using var m = new TensorMemory(backend);
        const int T = 5, D = 64, Heads = 4, Experts = 3, PerToken = 2;
        using RandomMatrix square = new(WeightScheme.BF16, D, D, 1), fp4 = new(new(DType.F4E2M1, DType.F8E8M0, 1, 32), D, D, 2), mixData = new(WeightScheme.F32, 24, 4 * D, 3);
        using PreparedWeight weight = square.Prepare(backend), quantised = fp4.Prepare(backend), mix = mixData.Prepare(backend);
        PreparedWeight[] experts = [weight, weight, weight];
        float[] numbers = [.. Enumerable.Range(0, T * Heads * D).Select(i => (i * 37 % 101 - 50) / 50f)];
        Tensor F(int d0, int d1) => m.F32(numbers.AsSpan(0, d0 * d1), d0, d1);
        Tensor V(int d0) => Tensor.Create(F(1, d0).Buffer, DType.F32, d0);
        Tensor I(params int[] values) => Tensor.Create(m.I32(values, 1, values.Length).Buffer, DType.I32, values.Length);

        var rope = new Rope(V(8));
        var tokens = new TokenLayout(I(0, 0, 0, 1, 1), I(40, 41, 42, 7, 8));
        PagedRows Rows(int width) => new(Tensor.Create(m.F32(new float[16 * 8 * width], 16, 8 * width).Buffer, DType.F32, 16, 1, 8, width), width, 0,
            I([.. Enumerable.Range(0, 16)]).As(2, 8), I(0, 0));
        PagedRows window = Rows(D), compressed = Rows(D), state = Rows(4 * D);
        Tensor x = F(T, D), heads = F(T, Heads * D).As(T, Heads, D), output = F(T, D), selected = m.I32(new int[T * 3], T, 3);
        Tensor ids = m.I32([0, 1, 1, 2, 0, 2, 2, 1, 0, 0], T, PerToken), weights = F(T, PerToken), hidden = F(T, PerToken * D).As(T, PerToken, D);
        Tensor post = F(T, Heads), combine = F(T, Heads * Heads).As(T, Heads, Heads), attended = F(T, Heads * D).As(T, Heads, D), streams = F(T, Heads * D).As(T, Heads, D);

        var linear = new Linear(x, weight, output);
        var single = new Linear(x.First(1), quantised, output.First(1));
        var grouped = new GroupedLinear(F(T, 2 * D).As(T, 2, D), weight, F(T, D).As(T, 2, D / 2));
        var norm = new RmsNorm(heads, V(D), 1e-6f, attended);
        var embed = new Embed(I(1, 2, 3, 4, 5), weight, streams);
        var insert = new KvInsert(x, V(D), 1e-6f, tokens, rope, RowRounding.HadamardFp4Block32, window);
        var compress = new CompressorUpdate(F(T, 2 * D), F(T, 2 * D), F(4, 2 * D), state, 4, true, tokens, V(D), 1e-6f, rope, RowRounding.None, compressed);
        var index = new IndexTopK(heads, F(T, Heads), 0.1f, tokens, rope, RowRounding.HadamardFp4Block32, compressed, 4, selected);
        var attention = new Attention(heads, tokens, window, 16, compressed, 4, selected, V(Heads), 0.1f, attended);
        var rotate = new Rotate(heads, tokens.Position, rope, true);
        var route = new Route(F(T, Experts), RouterScoring.SqrtSoftplus, V(Experts), default, default, 1, ids, weights);
        var gateUp = new ExpertGateUp(x, ids, weights, experts, experts, 10, hidden);
        var down = new ExpertDownCombine(hidden, ids, experts, x, output);
        var pre = new HyperConnectionPre(streams, mix, V(24), V(3), 1e-6f, 1e-6f, 20, output, post, combine);
        var update = new HyperConnectionPost(streams, x, post, combine, streams);
        Run();
        Run();
        var before = GC.GetAllocatedBytesForCurrentThread();
        Run();
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());

        void Run()
        {
            backend.Enqueue(embed);
            backend.Enqueue(linear);
            backend.Enqueue(single);
            backend.Enqueue(grouped);
            backend.Enqueue(norm);
            backend.Enqueue(insert);
            backend.Enqueue(compress);
            backend.Enqueue(index);
            backend.Enqueue(attention);
            backend.Enqueue(rotate);
            backend.Enqueue(route);
            backend.Enqueue(gateUp);
            backend.Enqueue(down);
            backend.Enqueue(pre);
            backend.Enqueue(update);
        }
    }

    [Fact]
    public void A_wrong_id_found_by_a_worker_is_the_callers_error_and_the_backend_goes_on()
    {
        using var backend = new CpuBackend(3, grainWork: 1);
        using var m = new TensorMemory(backend);
        var pool = Tensor.Create(m.F32(new float[4 * 2 * 16], 4, 32).Buffer, DType.F32, 4, 1, 2, 16);
        Tensor Table(int page) => m.I32([0, 1, page, 3], 1, 4);
        Tensor I(params int[] values) => Tensor.Create(m.I32(values, 1, values.Length).Buffer, DType.I32, values.Length);
        var queries = m.F32(new float[6 * 16], 6, 16).As(6, 1, 16);
        var output = m.Empty(6, 16).As(6, 1, 16);
        Attention Attend(int page) => new(queries, new TokenLayout(I(0, 0, 0, 0, 0, 0), I(0, 1, 2, 3, 4, 5)), new PagedRows(pool, 16, 0, Table(page), I(0)), 8,
            default, 0, default, Tensor.Create(m.F32([0], 1, 1).Buffer, DType.F32, 1), 1, output);

        var error = Assert.Throws<BackendException>(() => backend.Enqueue(Attend(4)));
        Assert.Equal(BackendErrorKind.Request, error.Kind);
        Assert.Contains("page id 4", error.Message, StringComparison.Ordinal);
        backend.Enqueue(Attend(2));
        Assert.All(TensorMemory.Read(output), y => Assert.Equal(0, y));
    }

    [Fact]
    public void Memory_that_is_not_there_is_a_capacity_error_that_names_its_purpose()
    {
        using var backend = new CpuBackend(1);
        var error = Assert.Throws<BackendException>(() => backend.Allocate(long.MaxValue / 2, "KV pages"));
        Assert.Equal(BackendErrorKind.Capacity, error.Kind);
        Assert.Contains("KV pages", error.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => new CpuBackend(-1));
    }

    [Fact]
    public void A_disposed_backend_refuses_work()
    {
        var backend = new CpuBackend(2);
        using var m = new TensorMemory(backend);
        var x = m.F32([1, 2], 1, 2);
        backend.Dispose();
        backend.Dispose();
        Assert.Throws<ObjectDisposedException>(() => backend.Enqueue(new RmsNorm(x, default, 0, x)));
    }
}

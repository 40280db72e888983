// Measured memory of a sequence against the description's formula (deepseek-v4 3.1 to 3.3), within 2 %: pages in use while a context grows to a
// million tokens, what a backend is asked for, and pages held after a model of small width ran over a long context.
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.KvCache;

public sealed class KvMemoryTests
{
    private const double Share = 0.02;

    public static TheoryData<string, KvRowFormat> ModelsAndFormats()
    {
        var data = new TheoryData<string, KvRowFormat>();
        foreach (string model in (string[])["flash", "pro"])
            foreach (var format in KvRowFormats.Names.Keys) data.Add(model, format);
        return data;
    }

    private static DeepSeekV4Config Released(string model) => PublishedConfigs.Parsed(model == "flash" ? PublishedConfigs.Flash() : PublishedConfigs.Pro());

    private static long BytesInUse(KvCacheManager cache) => cache.Pools.Sum(p => (long)(p.PageCount - p.FreeCount) * p.Spec.PageBytes);

    private static void AssertNear(double expected, double measured, string where) =>
        Assert.True(Math.Abs(measured / expected - 1) <= Share, $"{where}: {measured:N0} bytes measured, {expected:N0} by the formula");

    [Theory, MemberData(nameof(ModelsAndFormats))]
    public void Pages_of_a_growing_context_are_those_of_the_formula(string model, KvRowFormat format)
    {
        const int Step = 256, Million = 1 << 20;
        var config = Released(model);
        var size = DeepSeekV4KvSize.Of(config, format, draftBlocks: 1);
        using var cache = new KvCacheManager(DeepSeekV4.KvStatesOf(config, format), new KvCapacity(Million, 1, Step), null);
        var table = cache.CreateTable();
        for (int length = Step; length <= Million; length += Step)
        {
            Assert.True(cache.TryExtend(table, length));
            cache.Trim(table, length);
            // At short contexts the begun pages and the empty state of ratio 128 weigh more than 2 %.
            if (length >= Million / 4) AssertNear(size.TotalBytes(length), BytesInUse(cache), $"{model}, {format}, {length} tokens");
        }
        cache.Free(table);
        Assert.Equal(0, BytesInUse(cache));
    }

    [Theory]
    [InlineData(KvRowFormat.Fp8WithFp4Index)]
    [InlineData(KvRowFormat.BF16)]
    public void A_backend_is_asked_for_what_the_formula_says(KvRowFormat format)
    {
        const int Tokens = 1 << 19, Sequences = 2, Step = 64;
        // The layers of Flash with the widths of a tiny model.
        var config = Released("flash") with { HeadDim = 72, RopeHeadDim = 8, IndexHeadDim = 32 };
        var states = DeepSeekV4.KvStatesOf(config, format);
        var size = DeepSeekV4KvSize.Of(config, format, draftBlocks: 1);
        using var backend = new MeteredBackend();
        using (var cache = new KvCacheManager(states, new KvCapacity(Tokens, Sequences, Step), backend))
        {
            Assert.Equal(cache.Capacity.BytesOf(states), backend.LiveBytes);
            // The tokens of a step have rows of every kind until it ends.
            long perStepToken = states.Where(s => s.Retention != KvRetention.All).Sum(s => (long)s.LayerCount * s.Row.Bytes);
            AssertNear(size.BytesPerToken * Tokens + Sequences * size.FixedBytes + Step * perStepToken, backend.LiveBytes, $"{format}");
        }
        Assert.Equal(0, backend.LiveBytes);
    }

    [Fact]
    public void A_model_that_ran_over_a_long_context_holds_what_the_formula_says()
    {
        // Window and ratio as released; 127 tokens after a whole block: the fullest moment of all constant state.
        const int Tokens = 16_384 + 127, Step = 512;
        var tiny = TinyDeepSeekV4.TQ with { Name = "long", Ratios = [4, 4, 128], Window = 128, IndexHeads = 2 };
        using var folder = new TemporaryFolder();
        var config = DeepSeekV4Config.Read(ModelFolder.Open(tiny.Write(folder.Path)));
        using var loaded = TestModels.Load(folder.Path, "cpu", new DeepSeekV4Options(KvRowFormat.Fp8WithFp4Index));
        using var session = new ModelSession(loaded.Model, loaded.Backend, tokens: 65 * 256, sequences: 1, stepTokens: Step);
        var sequence = session.Begin();
        int[] tokens = tiny.Tokens(Tokens);
        for (int at = 0; at < Tokens; at += Step)
            Assert.All(session.Step((sequence, tokens[at..Math.Min(at + Step, Tokens)]))[0][^1], logit => Assert.True(float.IsFinite(logit)));

        AssertNear(DeepSeekV4KvSize.Of(config, KvRowFormat.Fp8WithFp4Index, draftBlocks: 1).TotalBytes(Tokens), BytesInUse(session.Cache), "held");
        session.End(sequence);
    }

    /// <summary>Counts the bytes of buffers that are in use.</summary>
    private sealed class MeteredBackend : IBackend
    {
        private readonly CpuBackend _cpu = new(1);
        private readonly List<(DeviceBuffer Buffer, long Bytes)> _buffers = [];

        public long LiveBytes => _buffers.Where(b => IsLive(b.Buffer)).Sum(b => b.Bytes);

        public BackendInfo Info => _cpu.Info;

        public DeviceBuffer Allocate(long bytes, string purpose)
        {
            var buffer = _cpu.Allocate(bytes, purpose);
            _buffers.Add((buffer, buffer.SizeBytes));
            return buffer;
        }

        private static unsafe bool IsLive(DeviceBuffer buffer)
        {
            try
            {
                return ((HostBuffer)buffer).Data is not null;
            }
            catch (ObjectDisposedException)
            {
                return false;
            }
        }

        public void Upload(ReadOnlySpan<byte> source, in Tensor destination) => _cpu.Upload(source, destination);
        public void Download(in Tensor source, Span<byte> destination) => _cpu.Download(source, destination);
        public void Copy(in Tensor source, in Tensor destination) => _cpu.Copy(source, destination);
        public PreparedWeight PrepareWeight(in WeightData weight) => _cpu.PrepareWeight(weight);
        public OpPlan Plan<TOp>(in TOp op) where TOp : struct, IOperator => _cpu.Plan(op);
        public void Enqueue<TOp>(in TOp op, in Tensor workspace = default) where TOp : struct, IOperator => _cpu.Enqueue(op, workspace);
        public void Wait() => _cpu.Wait();
        public void Dispose() => _cpu.Dispose();
    }
}

using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Engine;

public sealed class EngineOptionsTests
{
    private static readonly KvStateSpec[] Kinds = [KvStateSpec.All("rows", 4, 64, 1), KvStateSpec.Window("window", 4, 64, 128, 64)];
    private static readonly BackendInfo Backend = new("b", "d", Determinism.AnySchedule, 1L << 30);

    private static EngineOptions Resolve(EngineOptions options, BackendInfo? backend = null, int contextMax = 4096) =>
        options.Resolve(new HashModel(contextMax: contextMax).Info, Kinds, backend ?? Backend);

    public static TheoryData<string, EngineOptions> Bad => new()
    {
        { nameof(EngineOptions.SequencesMax), new() { SequencesMax = 0 } },
        { nameof(EngineOptions.StepTokensMax), new() { SequencesMax = 10, StepTokensMax = 9 } },
        { nameof(EngineOptions.QueueMax), new() { QueueMax = 0 } },
        { nameof(EngineOptions.OutboxMax), new() { OutboxMax = 0 } },
        { nameof(EngineOptions.HeadroomTokens), new() { HeadroomTokens = -1 } },
        { nameof(EngineOptions.ReservedBytes), new() { ReservedBytes = -1 } },
        { nameof(EngineOptions.ContextMax), new() { ContextMax = 4097 } },
        { nameof(EngineOptions.ContextMax), new() { ContextMax = 1 } },
        { nameof(EngineOptions.KvCapacityTokens), new() { KvCapacityTokens = 0 } },
        { nameof(EngineOptions.KvCapacityBytes), new() { KvCapacityBytes = 100_000 } },
        { nameof(EngineOptions.KvCapacityBytes), new() { KvCapacityBytes = 1 << 30, KvCapacityTokens = 100 } },
        { nameof(EngineOptions.KvCapacityBytes), new() { ReservedBytes = 1L << 30 } },
    };

    [Theory]
    [MemberData(nameof(Bad))]
    public void An_option_that_cannot_work_is_named(string option, EngineOptions options)
    {
        var e = Assert.Throws<EngineOptionsException>(() => Resolve(options));
        Assert.Equal(option, e.Option);
        Assert.StartsWith(option, e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_backend_that_is_less_deterministic_than_required_is_refused_unless_asked_for()
    {
        var loose = Backend with { Determinism = Determinism.Tolerance };
        Assert.Equal(nameof(EngineOptions.DeterminismRequired), Assert.Throws<EngineOptionsException>(() => Resolve(new(), loose)).Option);
        Resolve(new() { DeterminismRequired = Determinism.Tolerance }, loose);
    }

    [Fact]
    public void Automatic_capacity_uses_what_the_weights_leave()
    {
        var options = Resolve(new() { ReservedBytes = 900L << 20, SequencesMax = 4 }, contextMax: 1 << 20);
        Assert.InRange(options.KvCapacityBytes!.Value, 80L << 20, 112L << 20);
        Assert.Equal(1 << 20, options.ContextMax);
        Assert.Equal(0, options.KvCapacityTokens!.Value % KvStateSpec.BlockTokens);
    }

    [Fact]
    public void Automatic_capacity_takes_no_more_than_full_contexts_need() =>
        Assert.Equal(2 * 4096, Resolve(new() { SequencesMax = 2 }).KvCapacityTokens);

    [Fact]
    public void A_capacity_in_bytes_is_kept()
    {
        var options = Resolve(new() { KvCapacityBytes = 200L << 20 });
        Assert.InRange(options.KvCapacityBytes!.Value, 190L << 20, 200L << 20);
    }

    [Fact]
    public void Resolved_options_resolve_to_themselves_but_for_the_bytes()
    {
        var once = Resolve(new());
        Assert.Equal(once, Resolve(once with { KvCapacityBytes = null }));
    }
}

using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Tiny inputs with results that can be worked out on paper, and check values from the spec.</summary>
public sealed class HandComputedTests
{
    private static TestDevice Device() => new(new ReferenceBackend(poison: true));

    [Fact]
    public void Linear_multiplies_rows_of_the_weight_by_the_input()
    {
        using var d = Device();
        var output = d.Out(DType.F32, 2, 3);
        d.Run(new Linear(d.In([1, 2, 10, 20], 2, 2), d.Weight(3, 2, 1, 0, 0, 1, 3, -1), output));
        Assert.Equal([1, 2, 1, 10, 20, 10], d.Read(output));
    }

    [Fact]
    public void Attention_with_equal_scores_averages_its_rows_and_the_sink_takes_its_share()
    {
        using var d = Device();
        // Two window rows, a query orthogonal to both: scores 0, 0. Sink 0 has weight 1 beside them: (r0 + r1) / 3. No sink: (r0 + r1) / 2.
        var pool = d.In([3, 6, 9, 0], 1, 1, 2, 2);
        var window = new PagedRows(pool, 0, d.In([0], 1, 1), d.Vector(0));
        var tokens = new TokenLayout(d.Vector(0), d.Vector(1));
        var output = d.Out(DType.F32, 1, 2, 2);
        var sinks = d.Vector(0f, float.NegativeInfinity);
        d.Run(new Attention(d.In([0, 0, 0, 0], 1, 2, 2), tokens, window, 8, default, 0, default, sinks, 1f, output));
        Assert.Equal([4, 2, 6, 3], d.Read(output));
    }
}

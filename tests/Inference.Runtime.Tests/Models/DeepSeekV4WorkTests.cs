using Inference.Runtime.Models;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

/// <summary>The least that a step must move and compute, against numbers counted by hand.</summary>
public sealed class DeepSeekV4WorkTests
{
    [Fact]
    public void Weights_count_once_and_rows_as_often_as_they_are_seen()
    {
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "reference");
        var model = (DeepSeekV4)loaded.Model;
        // Position 1,000: a window of 32, 250 rows of ratio 4 of which 32 are chosen, 7 of ratio 128; rows of 144 and 32 floats; 4 heads.
        var one = model.Work.Step(1000, 1, 1).ToDictionary(p => p.Name);
        Assert.Equal((6 * 32 * 576.0, 4.0 * 4 * 144 * 6 * 32), Of(one["window rows"]));
        Assert.Equal((3 * 32 * 576.0, 4.0 * 4 * 144 * 3 * 32), Of(one["selected rows"]));
        Assert.Equal((3 * 250 * 128.0, 2.0 * 4 * 32 * 3 * 250), Of(one["index rows"]));
        Assert.Equal((2 * 7 * 576.0, 4.0 * 4 * 144 * 2 * 7), Of(one["rows 128:1"]));
        Assert.Equal((1024 * 128 * 2.0, 1024 * 128 * 2.0), Of(one["head"])); // BF16: as many bytes as operations
        Assert.Equal(6 * 2 * 3 * 64 * 128 * 2.0, one["routed experts"].Operations);
        Assert.Equal(6 * 2 * 3 * 64 * 128 * 2.0, one["routed experts"].Bytes, 1e-3);
        using var checkpoint = Checkpoint.Open(RepositoryPaths.Pebble);
        long active = DeepSeekV4Checkpoint.Summarise(DeepSeekV4Checkpoint.Bind(DeepSeekV4Config.Read(ModelFolder.Open(RepositoryPaths.Pebble)), checkpoint))
            .ActiveParameterCount;
        Assert.Equal(2.0 * active, one["dense weights"].Operations + one["routed experts"].Operations + one["head"].Operations);
    }

    [Fact]
    public void Tokens_of_a_step_share_what_they_read()
    {
        using var loaded = TestModels.Load(RepositoryPaths.Pebble, "reference");
        var work = ((DeepSeekV4)loaded.Model).Work;
        var (one, many) = (work.Step(2000, 1, 0), work.Step(2000, 256, 0));
        double Bytes(IReadOnlyList<WorkPart> parts, string name) => parts.Single(p => p.Name == name).Bytes;
        Assert.Equal(Bytes(one, "dense weights"), Bytes(many, "dense weights"));
        Assert.Equal(8.0, Bytes(many, "routed experts") / Bytes(one, "routed experts"), 1e-3); // 2 of 16, then all
        Assert.Equal((32 + 255) / 32.0, Bytes(many, "window rows") / Bytes(one, "window rows"), 1e-9);
        Assert.Equal(564 / 500.0, Bytes(many, "index rows") / Bytes(one, "index rows"), 1e-9);
        Assert.Equal(0, Bytes(many, "head"));
        double index = many.Single(p => p.Name == "index rows").Operations, expected = 0;
        for (int p = 2000; p < 2256; p++) expected += 2.0 * 4 * 32 * 3 * ((p + 1) / 4);
        Assert.Equal(expected, index);
        // As many rows as are chosen are all chosen: nothing is scored.
        Assert.Equal(0, work.Step(126, 1, 1).Single(p => p.Name == "index rows").Operations);
    }

    private static (double, double) Of(WorkPart part) => (part.Bytes, part.Operations);
}

using Inference.Backends;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Weights;

/// <summary>What the writer writes, the loader reads back byte for byte.</summary>
public sealed class CheckpointWriterTests
{
    private static byte Expected(int tensor, long offset) => (byte)((offset * 31 + offset / 251 + tensor * 7) % 253);

    private static void Fill(int tensor, long offset, Span<byte> bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
            bytes[i] = Expected(tensor, offset + i);
    }

    [Fact]
    public void Tensors_of_any_length_come_back_also_beyond_the_buffer()
    {
        using var folder = new TemporaryFolder();
        // More than one buffer together, one tensor longer than a buffer alone, odd lengths in between, an empty one.
        var writer = new CheckpointWriter([
            new("a", DType.U8, [3]), new("b", DType.F32, [5, 7]), new("none", DType.BF16, [0, 4]), new("c", DType.I8, [34, 1_000_003]),
            new("d", DType.F8E4M3, [CheckpointWriter.PieceBytes]), new("e", DType.I64, [2]), new("f", DType.F8E8M0, [1, 1]), new("g", DType.F16, [3]),
        ]);
        var progress = new List<long>();
        writer.Write(folder[Checkpoint.SingleFileName], Fill, new Heard(progress), CancellationToken.None);
        Assert.Equal(writer.FileBytes, new FileInfo(folder[Checkpoint.SingleFileName]).Length);
        Assert.True(progress.Count > 1);
        Assert.Equal(progress.Order(), progress);
        Assert.Equal(writer.FileBytes, progress[^1]);
        using var checkpoint = Checkpoint.Open(folder.Path);
        Assert.Equal(writer.Tensors.Count, checkpoint.Tensors.Count);
        for (int t = 0; t < writer.Tensors.Count; t++)
        {
            var (spec, view) = (writer.Tensors[t], checkpoint[writer.Tensors[t].Name]);
            Assert.Equal((spec.DType, spec.ByteLength), (view.DType, view.ByteLength));
            Assert.Equal(spec.Shape, view.Shape);
            var bytes = view.Bytes;
            for (int i = 0; i < bytes.Length; i++)
                if (bytes[i] != Expected(t, i)) Assert.Fail($"tensor {spec.Name}, byte {i}: {bytes[i]}, not {Expected(t, i)}");
        }
    }

    [Fact]
    public void A_cancelled_write_stops_and_what_cannot_be_is_refused()
    {
        using var folder = new TemporaryFolder();
        var writer = new CheckpointWriter([new("a", DType.U8, [3])]);
        int filled = 0;
        Assert.Throws<OperationCanceledException>(() => writer.Write(folder["cancelled"], (_, _, _) => filled++, null, new CancellationToken(true)));
        Assert.Equal(0, filled);
        writer.Write(folder["x"], Fill, null, CancellationToken.None);
        Assert.Throws<IOException>(() => writer.Write(folder["x"], Fill, null, CancellationToken.None));
        Assert.Contains("a", Assert.Throws<ArgumentException>(() => new CheckpointWriter([new("a", DType.U8, [3]), new("a", DType.U8, [4])])).Message, StringComparison.Ordinal);
        Assert.Throws<OverflowException>(() => new CheckpointWriter([new("a", DType.U8, [long.MaxValue]), new("b", DType.U8, [1 << 20])]));
    }

    private sealed class Heard(List<long> values) : IProgress<long>
    {
        public void Report(long value) => values.Add(value);
    }
}

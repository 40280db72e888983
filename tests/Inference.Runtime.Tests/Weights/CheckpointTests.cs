using System.Text;
using System.Text.Json;
using Inference.Backends;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Weights;

public sealed class CheckpointTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();

    public void Dispose() => _folder.Dispose();

    private static SafetensorsWriter SixTensors()
    {
        var writer = new SafetensorsWriter();
        for (var i = 0; i < 6; i++)
            writer.AddF32($"t{i}", [2, 3], [i, 1, 2, 3, 4, 5]);
        return writer;
    }

    private CheckpointException Refused(CheckpointOptions? options = null) =>
        Assert.Throws<CheckpointException>(() => Checkpoint.Open(_folder.Path, options).Dispose());

    private static void WriteIndex(string folder, params (string Tensor, string Shard)[] map) =>
        File.WriteAllText(Path.Combine(folder, Checkpoint.IndexFileName),
            JsonSerializer.Serialize(new { weight_map = map.ToDictionary(m => m.Tensor, m => m.Shard) }));

    [Fact]
    public void A_single_file_gives_its_tensors()
    {
        SixTensors().AddBF16("b", [2], [1f, -2f]).AddI64("i", [1], [long.MinValue]).Save(_folder.Path);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        Assert.Equal(8, checkpoint.Tensors.Count);
        Assert.Equal([4f, 1f, 2f, 3f, 4f, 5f], checkpoint["t4"].AsSpan<float>().ToArray());
        Assert.Equal([0x3F80, 0xC000], checkpoint["b"].AsSpan<ushort>().ToArray());
        Assert.Equal(long.MinValue, checkpoint["i"].AsSpan<long>()[0]);
        Assert.Equal(_folder[Checkpoint.SingleFileName], checkpoint["i"].File);
        Assert.Equal(6 * 24 + 4 + 8, checkpoint.ByteLength);
        Assert.True(checkpoint.TryGet("t0", out _));
        Assert.False(checkpoint.TryGet("T0", out _));
    }

    [Fact]
    public void Shards_give_the_same_tensors_as_one_file()
    {
        SixTensors().SaveShards(_folder.Path, 4);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        Assert.Equal(6, checkpoint.Tensors.Count);
        Assert.Equal(4, checkpoint.Files.Count());
        for (var i = 0; i < 6; i++)
            Assert.Equal(i, checkpoint[$"t{i}"].AsSpan<float>()[0]);
    }

    [Fact]
    public void A_file_of_any_name_opens_by_its_path()
    {
        var path = SixTensors().Save(_folder.Path, "anything.bin");
        using var checkpoint = Checkpoint.OpenFile(path);
        Assert.Equal(6, checkpoint.Tensors.Count);
    }

    [Fact]
    public void Tensors_need_not_be_aligned()
    {
        var image = SafetensorsImage.Of("""{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}""", 5);
        File.WriteAllBytes(_folder[Checkpoint.SingleFileName], image);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        Assert.Equal(BitConverter.ToSingle([1, 2, 3, 4]), checkpoint["f"].AsSpan<float>()[0]);
    }

    [Fact]
    public void A_tensor_beyond_four_gibibytes_is_read_at_its_place()
    {
        if (!OperatingSystem.IsLinux())
            Assert.Skip("needs a file system that keeps holes");
        const long big = 5L << 30;
        var header = SafetensorsImage.Of($"{{\"big\":{{\"dtype\":\"I8\",\"shape\":[5,{1L << 30}],\"data_offsets\":[0,{big}]}}," +
            $"\"small\":{{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[{big},{big + 3}]}}}}", 0);
        using (var stream = File.Create(_folder[Checkpoint.SingleFileName]))
        {
            stream.Write(header);
            stream.Position = header.Length + big - 1;
            stream.Write([9, 1, 2, 3]);
        }
        using var checkpoint = Checkpoint.Open(_folder.Path);
        Assert.Equal([1, 2, 3], checkpoint["small"].Bytes.ToArray());
        Assert.Equal([0, 9], checkpoint["big"].Slice(big - 2, 2).ToArray());
        Assert.Contains("read it in slices", Assert.Throws<InvalidOperationException>(() => checkpoint["big"].Bytes.Length).Message, StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => checkpoint["big"].AsSpan<byte>().Length);
    }

    [Fact]
    public void A_tensor_that_is_not_there_is_a_typed_error()
    {
        SixTensors().Save(_folder.Path);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        var error = Assert.Throws<CheckpointException>(() => checkpoint["nope"]);
        Assert.Equal(CheckpointFault.TensorMissing, error.Fault);
        Assert.Equal("nope", error.Tensor);
    }

    [Fact]
    public void After_dispose_a_view_throws_instead_of_reading_unmapped_memory()
    {
        SixTensors().Save(_folder.Path);
        var checkpoint = Checkpoint.Open(_folder.Path);
        var tensor = checkpoint["t1"];
        checkpoint.Dispose();
        checkpoint.Dispose();
        Assert.Throws<ObjectDisposedException>(() => tensor.Bytes.Length);
        Assert.Throws<ObjectDisposedException>(() => tensor.AsSpan<float>().Length);
        Assert.Throws<ObjectDisposedException>(() => tensor.Slice(0, 1).Length);
    }

    [Fact]
    public void A_view_guards_its_slices_and_element_types()
    {
        SixTensors().AddFp4("q", 2, 32, new float[64]).Save(_folder.Path);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        var tensor = checkpoint["t1"];
        Assert.Equal(4, tensor.Slice(20, 4).Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Slice(21, 4).Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Slice(-1, 4).Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Slice(long.MaxValue, 4).Length);
        Assert.Throws<ArgumentOutOfRangeException>(() => tensor.Slice(0, -1).Length);
        Assert.Throws<InvalidOperationException>(() => tensor.AsSpan<double>().Length);
        Assert.Throws<InvalidOperationException>(() => tensor.AsPackedFp4());

        var fp4 = checkpoint["q.weight"].AsPackedFp4();
        Assert.Equal(DType.F4E2M1, fp4.DType);
        Assert.Equal([2L, 32L], fp4.Shape);
        Assert.Equal(32, fp4.ByteLength);
        Assert.Equal(64, fp4.ElementCount);
    }

    [Fact]
    public void A_missing_folder_and_an_empty_one_say_what_to_give()
    {
        var missing = Assert.Throws<CheckpointException>(() => Checkpoint.Open(_folder["no"]));
        Assert.Equal(CheckpointFault.FileMissing, missing.Fault);
        Assert.Contains("no such folder", missing.Message, StringComparison.Ordinal);

        var empty = Refused();
        Assert.Equal(CheckpointFault.FileMissing, empty.Fault);
        Assert.Contains("no weight files", empty.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Shards_without_an_index_say_that_the_index_is_missing()
    {
        SixTensors().SaveShards(_folder.Path, 2);
        File.Delete(_folder[Checkpoint.IndexFileName]);
        var error = Refused();
        Assert.Equal(CheckpointFault.FileMissing, error.Fault);
        Assert.Contains("model-00001-of-00002.safetensors", error.Message, StringComparison.Ordinal);
        Assert.Contains("Shards need their model.safetensors.index.json", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void All_missing_shards_are_named_at_once()
    {
        SixTensors().SaveShards(_folder.Path, 6);
        File.Delete(_folder["model-00002-of-00006.safetensors"]);
        File.Delete(_folder["model-00005-of-00006.safetensors"]);
        var error = Refused();
        Assert.Equal(CheckpointFault.FileMissing, error.Fault);
        Assert.Contains("2 of the 6 files", error.Message, StringComparison.Ordinal);
        Assert.Contains("model-00002-of-00006.safetensors, model-00005-of-00006.safetensors", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_single_file_beside_an_index_that_does_not_list_it_is_ambiguous()
    {
        SixTensors().SaveShards(_folder.Path, 2);
        SixTensors().Save(_folder.Path);
        var error = Refused();
        Assert.Equal(CheckpointFault.IndexMismatch, error.Fault);
        Assert.Contains("Remove the one", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_index_may_list_the_single_file()
    {
        SixTensors().Save(_folder.Path);
        WriteIndex(_folder.Path, [.. Enumerable.Range(0, 6).Select(i => ($"t{i}", Checkpoint.SingleFileName))]);
        using var checkpoint = Checkpoint.Open(_folder.Path);
        Assert.Equal(6, checkpoint.Tensors.Count);
    }

    [Fact]
    public void Index_and_shards_that_disagree_are_listed_together()
    {
        new SafetensorsWriter().AddF32("a", [1], [1]).AddF32("unlisted", [1], [1]).Save(_folder.Path, "m-1.safetensors");
        new SafetensorsWriter().AddF32("moved", [1], [1]).Save(_folder.Path, "m-2.safetensors");
        WriteIndex(_folder.Path, ("a", "m-1.safetensors"), ("moved", "m-1.safetensors"), ("lost", "m-2.safetensors"));
        var error = Refused();
        Assert.Equal(CheckpointFault.IndexMismatch, error.Fault);
        Assert.Equal(3, error.Problems.Count);
        Assert.Contains("disagree about 3 tensors", error.Message, StringComparison.Ordinal);
        Assert.Contains(error.Problems, p => p.Contains("'moved' is in m-2.safetensors, not in m-1.safetensors", StringComparison.Ordinal));
        Assert.Contains(error.Problems, p => p.Contains("'lost' is not in m-2.safetensors", StringComparison.Ordinal));
        Assert.Contains(error.Problems, p => p.Contains("'unlisted' is in m-1.safetensors, but not in the index", StringComparison.Ordinal));
    }

    [Fact]
    public void A_long_list_of_disagreements_is_capped_with_its_count()
    {
        new SafetensorsWriter().AddF32("a", [1], [1]).Save(_folder.Path, "m-1.safetensors");
        WriteIndex(_folder.Path, [("a", "m-1.safetensors"), .. Enumerable.Range(0, 500).Select(i => ($"lost{i}", "m-1.safetensors"))]);
        var error = Refused();
        Assert.Contains("disagree about 500 tensors", error.Message, StringComparison.Ordinal);
        Assert.Equal(21, error.Problems.Count);
        Assert.Equal("... and 480 more", error.Problems[^1]);
    }

    [Fact]
    public void A_tensor_in_two_shards_is_refused()
    {
        new SafetensorsWriter().AddF32("a", [1], [1]).Save(_folder.Path, "m-1.safetensors");
        new SafetensorsWriter().AddF32("a", [1], [1]).AddF32("b", [1], [1]).Save(_folder.Path, "m-2.safetensors");
        WriteIndex(_folder.Path, ("a", "m-1.safetensors"), ("b", "m-2.safetensors"));
        var error = Refused();
        Assert.Equal(CheckpointFault.TensorDuplicate, error.Fault);
        Assert.Equal("a", error.Tensor);
        Assert.Contains("m-1.safetensors holds it too", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(24)]
    [InlineData(140)]
    public void A_file_that_lost_its_end_is_truncated(int bytes)
    {
        var path = SixTensors().Save(_folder.Path);
        using (var stream = File.OpenWrite(path))
            stream.SetLength(stream.Length - bytes);
        var error = Refused();
        Assert.Equal(CheckpointFault.FileTruncated, error.Fault);
        Assert.Contains($"{bytes} are missing", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_empty_file_is_truncated()
    {
        File.WriteAllBytes(_folder[Checkpoint.SingleFileName], []);
        Assert.Equal(CheckpointFault.FileTruncated, Refused().Fault);
    }

    [Fact]
    public void An_index_beyond_the_limit_is_not_read()
    {
        SixTensors().SaveShards(_folder.Path, 2);
        Assert.Equal(CheckpointFault.LimitExceeded, Refused(CheckpointOptions.Default with { IndexBytesMax = 100 }).Fault);
        Assert.Equal(CheckpointFault.LimitExceeded, Refused(CheckpointOptions.Default with { FileCountMax = 1 }).Fault);
        Assert.Equal(CheckpointFault.LimitExceeded, Refused(CheckpointOptions.Default with { TensorCountMax = 5 }).Fault);
        Assert.Equal(CheckpointFault.LimitExceeded, Refused(CheckpointOptions.Default with { HeaderBytesMax = 50 }).Fault);
    }

    [Fact]
    public void A_folder_in_the_place_of_a_file_is_refused()
    {
        Directory.CreateDirectory(_folder["m-1.safetensors"]);
        WriteIndex(_folder.Path, ("a", "m-1.safetensors"));
        Assert.Equal(CheckpointFault.FileMissing, Refused().Fault);
    }

    [Fact]
    public void A_link_out_of_the_folder_is_refused_unless_its_root_is_permitted()
    {
        var snapshot = _folder["snapshots/1"];
        Directory.CreateDirectory(snapshot);
        SixTensors().Save(_folder["blobs"], "0a1b2c");
        File.CreateSymbolicLink(Path.Combine(snapshot, Checkpoint.SingleFileName), "../../blobs/0a1b2c");

        var error = Assert.Throws<CheckpointException>(() => Checkpoint.Open(snapshot));
        Assert.Equal(CheckpointFault.LinkLeavesFolder, error.Fault);
        Assert.Contains("blobs", error.Message, StringComparison.Ordinal);
        Assert.Contains("LinkRoot", error.Message, StringComparison.Ordinal);

        Assert.Equal(CheckpointFault.LinkLeavesFolder, Assert.Throws<CheckpointException>(() =>
            Checkpoint.Open(snapshot, CheckpointOptions.Default with { LinkRoot = _folder["snapshots"] })).Fault);
        using var checkpoint = Checkpoint.Open(snapshot, CheckpointOptions.Default with { LinkRoot = _folder["blobs"] });
        Assert.Equal(6, checkpoint.Tensors.Count);
    }

    [Fact]
    public void A_link_through_a_linked_folder_is_followed_to_its_real_end()
    {
        Directory.CreateDirectory(_folder["model"]);
        SixTensors().Save(_folder["elsewhere"], "w.safetensors");
        Directory.CreateSymbolicLink(_folder["model/inner"], "../elsewhere"); // looks like it stays inside
        File.CreateSymbolicLink(_folder["model/model.safetensors"], "inner/w.safetensors");
        var error = Assert.Throws<CheckpointException>(() => Checkpoint.Open(_folder["model"]));
        Assert.Equal(CheckpointFault.LinkLeavesFolder, error.Fault);
    }

    [Fact]
    public void Links_that_stay_inside_and_a_linked_model_folder_are_fine()
    {
        SixTensors().Save(_folder["model/data"], "w.safetensors");
        File.CreateSymbolicLink(_folder["model/model.safetensors"], _folder["model/data/w.safetensors"]);
        Directory.CreateSymbolicLink(_folder["alias"], "model");
        using var checkpoint = Checkpoint.Open(_folder["alias"]);
        Assert.Equal(6, checkpoint.Tensors.Count);
    }

    [Fact]
    public void A_folder_whose_name_merely_starts_alike_is_outside()
    {
        Directory.CreateDirectory(_folder["model"]);
        SixTensors().Save(_folder["model-2"], "w.safetensors");
        File.CreateSymbolicLink(_folder["model/model.safetensors"], "../model-2/w.safetensors");
        Assert.Equal(CheckpointFault.LinkLeavesFolder, Assert.Throws<CheckpointException>(() => Checkpoint.Open(_folder["model"])).Fault);
    }

    [Fact]
    public void An_index_that_links_out_of_the_folder_is_refused()
    {
        SixTensors().SaveShards(_folder["model"], 2);
        File.Move(_folder["model/model.safetensors.index.json"], _folder["index.json"]);
        File.CreateSymbolicLink(_folder["model/model.safetensors.index.json"], "../index.json");
        Assert.Equal(CheckpointFault.LinkLeavesFolder, Assert.Throws<CheckpointException>(() => Checkpoint.Open(_folder["model"])).Fault);
    }

    [Fact]
    public void A_link_loop_and_a_dangling_link_are_typed_errors()
    {
        File.CreateSymbolicLink(_folder["a"], "b");
        File.CreateSymbolicLink(_folder["b"], "a");
        Assert.Equal(CheckpointFault.FileUnreadable, Assert.Throws<CheckpointException>(() => ModelPaths.RealPath(_folder["a"])).Fault);

        WriteIndex(_folder.Path, ("a", "m-1.safetensors"));
        File.CreateSymbolicLink(_folder["m-1.safetensors"], "gone");
        Assert.Equal(CheckpointFault.FileMissing, Refused().Fault);
    }

    [Fact]
    public void A_failed_open_leaves_no_file_mapped()
    {
        if (!OperatingSystem.IsLinux())
            Assert.Skip("reads /proc/self/maps");
        SixTensors().SaveShards(_folder.Path, 2);
        using (var stream = File.OpenWrite(_folder["model-00002-of-00002.safetensors"]))
            stream.SetLength(stream.Length - 1);
        Refused();
        Assert.DoesNotContain(_folder.Path, File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);

        File.Delete(_folder[Checkpoint.IndexFileName]);
        SixTensors().Save(_folder.Path);
        using (Checkpoint.Open(_folder.Path))
            Assert.Contains(_folder.Path, File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
        Assert.DoesNotContain(_folder.Path, File.ReadAllText("/proc/self/maps"), StringComparison.Ordinal);
    }

    [Fact]
    public void The_embedded_model_opens()
    {
        using var checkpoint = Checkpoint.Open(RepositoryPaths.Pebble);
        Assert.Equal(535, checkpoint.Tensors.Count);
        Assert.Equal([1024L, 128L], checkpoint["embed.weight"].Shape);
        Assert.All(checkpoint.Tensors.Values, t => Assert.Contains(t.DType, (DType[])[DType.BF16, DType.F32, DType.I64]));
        foreach (var tensor in checkpoint.Tensors.Values.Where(t => t.DType == DType.BF16))
        {
            foreach (var code in tensor.AsSpan<ushort>())
                Assert.True(float.IsFinite(Numerics.BFloat16ToSingle(code)));
        }
    }

    [Theory]
    [InlineData("families/deepseek_v4", 276)]
    [InlineData("families/deepseek_v4-fp4", 243)]
    public void The_family_fixtures_open(string fixture, int count)
    {
        using var checkpoint = Checkpoint.Open(Fixture.Path(fixture));
        Assert.Equal(count, checkpoint.Tensors.Count);
        // An independent reading of the same header.
        var bytes = File.ReadAllBytes(Path.Combine(Fixture.Path(fixture), Checkpoint.SingleFileName));
        var length = (int)BitConverter.ToInt64(bytes);
        using var header = JsonDocument.Parse(bytes.AsMemory(8, length));
        foreach (var tensor in checkpoint.Tensors.Values)
        {
            var entry = header.RootElement.GetProperty(tensor.Name);
            var range = entry.GetProperty("data_offsets").EnumerateArray().Select(o => o.GetInt32()).ToArray();
            Assert.True(tensor.Bytes.SequenceEqual(bytes.AsSpan(8 + length)[range[0]..range[1]]), tensor.Name);
            Assert.Equal(entry.GetProperty("shape").EnumerateArray().Select(o => o.GetInt64()), tensor.Shape);
        }
    }

    [Fact]
    public void Messages_name_the_file_and_end_with_a_way_out()
    {
        SixTensors().Save(_folder.Path);
        var bytes = File.ReadAllBytes(_folder[Checkpoint.SingleFileName]);
        var text = Encoding.Latin1.GetString(bytes).Replace("\"F32\"", "\"F64\"", StringComparison.Ordinal);
        File.WriteAllBytes(_folder[Checkpoint.SingleFileName], Encoding.Latin1.GetBytes(text));
        var error = Refused();
        Assert.Equal(_folder[Checkpoint.SingleFileName], error.File);
        Assert.Equal($"{error.File}: tensor 't0': its dtype F64 is not supported. Supported are F32, BF16, F16, F8_E4M3, F8_E8M0, " +
            "F4, I8, U8, I32, I64: convert the model to one of them.", error.Message);
    }
}

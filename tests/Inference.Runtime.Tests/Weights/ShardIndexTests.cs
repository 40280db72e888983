using System.Text;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Weights;

public sealed class ShardIndexTests
{
    private static Dictionary<string, string> Parse(string json) => ShardIndex.Parse("index.json", Encoding.UTF8.GetBytes(json), CheckpointOptions.Default);

    private static string Map(string shard) => "{\"weight_map\":{\"w\":\"" + shard + "\"}}";

    [Fact]
    public void The_weight_map_is_read_and_all_else_skipped()
    {
        var map = Parse("""{"metadata":{"total_size":1e99,"x":[[[{}]]]},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"},"weight_maps":null}""");
        Assert.Equal(2, map.Count);
        Assert.Equal("m-2.safetensors", map["b"]);
    }

    [Theory]
    [InlineData("../m.safetensors")]
    [InlineData("/etc/m.safetensors")]
    [InlineData("sub/m.safetensors")]
    [InlineData("..\\\\m.safetensors")]
    [InlineData("C:m.safetensors")]
    [InlineData("..")]
    [InlineData("")]
    [InlineData(".safetensors")]
    [InlineData("m.safetensors\\u0000")]
    [InlineData("m\\u0000.safetensors")]
    [InlineData("m\\u000a.safetensors")]
    [InlineData("m.bin")]
    [InlineData("\\u002e\\u002e/m.safetensors")]
    public void A_shard_that_is_no_plain_file_name_is_refused(string shard)
    {
        var error = Assert.Throws<CheckpointException>(() => Parse(Map(shard)));
        Assert.Equal(CheckpointFault.IndexMalformed, error.Fault);
        Assert.Equal("w", error.Tensor);
        Assert.Contains("plain file name", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("""{"weight_map":{}}""")]
    [InlineData("""{"weight_map":[]}""")]
    [InlineData("""{"weight_map":{"w":1}}""")]
    [InlineData("""{"weight_map":{"w":"m.safetensors"}} x""")]
    [InlineData("""{"weight_map":{"w":"m.safetensors"},"weight_map":{"w":"m.safetensors"}}""")]
    [InlineData("""{"weight_map":{"\ud800":"m.safetensors"}}""")]
    [InlineData("""{"\ud800":1,"weight_map":{"w":"\udfff"}}""")]
    public void A_malformed_index_is_refused(string json) =>
        Assert.Equal(CheckpointFault.IndexMalformed, Assert.Throws<CheckpointException>(() => Parse(json)).Fault);

    [Fact]
    public void A_tensor_that_is_mapped_twice_is_refused()
    {
        var error = Assert.Throws<CheckpointException>(() => Parse("""{"weight_map":{"w":"a.safetensors","\u0077":"b.safetensors"}}"""));
        Assert.Equal(CheckpointFault.TensorDuplicate, error.Fault);
    }

    [Fact]
    public void Fifty_thousand_mutated_indexes_end_in_a_typed_error_or_a_map_of_plain_names()
    {
        var seed = Encoding.UTF8.GetBytes("""{"metadata":{"total_size":123},"weight_map":{"a.w":"m-1.safetensors","b.w":"m-2.safetensors","c.w":"m-1.safetensors"}}""");
        long accepted = 0;
        Parallel.For(0, 50, chunk =>
        {
            var random = new Random(chunk);
            for (var i = 0; i < 1000; i++)
            {
                var json = ByteMutator.Mutate(seed, random);
                try
                {
                    var map = ShardIndex.Parse("x", json, CheckpointOptions.Default);
                    Assert.All(map.Values, shard => Assert.Equal(shard, Path.GetFileName(shard)));
                    Interlocked.Increment(ref accepted);
                }
                catch (CheckpointException)
                {
                }
                catch (Exception e)
                {
                    Assert.Fail($"chunk {chunk}, round {i}: {Convert.ToBase64String(json)}\n{e}");
                }
            }
        });
        Assert.InRange(accepted, 500, 40_000);
    }
}

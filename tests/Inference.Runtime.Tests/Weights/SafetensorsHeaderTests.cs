using System.Buffers.Binary;
using System.Text;
using Inference.Backends;
using Inference.Runtime.Weights;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Weights;

/// <summary>Each way a header can lie, and 200,000 random ones: a typed error or a consistent checkpoint, nothing else.</summary>
public sealed class SafetensorsHeaderTests
{
    private static CheckpointException Refused(string header, int dataBytes) =>
        Assert.Throws<CheckpointException>(() => Checkpoint.FromImage("x.safetensors", SafetensorsImage.Of(header, dataBytes)));

    private static string One(string dtype, string shape, string offsets) =>
        $$$"""{"w":{"dtype":"{{{dtype}}}","shape":{{{shape}}},"data_offsets":{{{offsets}}}}}""";

    [Fact]
    public void A_header_is_read_with_all_dtypes_padding_and_metadata()
    {
        var image = SafetensorsImage.Of("""
            {"__metadata__":{"format":"pt"},
             "f32":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
             "bf16":{"data_offsets":[8,12],"dtype":"BF16","shape":[1,2]},
             "f16":{"dtype":"F16","shape":[1],"data_offsets":[12,14]},
             "fp8":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[14,17]},
             "e8m0":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[17,18]},
             "fp4":{"dtype":"F4","shape":[2,2],"data_offsets":[18,20]},
             "i8":{"dtype":"I8","shape":[1],"data_offsets":[20,21]},
             "u8":{"dtype":"U8","shape":[1],"data_offsets":[21,22]},
             "i32":{"dtype":"I32","shape":[1],"data_offsets":[22,26]},
             "i64":{"dtype":"I64","shape":[],"data_offsets":[26,34]},
             "empty":{"dtype":"F32","shape":[4,0],"data_offsets":[34,34]}}
            """ + "   ", 34);
        using var checkpoint = Checkpoint.FromImage("x", image);

        Assert.Equal(11, checkpoint.Tensors.Count);
        Assert.Equal(Enum.GetValues<DType>().Order(), checkpoint.Tensors.Values.Select(t => t.DType).Distinct().Order());
        Assert.Equal([1L, 2L], checkpoint["bf16"].Shape);
        Assert.Equal([8, 9, 10, 11], checkpoint["bf16"].Bytes.ToArray());
        Assert.Equal(4, checkpoint["fp4"].ElementCount);
        Assert.Equal(1, checkpoint["i64"].ElementCount);
        Assert.Empty(checkpoint["i64"].Shape);
        Assert.Equal(0, checkpoint["empty"].ByteLength);
        Assert.Equal(34, checkpoint.ByteLength);
    }

    [Fact]
    public void An_empty_header_is_an_empty_checkpoint()
    {
        using var checkpoint = Checkpoint.FromImage("x", SafetensorsImage.Of("{}", 0));
        Assert.Empty(checkpoint.Tensors);
    }

    [Theory]
    [InlineData("", CheckpointFault.HeaderMalformed, "not a JSON object|not valid JSON")]
    [InlineData("[]", CheckpointFault.HeaderMalformed, "not a JSON object")]
    [InlineData("{", CheckpointFault.HeaderMalformed, "not valid JSON")]
    [InlineData("{}x", CheckpointFault.HeaderMalformed, "not valid JSON")]
    [InlineData("{}{}", CheckpointFault.HeaderMalformed, "not valid JSON")]
    [InlineData("{/**/}", CheckpointFault.HeaderMalformed, "not valid JSON")]
    [InlineData("""{"":{}}""", CheckpointFault.HeaderMalformed, "0 characters")]
    [InlineData("""{"w":1}""", CheckpointFault.HeaderMalformed, "'w'.*not a JSON object")]
    [InlineData("""{"w":{}}""", CheckpointFault.HeaderMalformed, "lacks dtype")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1]}}""", CheckpointFault.HeaderMalformed, "lacks data_offsets")]
    [InlineData("""{"w":{"dtype":"F32","data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "lacks shape")]
    [InlineData("""{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "dtype twice")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}}""", CheckpointFault.HeaderMalformed, "unknown key 'strides'")]
    [InlineData("""{"w":{"dtype":5,"shape":[1],"data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "dtype is not a string")]
    [InlineData("""{"w":{"dtype":"F32","shape":4,"data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "shape is not an array")]
    [InlineData("""{"w":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}}""", CheckpointFault.TensorRange, "dimension of its shape")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1],"data_offsets":4}}""", CheckpointFault.HeaderMalformed, "data_offsets are not an array")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1],"data_offsets":[4]}}""", CheckpointFault.HeaderMalformed, "fewer than two")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}""", CheckpointFault.HeaderMalformed, "more than two")]
    [InlineData("""{"w":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "more than 8 dimensions")]
    [InlineData("""{"__metadata__":{"a":1}}""", CheckpointFault.HeaderMalformed, "other than strings")]
    [InlineData("""{"__metadata__":"a"}""", CheckpointFault.HeaderMalformed, "not a JSON object")]
    [InlineData("""{"\ud800":{}}""", CheckpointFault.HeaderMalformed, "not valid Unicode")]
    [InlineData("""{"w":{"dtype":"\udc00","shape":[1],"data_offsets":[0,4]}}""", CheckpointFault.HeaderMalformed, "not valid Unicode")]
    public void A_malformed_header_is_refused(string header, CheckpointFault fault, string reason)
    {
        var error = Refused(header, 4);
        Assert.Equal(fault, error.Fault);
        Assert.Matches(reason, error.Message);
        Assert.StartsWith("x.safetensors", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("BOOL")]
    [InlineData("F64")]
    [InlineData("F8_E5M2")]
    [InlineData("F8_E4M3FNUZ")]
    [InlineData("F6_E2M3")]
    [InlineData("U64")]
    public void An_unsupported_dtype_is_named_as_such(string dtype)
    {
        var error = Refused(One(dtype, "[1]", "[0,4]"), 4);
        Assert.Equal(CheckpointFault.DTypeUnsupported, error.Fault);
        Assert.Equal("w", error.Tensor);
        Assert.Contains($"dtype {dtype} is not supported", error.Message, StringComparison.Ordinal);
        Assert.Contains("F8_E4M3", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_unknown_dtype_is_quoted()
    {
        var error = Refused(One("f32", "[1]", "[0,4]"), 4);
        Assert.Equal(CheckpointFault.DTypeUnsupported, error.Fault);
        Assert.Contains("'f32' is unknown", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("[-1]", "[0,4]")]
    [InlineData("[1.0]", "[0,4]")]
    [InlineData("[1e0]", "[0,4]")]
    [InlineData("[\"1\"]", "[0,4]")]
    [InlineData("[null]", "[0,4]")]
    [InlineData("[9223372036854775808]", "[0,4]")]
    [InlineData("[1]", "[-4,0]")]
    [InlineData("[1]", "[0,18446744073709551616]")]
    [InlineData("[1]", "[4,0]")]
    public void A_number_that_is_no_size_is_refused(string shape, string offsets)
    {
        var error = Refused(One("F32", shape, offsets), 4);
        Assert.Equal(CheckpointFault.TensorRange, error.Fault);
        Assert.Equal("w", error.Tensor);
    }

    [Theory]
    [InlineData("F32", "[2]", "[0,4]")]
    [InlineData("F32", "[]", "[0,8]")]
    [InlineData("F4", "[3]", "[0,2]")]
    [InlineData("F32", "[0]", "[0,4]")]
    [InlineData("F32", "[4294967296,4294967296]", "[0,0]")]
    [InlineData("F32", "[4294967296,4294967296,0]", "[0,0]")]
    [InlineData("I64", "[2305843009213693952]", "[0,0]")]
    [InlineData("F32", "[9223372036854775807]", "[0,9223372036854775807]")]
    public void A_shape_that_does_not_fit_its_bytes_is_refused_without_overflow(string dtype, string shape, string offsets)
    {
        var error = Refused(One(dtype, shape, offsets), 4);
        Assert.Equal(CheckpointFault.TensorSize, error.Fault);
        Assert.Equal("w", error.Tensor);
    }

    [Fact]
    public void A_name_that_occurs_twice_is_refused_also_when_escaped()
    {
        var error = Refused("""
            {"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"\u0077":{"dtype":"I8","shape":[2],"data_offsets":[2,4]}}
            """, 4);
        Assert.Equal(CheckpointFault.TensorDuplicate, error.Fault);
        Assert.Equal("w", error.Tensor);
    }

    [Theory]
    [InlineData("[0,4]", "[2,6]", 6, CheckpointFault.TensorOverlap)]
    [InlineData("[0,4]", "[0,4]", 4, CheckpointFault.TensorOverlap)]
    [InlineData("[2,6]", "[0,4]", 6, CheckpointFault.TensorOverlap)]
    [InlineData("[0,4]", "[5,9]", 9, CheckpointFault.DataHole)]
    [InlineData("[1,5]", "[5,9]", 9, CheckpointFault.DataHole)]
    [InlineData("[0,4]", "[4,8]", 7, CheckpointFault.FileTruncated)]
    [InlineData("[0,4]", "[4,8]", 0, CheckpointFault.FileTruncated)]
    [InlineData("[0,4]", "[4,8]", 9, CheckpointFault.TrailingBytes)]
    public void Tensors_must_tile_the_file(string a, string b, int dataBytes, CheckpointFault fault)
    {
        var error = Refused($$$"""
            {"a":{"dtype":"I8","shape":[4],"data_offsets":{{{a}}}},"b":{"dtype":"I8","shape":[4],"data_offsets":{{{b}}}}}
            """, dataBytes);
        Assert.Equal(fault, error.Fault);
    }

    [Fact]
    public void An_empty_tensor_inside_of_another_overlaps_it()
    {
        var error = Refused("""
            {"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]},"e":{"dtype":"I8","shape":[0],"data_offsets":[2,2]}}
            """, 4);
        Assert.Equal(CheckpointFault.TensorOverlap, error.Fault);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(7)]
    public void A_file_shorter_than_its_length_prefix_is_truncated(int bytes)
    {
        var error = Assert.Throws<CheckpointException>(() => Checkpoint.FromImage("x", new byte[bytes]));
        Assert.Equal(CheckpointFault.FileTruncated, error.Fault);
    }

    [Theory]
    [InlineData(100_000_001ul, CheckpointFault.LimitExceeded)]
    [InlineData(0x7FFFFFFFFFFFFFFFul, CheckpointFault.LimitExceeded)]
    [InlineData(0xFFFFFFFFFFFFFFFFul, CheckpointFault.LimitExceeded)]
    [InlineData(100_000_000ul, CheckpointFault.FileTruncated)]
    [InlineData(9ul, CheckpointFault.FileTruncated)]
    public void A_header_length_beyond_limit_or_file_allocates_nothing(ulong length, CheckpointFault fault)
    {
        var image = new byte[16];
        BinaryPrimitives.WriteUInt64LittleEndian(image, length);
        var before = GC.GetAllocatedBytesForCurrentThread();
        var error = Assert.Throws<CheckpointException>(() => Checkpoint.FromImage("x", image));
        Assert.Equal(fault, error.Fault);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 100_000);
    }

    [Fact]
    public void Huge_claimed_tensors_allocate_nothing()
    {
        var image = SafetensorsImage.Of(One("I8", "[4611686018427387904]", "[0,4611686018427387904]"), 4);
        var before = GC.GetAllocatedBytesForCurrentThread();
        var error = Assert.Throws<CheckpointException>(() => Checkpoint.FromImage("x", image));
        Assert.Equal(CheckpointFault.FileTruncated, error.Fault);
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 100_000);
    }

    [Fact]
    public void A_git_lfs_pointer_is_recognised()
    {
        var image = Encoding.ASCII.GetBytes("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
        var error = Assert.Throws<CheckpointException>(() => Checkpoint.FromImage("x", image));
        Assert.Contains("Git LFS pointer", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void More_tensors_than_the_limit_are_refused()
    {
        var writer = new SafetensorsWriter();
        for (var i = 0; i < 4; i++)
            writer.AddF32($"t{i}", [1], [i]);
        var error = Assert.Throws<CheckpointException>(() =>
            Checkpoint.FromImage("x", writer.ToArray(), CheckpointOptions.Default with { TensorCountMax = 3 }));
        Assert.Equal(CheckpointFault.LimitExceeded, error.Fault);
    }

    [Fact]
    public void A_hostile_name_cannot_forge_a_line_or_flood_the_log()
    {
        var name = "evil\\n[INFO] all is well\\u202e" + new string('x', 900);
        var error = Refused("{\"" + name + "\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8);
        Assert.DoesNotContain('\n', error.Message);
        Assert.DoesNotContain('\u202e', error.Message);
        Assert.InRange(error.Message.Length, 1, 700);
        Assert.Contains("\\u000A[INFO]", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Two_hundred_thousand_mutated_headers_end_in_a_typed_error_or_a_consistent_checkpoint()
    {
        (byte[] Header, int DataBytes)[] seeds =
            [(Seed(1), 0), (Seed(3), 12), (Seed(12), 264), (Encoding.UTF8.GetBytes(One("F4", "[2,2]", "[0,2]")), 2)];
        foreach (var (header, dataBytes) in seeds)
            Checkpoint.FromImage("x", SafetensorsImage.Of(header, dataBytes)).Dispose();
        long accepted = 0, refused = 0;
        Parallel.For(0, 200, chunk =>
        {
            var random = new Random(chunk);
            for (var i = 0; i < 1000; i++)
            {
                var (header, dataBytes) = seeds[random.Next(seeds.Length)];
                var image = SafetensorsImage.Of(ByteMutator.Mutate(header, random), dataBytes);
                if (random.Next(20) == 0)
                    image[random.Next(8)] = (byte)random.Next(256);
                try
                {
                    using var checkpoint = Checkpoint.FromImage("x", image);
                    RequireConsistent(checkpoint, image);
                    Interlocked.Increment(ref accepted);
                }
                catch (CheckpointException)
                {
                    Interlocked.Increment(ref refused);
                }
                catch (Exception e)
                {
                    Assert.Fail($"chunk {chunk}, round {i}: {Convert.ToBase64String(image)}\n{e}");
                }
            }
        });
        Assert.Equal(200_000, accepted + refused);
        Assert.InRange(accepted, 1_000, 100_000); // the mutations are neither all fatal nor all harmless
    }

    private static byte[] Seed(int tensors)
    {
        var header = new StringBuilder("""{"__metadata__":{"format":"pt"}""");
        for (var i = 0; i < tensors; i++)
            header.Append(System.Globalization.CultureInfo.InvariantCulture, $$""","layers.{{i}}.w":{"dtype":"BF16","shape":[2,{{i}}],"data_offsets":[{{2 * i * (i - 1)}},{{2 * i * (i + 1)}}]}""");
        return Encoding.UTF8.GetBytes(header.Append('}').ToString());
    }

    private static void RequireConsistent(Checkpoint checkpoint, byte[] image)
    {
        long total = 0;
        foreach (var tensor in checkpoint.Tensors.Values)
        {
            Assert.Equal(tensor.ByteLength, tensor.ElementCount * tensor.DType.BitsPerElement() / 8);
            if (tensor.ByteLength > 0)
                _ = tensor.Bytes[^1];
            total += tensor.ByteLength;
        }
        Assert.Equal(image.Length - 8 - BinaryPrimitives.ReadInt64LittleEndian(image), total);
    }
}

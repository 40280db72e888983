// A DeepSeek-V4 checkpoint of random weights, for sizes that nobody has at hand: names, shapes and dtypes of the releases, numbers from a seed.
//
// Every number follows from seed, tensor name and place, whoever computes it and in whatever order. Norm weights lie near 1 and a matrix keeps the
// magnitude of its input (amplitude sqrt(3 / columns)), so that activations stay finite in any number of layers. Quantised matrices are drawn as codes:
// FP4 as all its codes, equally likely, FP8 as the codes of evenly spaced values; the scales are two neighbouring powers of two.
// Says nothing about text: such a model has the speed and the memory of a real one, not its words.
// Holds a layout and no data. Invariant: the tensors are those that DeepSeekV4Checkpoint asks for with this config.
using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;
using System.Text;
using Inference.Backends;
using Inference.Runtime.Weights;

namespace Inference.Runtime.Models;

/// <summary>How the matrices that the releases quantise are stored.</summary>
public enum SyntheticStorage
{
    /// <summary>BF16; what the releases keep in F32 stays F32.</summary>
    BF16,

    /// <summary>Everything F32.</summary>
    F32,

    /// <summary>As released: FP8 in tiles, routed experts FP4 per 32 columns, E8M0 scales.</summary>
    Fp8Fp4,
}

/// <summary>The layout of a checkpoint of random weights, and its numbers.</summary>
public sealed class DeepSeekV4Synthesis
{
    private const int WordBytes = sizeof(ulong);

    private readonly List<(TensorSpec Spec, Draw Draw)> _tensors = [];
    private readonly DeepSeekV4Config _config;
    private readonly SyntheticStorage _storage;
    private readonly ulong _seed;

    /// <summary>Lays the checkpoint out.</summary>
    /// <param name="config">Its architecture, draft module included.</param>
    /// <param name="storage">Its precision.</param>
    /// <param name="seed">Same seed, same bytes.</param>
    /// <param name="configFile">For messages.</param>
    /// <exception cref="ModelConfigException">FP4 does not go with the config's widths.</exception>
    /// <exception cref="CheckpointException">More tensors than a file can list.</exception>
    /// <exception cref="OverflowException">More bytes than a file can have.</exception>
    public DeepSeekV4Synthesis(DeepSeekV4Config config, SyntheticStorage storage, ulong seed, string configFile)
    {
        (_config, _storage, _seed) = (config, storage, seed);
        if (storage == SyntheticStorage.Fp8Fp4)
        {
            RequireFp4(configFile, "hidden_size", config.HiddenSize);
            RequireFp4(configFile, "moe_intermediate_size", config.ExpertIntermediateSize);
        }
        foreach (var need in DeepSeekV4Checkpoint.Needs(config))
            Add(need);
        Writer = new CheckpointWriter(_tensors.Select(t => t.Spec));
    }

    /// <summary>Writes it as a file; give it <see cref="Fill"/>.</summary>
    public CheckpointWriter Writer { get; }

    /// <summary>The same checkpoint in memory instead of in a file; the caller owns it.</summary>
    /// <param name="location">What messages call it.</param>
    /// <param name="cancel">Looked at on the way.</param>
    public Checkpoint InMemory(string location, CancellationToken cancel) => Checkpoint.Filled(location, Writer.Tensors, Fill, cancel);

    /// <summary>The numbers of a piece of a tensor.</summary>
    public void Fill(int index, long offset, Span<byte> bytes)
    {
        var draw = _tensors[index].Draw;
        while (bytes.Length >= WordBytes)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes, draw.Word(offset / WordBytes));
            bytes = bytes[WordBytes..];
            offset += WordBytes;
        }
        if (bytes.IsEmpty) return;
        Span<byte> last = stackalloc byte[WordBytes];
        BinaryPrimitives.WriteUInt64LittleEndian(last, draw.Word(offset / WordBytes));
        last[..bytes.Length].CopyTo(bytes);
    }

    private static void RequireFp4(string file, string key, int width)
    {
        if (width % Numerics.Fp4BlockSize != 0)
        {
            throw new ModelConfigException(file, key, width.ToString(CultureInfo.InvariantCulture),
                $"a multiple of {Numerics.Fp4BlockSize} for experts in FP4", "Give a multiple, or another storage: bf16 or f32.");
        }
    }

    private void Add(WeightNeed need)
    {
        switch (need.Kind)
        {
            case WeightKind.Integers:
                Add(need.Name, DType.I64, need.Shape.AsSpan(), key => new ExpertIds(key, _config.ExpertCount, _config.ExpertsPerToken));
                break;
            case WeightKind.Float:
                AddFloat(need.Name, IsSmall(need.Name) ? DType.F32 : DType.BF16, need.Shape.AsSpan());
                break;
            case var _ when _storage != SyntheticStorage.Fp8Fp4:
                AddFloat(need.Name + ".weight", DType.BF16, need.Shape.AsSpan());
                break;
            case var _ when need.Name.Contains(".ffn.experts.", StringComparison.Ordinal):
                AddFp4(need.Name, need.Shape[0], need.Shape[1]);
                break;
            default:
                AddFp8(need.Name, need.Shape[0], need.Shape[1]);
                break;
        }
    }

    private void AddFloat(string name, DType released, ReadOnlySpan<long> shape)
    {
        var (amplitude, centre) = Distribution(name, shape[^1]);
        var dtype = _storage == SyntheticStorage.F32 ? DType.F32 : released;
        Add(name, dtype, shape, key => dtype == DType.F32 ? new Singles(key, amplitude, centre) : new BFloats(key, amplitude, centre));
    }

    private void AddFp8(string name, long rows, long columns)
    {
        // Elements up to 448 / 2 .. 448, so that the power of two left for the scale is a whole one.
        float amplitude = Distribution(name + ".weight", columns).Amplitude;
        int exponent = (int)Math.Ceiling(Math.Log2(amplitude / 448));
        var codes = Enumerable.Range(0, 256).Select(b => Numerics.SingleToE4M3((b - 127.5f) / 127.5f * amplitude * MathF.ScaleB(1, -exponent)));
        byte[] table = [.. codes];
        Add(name + ".weight", DType.F8E4M3, [rows, columns], key => new Codes(key, table));
        AddScale(name, CeilingDivide(rows, _config.Fp8Tile), CeilingDivide(columns, _config.Fp8Tile), exponent);
    }

    private void AddFp4(string name, long rows, long columns)
    {
        // All codes equally likely have this root mean square; evenly spread values of amplitude 1 that of 1 / sqrt(3).
        float codesRms = MathF.Sqrt(Enumerable.Range(0, 16).Sum(c => Numerics.E2M1ToSingle(c) * Numerics.E2M1ToSingle(c)) / 16);
        float amplitude = Distribution(name + ".weight", columns).Amplitude;
        int exponent = (int)Math.Round(Math.Log2(amplitude / Math.Sqrt(3) / codesRms));
        Add(name + ".weight", DType.I8, [rows, columns / 2], key => new Codes(key, null));
        AddScale(name, rows, columns / Numerics.Fp4BlockSize, exponent);
    }

    private void AddScale(string name, long rows, long columns, int exponent)
    {
        byte code = (byte)Math.Clamp(exponent + 127, 2, 254);
        byte[] table = [.. Enumerable.Range(0, 256).Select(b => (byte)(code - (b & 1)))];
        Add(name + ".scale", DType.F8E8M0, [rows, columns], key => new Codes(key, table));
    }

    private void Add(string name, DType dtype, ReadOnlySpan<long> shape, Func<ulong, Draw> draw) =>
        _tensors.Add((new TensorSpec(name, dtype, [.. shape]), draw(Key(name))));

    /// <summary>Tensors that the releases keep in F32 (4.2).</summary>
    private static bool IsSmall(string name) =>
        name.Contains("hc_", StringComparison.Ordinal) || name.EndsWith(".attn_sink", StringComparison.Ordinal)
        || name.EndsWith(".ape", StringComparison.Ordinal) || name.EndsWith(".gate.bias", StringComparison.Ordinal);

    /// <summary>Values lie evenly in centre +- amplitude.</summary>
    private static (float Amplitude, float Centre) Distribution(string name, long columns)
    {
        bool Ends(string end) => name.EndsWith(end, StringComparison.Ordinal);
        return name switch
        {
            _ when Ends("norm.weight") => (0.1f, 1),
            _ when Ends("_scale") => (0.25f, 1), // of a hyper-connection
            _ when Ends("_base") || Ends(".ape") => (0.5f, 0),
            _ when Ends(".attn_sink") => (1, 0),
            _ when Ends(".gate.bias") => (0.1f, 0),
            _ when Ends("embed.weight") || Ends("markov_w1.weight") => (MathF.Sqrt(3), 0), // rows of root mean square 1
            _ when Ends("head.weight") => (2 * MathF.Sqrt(3f / columns), 0), // logits that prefer some tokens
            _ => (MathF.Sqrt(3f / columns), 0),
        };
    }

    private ulong Key(string name)
    {
        ulong key = Mix(_seed + 0x9E3779B97F4A7C15);
        foreach (byte b in Encoding.UTF8.GetBytes(name))
            key = Mix(key ^ b);
        return key;
    }

    /// <summary>Spreads every bit of a number over all bits of the result: the finaliser of the SplitMix64 generator.</summary>
    private static ulong Mix(ulong z)
    {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }

    private static long CeilingDivide(long value, long by) => (value + by - 1) / by;

    /// <summary>The numbers of a tensor, eight bytes at a time as the file holds them, little endian.</summary>
    private abstract class Draw(ulong key)
    {
        public abstract ulong Word(long index);

        protected ulong Bits(long index) => Mix(key + (ulong)index * 0x9E3779B97F4A7C15);
    }

    private sealed class Singles(ulong key, float amplitude, float centre) : Draw(key)
    {
        public override ulong Word(long index)
        {
            ulong bits = Bits(index);
            return Value((uint)bits) | (ulong)Value((uint)(bits >> 32)) << 32;
        }

        // 24 bits, which a float holds exactly.
        private uint Value(uint bits) => BitConverter.SingleToUInt32Bits(centre + ((int)bits >> 8) * (1f / (1 << 23)) * amplitude);
    }

    private sealed class BFloats(ulong key, float amplitude, float centre) : Draw(key)
    {
        public override ulong Word(long index)
        {
            ulong bits = Bits(index), word = 0;
            for (int shift = 0; shift < 64; shift += 16)
                word |= (ulong)Numerics.SingleToBFloat16(centre + (short)(bits >> shift) * (1f / (1 << 15)) * amplitude) << shift;
            return word;
        }
    }

    /// <summary>Bytes: any, or those of a table.</summary>
    private sealed class Codes(ulong key, byte[]? table) : Draw(key)
    {
        public override ulong Word(long index)
        {
            ulong bits = Bits(index), word = 0;
            if (table is null) return bits;
            for (int shift = 0; shift < 64; shift += 8)
                word |= (ulong)table[(byte)(bits >> shift)] << shift;
            return word;
        }
    }

    /// <summary>The experts of each token, [V, k]: k different ones, in equal steps around all.</summary>
    private sealed class ExpertIds(ulong key, int experts, int perToken) : Draw(key)
    {
        public override ulong Word(long index)
        {
            ulong bits = Bits(index / perToken);
            long first = (long)((uint)bits % (uint)experts), step = 1 + (long)((uint)(bits >> 32) % (uint)experts);
            while (BigInteger.GreatestCommonDivisor(step, experts) != 1) step++; // else the steps would come round too early
            return (ulong)((first + index % perToken * step) % experts);
        }
    }
}

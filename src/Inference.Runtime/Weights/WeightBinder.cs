// Finds the tensors that a model needs in a checkpoint, and accounts for every tensor that is there.
//
// A family asks for each of its weights by name and shape while it builds its own records; the binder looks it up, checks
// shape, dtype and the scales beside it, and notes what is wrong instead of stopping at the first finding. Finish then
// reports everything together, with what the checkpoint holds beyond that. What a weight that was not found returns is
// null, so nothing may be used before Finish returned.
// One binder binds one checkpoint once. Invariant: after Finish, each tensor was asked for exactly once or is ignorable.
using System.Globalization;
using Inference.Backends;

namespace Inference.Runtime.Weights;

internal sealed class WeightBinder(Checkpoint checkpoint) : IWeightSource
{
    private const int ListedPerKind = 8;

    private readonly HashSet<string> _used = new(StringComparer.Ordinal);
    private readonly List<WeightRef> _bound = [];
    private readonly Findings _missing = new("missing"), _unexpected = new("unexpected"), _wrong = new("wrong");

    /// <summary>Side of the square FP8 scale tiles.</summary>
    public int Fp8Tile { get; init; } = 128;

    /// <summary>Weights bound so far, in order.</summary>
    public IReadOnlyList<WeightRef> Bound => _bound;

    /// <summary>Whether the checkpoint has a tensor of that name.</summary>
    public bool Has(string name) => checkpoint.TryGet(name, out _);

    /// <summary>
    /// A matrix that may be quantised: NAME.weight as F32, BF16 or F16; or as F8_E4M3 with NAME.scale per tile; or as FP4 (two
    /// per I8, U8 or F4) with NAME.scale per 32 columns.
    /// </summary>
    public WeightRef Matrix(string name, long rows, long columns)
    {
        var weight = Find(name + ".weight");
        var scale = Has(name + ".scale") ? Find(name + ".scale") : null;
        if (weight is null)
            return null!;
        return weight.DType switch
        {
            DType.F32 or DType.BF16 or DType.F16 => Unquantised(name, weight, scale, rows, columns),
            DType.F8E4M3 => Quantised(name, weight, scale, [rows, columns],
                [CeilingDivide(rows, Fp8Tile), CeilingDivide(columns, Fp8Tile)], Fp8Tile, Fp8Tile),
            DType.I8 or DType.U8 => Quantised(name, weight, scale, [rows, CeilingDivide(columns, 2)],
                [rows, CeilingDivide(columns, Numerics.Fp4BlockSize)], 1, Numerics.Fp4BlockSize),
            DType.F4E2M1 => Quantised(name, weight, scale, [rows, columns],
                [rows, CeilingDivide(columns, Numerics.Fp4BlockSize)], 1, Numerics.Fp4BlockSize),
            _ => Wrong(weight, "F32, BF16, F16, F8_E4M3 or FP4", [rows, columns]),
        };
    }

    /// <summary>A tensor of floating point numbers under its full name: F32, BF16 or F16, never quantised.</summary>
    public WeightRef Float(string name, params ReadOnlySpan<long> shape) => Plain(name, "F32, BF16 or F16", shape, DType.F32, DType.BF16, DType.F16);

    /// <summary>A table of integers under its full name: I64 or I32.</summary>
    public WeightRef Integers(string name, params ReadOnlySpan<long> shape) => Plain(name, "I64 or I32", shape, DType.I64, DType.I32);

    /// <summary>Reports all findings together, if there are any.</summary>
    /// <param name="isIgnorable">Names of tensors that nobody needs.</param>
    /// <param name="wayOut">What the operator can do, as a sentence.</param>
    /// <exception cref="CheckpointException">Tensors are missing, unexpected or wrong (<see cref="CheckpointFault.TensorsMismatch"/>).</exception>
    public void Finish(Predicate<string> isIgnorable, string wayOut)
    {
        foreach (var (name, tensor) in checkpoint.Tensors)
        {
            if (!_used.Contains(name) && !isIgnorable(name))
                _unexpected.Add(tensor.ToString());
        }
        Findings[] all = [_missing, _unexpected, _wrong];
        if (all.All(kind => kind.Count == 0))
            return;
        throw new CheckpointException(CheckpointFault.TensorsMismatch, checkpoint.Location,
            $"the tensors are not those of its config.json ({string.Join(", ", all.Select(kind => kind.Summary))})",
            [.. all.SelectMany(kind => kind.Lines)], wayOut);
    }

    private WeightRef Unquantised(string name, TensorView weight, TensorView? scale, long rows, long columns)
    {
        if (scale is not null)
            _wrong.Add($"{scale} stands beside {weight}, which has no scales");
        return HasShape(weight, rows, columns)
            ? Keep(new WeightRef(name, weight, null, new WeightScheme(weight.DType)))
            : Wrong(weight, weight.DType.ToString(), [rows, columns]);
    }

    private WeightRef Quantised(
        string name, TensorView weight, TensorView? scale, ReadOnlySpan<long> shape, ReadOnlySpan<long> scaleShape, int tileRows, int tileColumns)
    {
        if (!HasShape(weight, shape))
            return Wrong(weight, weight.DType.ToString(), shape);
        if (scale is null)
        {
            _missing.Add($"{Printable.Quote(name + ".scale")}, since {weight} needs scales");
            return null!;
        }
        var isFp4 = weight.DType != DType.F8E4M3;
        if (!HasShape(scale, scaleShape) || !(scale.DType == DType.F8E8M0 || (scale.DType == DType.F32 && !isFp4)))
            return Wrong(scale, isFp4 ? "F8E8M0" : "F8E8M0 or F32", scaleShape);
        var elements = weight.DType is DType.I8 or DType.U8 ? weight.AsPackedFp4() : weight;
        return Keep(new WeightRef(name, elements, scale, new WeightScheme(elements.DType, scale.DType, tileRows, tileColumns)));
    }

    private WeightRef Plain(string name, string allowed, ReadOnlySpan<long> shape, params ReadOnlySpan<DType> dtypes)
    {
        if (Find(name) is not { } tensor)
            return null!;
        return dtypes.Contains(tensor.DType) && HasShape(tensor, shape)
            ? Keep(new WeightRef(name, tensor, null, new WeightScheme(tensor.DType)))
            : Wrong(tensor, allowed, shape);
    }

    private TensorView? Find(string name)
    {
        if (!checkpoint.TryGet(name, out var tensor))
        {
            _missing.Add(Printable.Quote(name)); // not kept: a config may ask for far more than there is
            return null;
        }
        return _used.Add(name)
            ? tensor
            : throw new InvalidOperationException($"tensor {name} is asked for twice: an error in the family's description");
    }

    private WeightRef Keep(WeightRef weight)
    {
        _bound.Add(weight);
        return weight;
    }

    private WeightRef Wrong(TensorView tensor, string allowed, ReadOnlySpan<long> shape)
    {
        _wrong.Add($"{tensor} should be {allowed} {SafetensorsHeader.ShapeText([.. shape])}");
        return null!;
    }

    private static bool HasShape(TensorView tensor, params ReadOnlySpan<long> shape) => tensor.Shape.AsSpan().SequenceEqual(shape);

    private static long CeilingDivide(long value, long by) => (value + by - 1) / by;

    /// <summary>Findings of one kind: all are counted, the first few are kept.</summary>
    private sealed class Findings(string kind)
    {
        private readonly List<string> _first = [];

        public int Count { get; private set; }

        public string Summary => string.Create(CultureInfo.InvariantCulture, $"{Count} {kind}");

        public IEnumerable<string> Lines => _first.Select(line => $"{kind}: {line}")
            .Concat(Count > _first.Count ? [$"{kind}: ... and {Count - _first.Count} more"] : []);

        public void Add(string line)
        {
            if (Count++ < ListedPerKind)
                _first.Add(line);
        }
    }
}

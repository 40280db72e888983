// What must hold of an operator's operands before any kernel looks at them: presence, element types, shapes, parameters, and
// which outputs may lie over which inputs. One method per operator, shared by the backends, so that all of them refuse the same calls
// with the same words.
//
// It reads descriptors only, never the numbers behind them: that an id or a page lies in range is checked where it is read.
// Every refusal is a BackendException(Request) that names operator and operand, what was expected and what came. Nothing is allocated
// when all is well: these checks run on every call.
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;

namespace Inference.Backends.Operators;

/// <summary>Checks of operator descriptors for a backend whose tensors lie in <typeparamref name="TBuffer"/> and whose weights are
/// <typeparamref name="TWeight"/>.</summary>
internal static class OperatorChecks<TBuffer, TWeight>
    where TBuffer : DeviceBuffer
    where TWeight : PreparedWeight
{
    private const int Any = -1;

    /// <summary>Runs the check of whatever operator this is.</summary>
    /// <exception cref="BackendException">Request: an operand is wrong, or no such operator is known here.</exception>
    public static void Validate<TOp>(in TOp op) where TOp : struct, IOperator
    {
        if (typeof(TOp) == typeof(Embed)) Check(in As<TOp, Embed>(in op));
        else if (typeof(TOp) == typeof(GatherRows)) Check(in As<TOp, GatherRows>(in op));
        else if (typeof(TOp) == typeof(RmsNorm)) Check(in As<TOp, RmsNorm>(in op));
        else if (typeof(TOp) == typeof(Linear)) Check(in As<TOp, Linear>(in op));
        else if (typeof(TOp) == typeof(GroupedLinear)) Check(in As<TOp, GroupedLinear>(in op));
        else if (typeof(TOp) == typeof(SwiGlu)) Check(in As<TOp, SwiGlu>(in op));
        else if (typeof(TOp) == typeof(Rotate)) Check(in As<TOp, Rotate>(in op));
        else if (typeof(TOp) == typeof(KvInsert)) Check(in As<TOp, KvInsert>(in op));
        else if (typeof(TOp) == typeof(CompressorUpdate)) Check(in As<TOp, CompressorUpdate>(in op));
        else if (typeof(TOp) == typeof(IndexTopK)) Check(in As<TOp, IndexTopK>(in op));
        else if (typeof(TOp) == typeof(Attention)) Check(in As<TOp, Attention>(in op));
        else if (typeof(TOp) == typeof(Route)) Check(in As<TOp, Route>(in op));
        else if (typeof(TOp) == typeof(ExpertGateUp)) Check(in As<TOp, ExpertGateUp>(in op));
        else if (typeof(TOp) == typeof(ExpertDownCombine)) Check(in As<TOp, ExpertDownCombine>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPre)) Check(in As<TOp, HyperConnectionPre>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionPost)) Check(in As<TOp, HyperConnectionPost>(in op));
        else if (typeof(TOp) == typeof(HyperConnectionHead)) Check(in As<TOp, HyperConnectionHead>(in op));
        else throw Wrong($"{typeof(TOp).Name} is no operator this backend knows.");
    }

    /// <summary>Sees an operator of generic type as the struct it is; the caller has compared the types.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ref readonly TTo As<TFrom, TTo>(in TFrom op) where TFrom : struct where TTo : struct =>
        ref Unsafe.As<TFrom, TTo>(ref Unsafe.AsRef(in op));

    // Dense

    public static void Check(in Embed op)
    {
        Expect("Embed.Ids", op.Ids, DType.I32, 1);
        ExpectWeight("Embed.Table", op.Table);
        Expect("Embed.Output", op.Output, DType.F32, 3, op.Ids.D0, Any, op.Table.Columns);
        Disjoint("Embed.Output", op.Output, "Ids", op.Ids);
    }

    public static void Check(in GatherRows op)
    {
        ExpectPresent("GatherRows.Input", op.Input);
        if (op.Input.Rank < 2) throw Wrong($"GatherRows.Input: expected rows of rank 2 or more, got {op.Input}.");
        Expect("GatherRows.Input", op.Input, DType.F32, op.Input.Rank);
        Expect("GatherRows.Rows", op.Rows, DType.I32, 1);
        Expect("GatherRows.Output", op.Output, DType.F32, op.Input.Rank, op.Rows.D0, op.Input.D1, op.Input.D2, op.Input.D3);
        Disjoint("GatherRows.Output", op.Output, "Input", op.Input);
        Disjoint("GatherRows.Output", op.Output, "Rows", op.Rows);
    }

    public static void Check(in RmsNorm op)
    {
        ExpectPresent("RmsNorm.Input", op.Input);
        if (op.Input.Rank is not (2 or 3)) throw Wrong($"RmsNorm.Input: expected F32[T, D] or F32[T, H, D], got {op.Input}.");
        Expect("RmsNorm.Input", op.Input, DType.F32, op.Input.Rank);
        var width = op.Input.Rank == 2 ? op.Input.D1 : op.Input.D2;
        if (op.Weight.IsPresent) Expect("RmsNorm.Weight", op.Weight, DType.F32, 1, width);
        ExpectEpsilon("RmsNorm.Epsilon", op.Epsilon);
        Expect("RmsNorm.Output", op.Output, DType.F32, op.Input.Rank, op.Input.D0, op.Input.D1, op.Input.D2);
        DisjointOrSame("RmsNorm.Output", op.Output, "Input", op.Input);
        Disjoint("RmsNorm.Output", op.Output, "Weight", op.Weight);
    }

    public static void Check(in Linear op)
    {
        Expect("Linear.Input", op.Input, DType.F32, 2);
        ExpectWeight("Linear.Weight", op.Weight, Any, op.Input.D1);
        Expect("Linear.Output", op.Output, DType.F32, 2, op.Input.D0, op.Weight.Rows);
        Disjoint("Linear.Output", op.Output, "Input", op.Input);
    }

    public static void Check(in GroupedLinear op)
    {
        Expect("GroupedLinear.Input", op.Input, DType.F32, 3);
        ExpectWeight("GroupedLinear.Weight", op.Weight, Any, op.Input.D2);
        var groups = op.Input.D1;
        if (groups < 1 || op.Weight.Rows % groups != 0)
            throw Wrong($"GroupedLinear.Weight: {op.Weight.Rows} rows of '{op.Weight.Name}' are not {groups} groups, as {op.Input} has.");
        Expect("GroupedLinear.Output", op.Output, DType.F32, 3, op.Input.D0, groups, op.Weight.Rows / groups);
        Disjoint("GroupedLinear.Output", op.Output, "Input", op.Input);
    }

    public static void Check(in SwiGlu op)
    {
        Expect("SwiGlu.Gate", op.Gate, DType.F32, 2);
        Expect("SwiGlu.Up", op.Up, DType.F32, 2, op.Gate.D0, op.Gate.D1);
        ExpectLimit("SwiGlu.Limit", op.Limit);
        Expect("SwiGlu.Output", op.Output, DType.F32, 2, op.Gate.D0, op.Gate.D1);
        DisjointOrSame("SwiGlu.Output", op.Output, "Gate", op.Gate);
        DisjointOrSame("SwiGlu.Output", op.Output, "Up", op.Up);
    }

    // Attention

    public static void Check(in Rotate op)
    {
        Expect("Rotate.Vectors", op.Vectors, DType.F32, 3);
        Expect("Rotate.Positions", op.Positions, DType.I32, 1, op.Vectors.D0);
        ExpectRope("Rotate.Rope", op.Rope, op.Vectors.D2);
        Disjoint("Rotate.Vectors", op.Vectors, "Positions", op.Positions);
        Disjoint("Rotate.Vectors", op.Vectors, "Rope", op.Rope.Frequencies);
    }

    public static void Check(in KvInsert op)
    {
        Expect("KvInsert.Input", op.Input, DType.F32, 2);
        var width = op.Input.D1;
        Expect("KvInsert.Norm", op.Norm, DType.F32, 1, width);
        ExpectEpsilon("KvInsert.Epsilon", op.Epsilon);
        ExpectTokens("KvInsert.Tokens.Sequence", "KvInsert.Tokens.Position", op.Tokens, op.Input.D0);
        ExpectRope("KvInsert.Rope", op.Rope, width);
        ExpectRounding("KvInsert.Rounding", op.Rounding, width, op.Rope);
        ExpectRoundedRows("KvInsert.Rows", op.Rows, width, op.Rounding, op.Rope);
        Disjoint("KvInsert.Rows", op.Rows.Pool, "Input", op.Input);
    }

    public static void Check(in CompressorUpdate op)
    {
        Expect("CompressorUpdate.Values", op.Values, DType.F32, 2);
        int channels = op.Values.D1, parts = op.Overlap ? 2 : 1;
        if (op.Ratio < 1) throw Wrong($"CompressorUpdate.Ratio: expected at least 1, got {op.Ratio}.");
        if (channels % parts != 0) throw Wrong($"CompressorUpdate.Values: {channels} channels are not two halves, as overlap needs.");
        var width = channels / parts;
        Expect("CompressorUpdate.Gates", op.Gates, DType.F32, 2, op.Values.D0, channels);
        Expect("CompressorUpdate.Ape", op.Ape, DType.F32, 2, op.Ratio, channels);
        ExpectRows("CompressorUpdate.State", op.State, checked(2 * channels));
        Expect("CompressorUpdate.State", op.State.Pool, DType.F32, 4);
        ExpectTokens("CompressorUpdate.Tokens.Sequence", "CompressorUpdate.Tokens.Position", op.Tokens, op.Values.D0);
        Expect("CompressorUpdate.Norm", op.Norm, DType.F32, 1, width);
        ExpectEpsilon("CompressorUpdate.Epsilon", op.Epsilon);
        ExpectRope("CompressorUpdate.Rope", op.Rope, width);
        ExpectRounding("CompressorUpdate.Rounding", op.Rounding, width, op.Rope);
        ExpectRoundedRows("CompressorUpdate.Rows", op.Rows, width, op.Rounding, op.Rope);
        ExpectSameSequences("CompressorUpdate.Rows", op.Rows, op.State);
        Disjoint("CompressorUpdate.State", op.State.Pool, "Values", op.Values);
        Disjoint("CompressorUpdate.State", op.State.Pool, "Gates", op.Gates);
        Disjoint("CompressorUpdate.Rows", op.Rows.Pool, "Values", op.Values);
        Disjoint("CompressorUpdate.Rows", op.Rows.Pool, "Gates", op.Gates);
        Disjoint("CompressorUpdate.Rows", op.Rows.Pool, "State", op.State.Pool);
    }

    public static void Check(in IndexTopK op)
    {
        Expect("IndexTopK.Queries", op.Queries, DType.F32, 3);
        int tokens = op.Queries.D0, width = op.Queries.D2;
        Expect("IndexTopK.HeadWeights", op.HeadWeights, DType.F32, 2, tokens, op.Queries.D1);
        if (!float.IsFinite(op.Scale)) throw Wrong($"IndexTopK.Scale: expected a finite number, got {op.Scale}.");
        ExpectTokens("IndexTopK.Tokens.Sequence", "IndexTopK.Tokens.Position", op.Tokens, tokens);
        ExpectRope("IndexTopK.Rope", op.Rope, width);
        ExpectRounding("IndexTopK.Rounding", op.Rounding, width, op.Rope);
        ExpectRoundedRows("IndexTopK.Rows", op.Rows, width, op.Rounding, op.Rope);
        if (op.Ratio < 1) throw Wrong($"IndexTopK.Ratio: expected at least 1, got {op.Ratio}.");
        Expect("IndexTopK.Selected", op.Selected, DType.I32, 2, tokens);
        if (op.TopK < 1) throw Wrong($"IndexTopK.Selected: expected room for at least one row per token, got {op.Selected}.");
        Disjoint("IndexTopK.Queries", op.Queries, "HeadWeights", op.HeadWeights);
        Disjoint("IndexTopK.Queries", op.Queries, "Rows", op.Rows.Pool);
        Disjoint("IndexTopK.Selected", op.Selected, "Queries", op.Queries);
        Disjoint("IndexTopK.Selected", op.Selected, "HeadWeights", op.HeadWeights);
    }

    public static void Check(in Attention op)
    {
        Expect("Attention.Queries", op.Queries, DType.F32, 3);
        int tokens = op.Queries.D0, heads = op.Queries.D1, width = op.Queries.D2;
        ExpectTokens("Attention.Tokens.Sequence", "Attention.Tokens.Position", op.Tokens, tokens);
        ExpectRows("Attention.Window", op.Window, width);
        if (op.WindowSize < 1) throw Wrong($"Attention.WindowSize: expected at least 1, got {op.WindowSize}.");
        if (op.Compressed.IsPresent)
        {
            ExpectRows("Attention.Compressed", op.Compressed, width);
            ExpectSameSequences("Attention.Compressed", op.Compressed, op.Window);
            if (op.Compressed.Format != op.Window.Format)
                throw Wrong($"Attention.Compressed: rows of {op.Compressed.Format} beside window rows of {op.Window.Format}.");
            if (op.Ratio < 1) throw Wrong($"Attention.Ratio: expected at least 1, got {op.Ratio}.");
        }
        if (op.Selected.IsPresent)
        {
            if (!op.Compressed.IsPresent) throw Wrong("Attention.Selected: rows are selected but Compressed is absent.");
            Expect("Attention.Selected", op.Selected, DType.I32, 2, tokens);
        }
        Expect("Attention.Sinks", op.Sinks, DType.F32, 1, heads);
        if (!float.IsFinite(op.Scale)) throw Wrong($"Attention.Scale: expected a finite number, got {op.Scale}.");
        Expect("Attention.Output", op.Output, DType.F32, 3, tokens, heads, width);
        Disjoint("Attention.Output", op.Output, "Queries", op.Queries);
        Disjoint("Attention.Output", op.Output, "Window", op.Window.Pool);
        Disjoint("Attention.Output", op.Output, "Compressed", op.Compressed.Pool);
        Disjoint("Attention.Output", op.Output, "Selected", op.Selected);
    }

    // Experts

    public static void Check(in Route op)
    {
        Expect("Route.Logits", op.Logits, DType.F32, 2);
        int tokens = op.Logits.D0, experts = op.Logits.D1;
        if (op.Scoring is < RouterScoring.SqrtSoftplus or > RouterScoring.Softmax) // Enum.IsDefined may allocate
            throw Wrong($"Route.Scoring: {(int)op.Scoring} is no scoring function.");
        if (!float.IsFinite(op.Scale)) throw Wrong($"Route.Scale: expected a finite number, got {op.Scale}.");
        Expect("Route.ExpertIds", op.ExpertIds, DType.I32, 2, tokens);
        var perToken = op.ExpertIds.D1;
        Expect("Route.ExpertWeights", op.ExpertWeights, DType.F32, 2, tokens, perToken);
        if (op.Bias.IsPresent) Expect("Route.Bias", op.Bias, DType.F32, 1, experts);
        if (op.HashTable.IsPresent)
        {
            Expect("Route.HashTable", op.HashTable, DType.I32, 2, Any, perToken);
            Expect("Route.TokenIds", op.TokenIds, DType.I32, 1, tokens);
        }
        else if (perToken > experts) throw Wrong($"Route.ExpertIds: {perToken} experts per token of only {experts}.");
        Disjoint("Route.ExpertIds", op.ExpertIds, "Logits", op.Logits);
        Disjoint("Route.ExpertIds", op.ExpertIds, "TokenIds", op.TokenIds);
        Disjoint("Route.ExpertWeights", op.ExpertWeights, "Logits", op.Logits);
        Disjoint("Route.ExpertWeights", op.ExpertWeights, "TokenIds", op.TokenIds);
        Disjoint("Route.ExpertWeights", op.ExpertWeights, "ExpertIds", op.ExpertIds);
    }

    public static void Check(in ExpertGateUp op)
    {
        Expect("ExpertGateUp.Input", op.Input, DType.F32, 2);
        var tokens = op.Input.D0;
        Expect("ExpertGateUp.ExpertIds", op.ExpertIds, DType.I32, 2, tokens);
        var perToken = op.ExpertIds.D1;
        Expect("ExpertGateUp.ExpertWeights", op.ExpertWeights, DType.F32, 2, tokens, perToken);
        ExpectLimit("ExpertGateUp.Limit", op.Limit);
        Expect("ExpertGateUp.Output", op.Output, DType.F32, 3, tokens, perToken);
        ExpectExperts("ExpertGateUp.Gate", op.Gate, op.Output.D2, op.Input.D1);
        ExpectExperts("ExpertGateUp.Up", op.Up, op.Output.D2, op.Input.D1);
        if (op.Gate.Length != op.Up.Length)
            throw Wrong($"ExpertGateUp.Up: expected {op.Gate.Length} experts as in Gate, got {op.Up.Length}.");
        Disjoint("ExpertGateUp.Output", op.Output, "Input", op.Input);
        Disjoint("ExpertGateUp.Output", op.Output, "ExpertIds", op.ExpertIds);
        Disjoint("ExpertGateUp.Output", op.Output, "ExpertWeights", op.ExpertWeights);
    }

    public static void Check(in ExpertDownCombine op)
    {
        Expect("ExpertDownCombine.Hidden", op.Hidden, DType.F32, 3);
        var tokens = op.Hidden.D0;
        Expect("ExpertDownCombine.ExpertIds", op.ExpertIds, DType.I32, 2, tokens, op.Hidden.D1);
        Expect("ExpertDownCombine.Output", op.Output, DType.F32, 2, tokens);
        ExpectExperts("ExpertDownCombine.Down", op.Down, op.Output.D1, op.Hidden.D2);
        Disjoint("ExpertDownCombine.Output", op.Output, "Hidden", op.Hidden);
        Disjoint("ExpertDownCombine.Output", op.Output, "ExpertIds", op.ExpertIds);
        if (!op.Shared.IsPresent) return;
        Expect("ExpertDownCombine.Shared", op.Shared, DType.F32, 2, tokens, op.Output.D1);
        DisjointOrSame("ExpertDownCombine.Output", op.Output, "Shared", op.Shared);
    }

    // Hyper-connections

    public static void Check(in HyperConnectionPre op)
    {
        Expect("HyperConnectionPre.Streams", op.Streams, DType.F32, 3);
        int tokens = op.Streams.D0, streams = op.Streams.D1, width = op.Streams.D2;
        var coefficients = checked((2 + streams) * streams);
        ExpectWeight("HyperConnectionPre.Mix", op.Mix, coefficients, checked(streams * width));
        Expect("HyperConnectionPre.Base", op.Base, DType.F32, 1, coefficients);
        Expect("HyperConnectionPre.Scale", op.Scale, DType.F32, 1, 3);
        ExpectEpsilon("HyperConnectionPre.NormEpsilon", op.NormEpsilon);
        ExpectEpsilon("HyperConnectionPre.Epsilon", op.Epsilon);
        if (op.Iterations < 1) throw Wrong($"HyperConnectionPre.Iterations: expected at least 1, got {op.Iterations}.");
        Expect("HyperConnectionPre.Output", op.Output, DType.F32, 2, tokens, width);
        Expect("HyperConnectionPre.Post", op.Post, DType.F32, 2, tokens, streams);
        Expect("HyperConnectionPre.Combine", op.Combine, DType.F32, 3, tokens, streams, streams);
        Disjoint("HyperConnectionPre.Output", op.Output, "Streams", op.Streams);
        Disjoint("HyperConnectionPre.Post", op.Post, "Streams", op.Streams);
        Disjoint("HyperConnectionPre.Combine", op.Combine, "Streams", op.Streams);
        Disjoint("HyperConnectionPre.Post", op.Post, "Output", op.Output);
        Disjoint("HyperConnectionPre.Combine", op.Combine, "Output", op.Output);
        Disjoint("HyperConnectionPre.Combine", op.Combine, "Post", op.Post);
    }

    public static void Check(in HyperConnectionPost op)
    {
        Expect("HyperConnectionPost.Streams", op.Streams, DType.F32, 3);
        int tokens = op.Streams.D0, streams = op.Streams.D1, width = op.Streams.D2;
        Expect("HyperConnectionPost.Sublayer", op.Sublayer, DType.F32, 2, tokens, width);
        Expect("HyperConnectionPost.Post", op.Post, DType.F32, 2, tokens, streams);
        Expect("HyperConnectionPost.Combine", op.Combine, DType.F32, 3, tokens, streams, streams);
        Expect("HyperConnectionPost.Output", op.Output, DType.F32, 3, tokens, streams, width);
        DisjointOrSame("HyperConnectionPost.Output", op.Output, "Streams", op.Streams);
        Disjoint("HyperConnectionPost.Output", op.Output, "Sublayer", op.Sublayer);
        Disjoint("HyperConnectionPost.Output", op.Output, "Post", op.Post);
        Disjoint("HyperConnectionPost.Output", op.Output, "Combine", op.Combine);
    }

    public static void Check(in HyperConnectionHead op)
    {
        Expect("HyperConnectionHead.Streams", op.Streams, DType.F32, 3);
        int streams = op.Streams.D1, width = op.Streams.D2;
        ExpectWeight("HyperConnectionHead.Mix", op.Mix, streams, checked(streams * width));
        Expect("HyperConnectionHead.Base", op.Base, DType.F32, 1, streams);
        Expect("HyperConnectionHead.Scale", op.Scale, DType.F32, 1, 1);
        ExpectEpsilon("HyperConnectionHead.NormEpsilon", op.NormEpsilon);
        ExpectEpsilon("HyperConnectionHead.Epsilon", op.Epsilon);
        Expect("HyperConnectionHead.Output", op.Output, DType.F32, 2, op.Streams.D0, width);
        Disjoint("HyperConnectionHead.Output", op.Output, "Streams", op.Streams);
    }

    // The rules the methods above are made of.

    private static void ExpectPresent(string operand, in Tensor t)
    {
        if (!t.IsPresent) throw Wrong($"{operand}: missing.");
        if (t.Buffer is not TBuffer)
            throw Wrong($"{operand}: lies in a {t.Buffer.GetType().Name}; this backend works on a {typeof(TBuffer).Name}.");
    }

    /// <summary>Presence, dtype, rank and extents; <see cref="Any"/> leaves an extent free, but only the first may be zero.</summary>
    private static void Expect(string operand, in Tensor t, DType dtype, int rank, int d0 = Any, int d1 = Any, int d2 = Any, int d3 = Any)
    {
        ExpectPresent(operand, t);
        var fits = t.DType == dtype && t.Rank == rank && Fits(t.D0, d0)
            && (rank < 2 || Fits(t.D1, d1)) && (rank < 3 || Fits(t.D2, d2)) && (rank < 4 || Fits(t.D3, d3));
        if (!fits) throw Wrong($"{operand}: expected {Shape(dtype, rank, d0, d1, d2, d3)}, got {t}.");
        if (rank > 1 && t.RowElements == 0) throw Wrong($"{operand}: {t} has empty rows.");
    }

    private static bool Fits(int actual, int expected) => expected == Any || actual == expected;

    private static string Shape(DType dtype, int rank, params ReadOnlySpan<int> extents)
    {
        var names = new string[rank];
        for (var i = 0; i < rank; i++)
            names[i] = extents[i] == Any ? "any" : $"{extents[i]}";
        return $"{dtype}[{string.Join(", ", names)}]";
    }

    private static void ExpectWeight(string operand, [NotNull] PreparedWeight? weight, int rows = Any, int columns = Any)
    {
        if (weight is null) throw Wrong($"{operand}: missing.");
        if (weight is not TWeight)
            throw Wrong($"{operand}: '{weight.Name}' is a {weight.GetType().Name}; this backend works on a {typeof(TWeight).Name}.");
        if (!Fits(weight.Rows, rows) || !Fits(weight.Columns, columns))
        {
            var expected = $"[{(rows == Any ? "any" : rows)}, {(columns == Any ? "any" : columns)}]";
            throw Wrong($"{operand}: expected {expected}, got '{weight.Name}' [{weight.Rows}, {weight.Columns}].");
        }
    }

    private static void ExpectExperts(string operand, [NotNull] PreparedWeight[]? experts, int rows, int columns)
    {
        if (experts is null || experts.Length == 0) throw Wrong($"{operand}: missing.");
        foreach (var expert in experts)
            ExpectWeight(operand, expert, rows, columns);
    }

    private static void ExpectTokens(string sequence, string position, in TokenLayout tokens, int count)
    {
        Expect(sequence, tokens.Sequence, DType.I32, 1, count);
        Expect(position, tokens.Position, DType.I32, 1, count);
    }

    private static void ExpectRope(string operand, in Rope rope, int width)
    {
        Expect(operand, rope.Frequencies, DType.F32, 1);
        if (2L * rope.Frequencies.D0 > width)
            throw Wrong($"{operand}: {rope.Frequencies.D0} frequencies turn {2L * rope.Frequencies.D0} channels, a vector has only {width}.");
    }

    private static void ExpectRounding(string operand, RowRounding rounding, int width, in Rope rope)
    {
        var plain = width - rope.Channels;
        switch (rounding)
        {
            case RowRounding.None or RowRounding.BF16: return;
            case RowRounding.Fp8Block64 or RowRounding.Fp8Row when plain % RowFormat.Fp8Block == 0: return;
            case RowRounding.Fp8Block64 or RowRounding.Fp8Row:
                throw Wrong($"{operand}: {rounding} needs a multiple of 64 channels before the rotary ones, got {plain} of {width}.");
            case RowRounding.HadamardFp4Block32 or RowRounding.HadamardFp8 when width % RowFormat.Fp4Block == 0 && int.IsPow2(width): return;
            case RowRounding.HadamardFp4Block32 or RowRounding.HadamardFp8:
                throw Wrong($"{operand}: {rounding} needs a row width that is a power of two and at least 32, got {width}.");
            default: throw Wrong($"{operand}: {(int)rounding} is no rounding.");
        }
    }

    /// <summary>Rows of a format that its pool and widths fit.</summary>
    private static void ExpectRows(string operand, in PagedRows rows, int width)
    {
        ExpectPresent(operand, rows.Pool);
        if (rows.Width != width) throw Wrong($"{operand}: expected rows of {width} elements, got {rows.Format}.");
        Expect(operand, rows.Pool, rows.Format.DType, 4, Any, Any, Any, rows.Format.StoredElements);
        switch (rows.Format.Encoding)
        {
            case RowEncoding.Fp8 when rows.Format.PlainChannels % RowFormat.Fp8Block != 0:
                throw Wrong($"{operand}: {rows.Format} needs a multiple of 64 channels before the rotary ones.");
            case RowEncoding.Fp4 when width % RowFormat.Fp4Block != 0:
                throw Wrong($"{operand}: {rows.Format} needs a multiple of 32 channels.");
        }
        if ((uint)rows.Layer >= (uint)rows.LayerCount) throw Wrong($"{operand}: layer {rows.Layer} of a pool of {rows.LayerCount} layers.");
        Expect(operand, rows.PageTable, DType.I32, 2);
        Expect(operand, rows.FirstPage, DType.I32, 1, rows.PageTable.D0);
    }

    /// <summary>Rows that an operator makes, or for which it makes queries: rounded to what their format stores without loss.</summary>
    private static void ExpectRoundedRows(string operand, in PagedRows rows, int width, RowRounding rounding, in Rope rope)
    {
        ExpectRows(operand, rows, width);
        var format = rows.Format;
        if (format.Encoding == RowEncoding.F32) return;
        if (rounding != format.Rounding) throw Wrong($"{operand}: {format} rows store what {format.Rounding} gives; the rounding is {rounding}.");
        if (format.Encoding == RowEncoding.Fp8 && format.RotaryChannels != rope.Channels)
            throw Wrong($"{operand}: {format} rows where {rope.Channels} channels are rotated.");
    }

    private static void ExpectSameSequences(string operand, in PagedRows rows, in PagedRows other)
    {
        if (rows.PageTable.D0 != other.PageTable.D0)
            throw Wrong($"{operand}: a page table of {rows.PageTable.D0} sequences beside one of {other.PageTable.D0}.");
    }

    private static void ExpectEpsilon(string operand, float value)
    {
        if (!float.IsFinite(value) || value < 0) throw Wrong($"{operand}: expected a finite number of at least 0, got {value}.");
    }

    private static void ExpectLimit(string operand, float value)
    {
        if (!(value > 0)) throw Wrong($"{operand}: expected a positive number or +infinity, got {value}.");
    }

    private static void Disjoint(string output, in Tensor a, string input, in Tensor b)
    {
        if (Overlap(a, b)) throw Wrong($"{output}: {a} lies over {input} {b}.");
    }

    private static void DisjointOrSame(string output, in Tensor a, string input, in Tensor b)
    {
        if (Overlap(a, b) && !(a.ByteOffset == b.ByteOffset && (a.RowStride == b.RowStride || a.D0 == 1)))
            throw Wrong($"{output}: {a} lies partly over {input} {b}; it may be that tensor or apart from it.");
    }

    /// <summary>Whether two tensors share a byte. Column views of one matrix are told apart; other strided views count from their first
    /// to their last byte.</summary>
    internal static bool Overlap(in Tensor a, in Tensor b)
    {
        if (!a.IsPresent || !b.IsPresent || !ReferenceEquals(a.Buffer, b.Buffer) || a.D0 == 0 || b.D0 == 0) return false;
        if (a.ByteOffset >= b.ByteOffset + b.SpanBytes || b.ByteOffset >= a.ByteOffset + a.SpanBytes) return false;
        long stride = a.DType.ByteLength(a.RowStride), rowA = a.DType.ByteLength(a.RowElements), rowB = b.DType.ByteLength(b.RowElements);
        if (stride != b.DType.ByteLength(b.RowStride) || rowA > stride || rowB > stride) return true;
        var column = ((b.ByteOffset - a.ByteOffset) % stride + stride) % stride; // where b's rows start within a's
        return column < rowA || column + rowB > stride;
    }

    private static BackendException Wrong(string message) => new(BackendErrorKind.Request, message);
}

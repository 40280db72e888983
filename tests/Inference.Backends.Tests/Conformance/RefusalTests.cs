using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>
/// Wrong calls: every rule of OperatorChecks broken once, and every number that addresses another out of its range. The plan says why, the
/// call throws, and both name operator and operand.
/// </summary>
public sealed class RefusalTests
{
    private const int T = 3, D = 8, S = 2, H = 2, K = 2, E = 4, I = 6;

    public static TheoryData<string> Backends() => [.. BackendCases.All.Keys];

    private static TestDevice Device(string backend) => new(BackendCases.All[backend]());

    private static void Refuses<TOp>(TestDevice d, TOp op, params string[] words) where TOp : struct, IOperator
    {
        var plan = d.Backend.Plan(op);
        Assert.Equal(OpSupport.Unsupported, plan.Support);
        AssertNames(words, plan.Variant);
        Throws(d, op, words);
    }

    private static void Throws<TOp>(TestDevice d, TOp op, params string[] words) where TOp : struct, IOperator
    {
        var plan = d.Backend.Plan(op);
        var workspace = plan.WorkspaceBytes == 0 ? default : d.Out(DType.U8, checked((int)plan.WorkspaceBytes));
        var e = Assert.Throws<BackendException>(() =>
        {
            d.Backend.Enqueue(op, workspace);
            d.Backend.Wait();
        });
        Assert.Equal(BackendErrorKind.Request, e.Kind);
        AssertNames(words, e.Message);
    }

    private static void AssertNames(string[] words, string message)
    {
        foreach (var word in words) Assert.Contains(word, message, StringComparison.Ordinal);
    }

    private static Tensor Zeros(TestDevice d, params ReadOnlySpan<int> shape)
    {
        var count = 1;
        foreach (var extent in shape) count *= extent;
        return d.InOut(new float[count], shape);
    }

    private static Tensor Ints(TestDevice d, int value, params ReadOnlySpan<int> shape)
    {
        var count = 1;
        foreach (var extent in shape) count *= extent;
        var values = new int[count];
        Array.Fill(values, value);
        return d.In(values, shape);
    }

    private static PreparedWeight Weight(TestDevice d, int rows, int columns) => d.Weight(rows, columns, new float[rows * columns]);

    private static PreparedWeight[] Experts(TestDevice d, int rows, int columns) =>
        [.. Enumerable.Range(0, E).Select(_ => Weight(d, rows, columns))];

    private static PagedRows Rows(TestDevice d, int width) => new(Zeros(d, 2, 1, 4, width), width, 0, d.In([0, 1], 1, 2), d.Vector(0));

    private static TokenLayout Tokens(TestDevice d) => new(d.Vector(0, 0, 0), d.Vector(1, 2, 3));

    private static Rope Rope(TestDevice d) => new(d.Vector(1f, 0.5f));

    [Theory, MemberData(nameof(Backends))]
    public void Dense_operators_refuse_wrong_operands(string backend)
    {
        using var d = Device(backend);
        Tensor x = Zeros(d, T, D), y = Zeros(d, T, S);
        var linear = new Linear(x, Weight(d, S, D), y);
        d.Run(linear);
        Refuses(d, linear with { Input = default }, "Linear.Input", "missing");
        Refuses(d, linear with { Weight = null! }, "Linear.Weight", "missing");
        Refuses(d, linear with { Weight = Weight(d, S, D + 1) }, "Linear.Weight", "[any, 8]", "test.weight", "[2, 9]");
        Refuses(d, linear with { Output = Zeros(d, T, S + 1) }, "Linear.Output", "F32[3, 2]", "F32[3, 3]");
        Refuses(d, linear with { Output = Zeros(d, T + 1, S) }, "Linear.Output", "F32[3, 2]", "F32[4, 2]");
        Refuses(d, linear with { Output = Zeros(d, T, S, 1) }, "Linear.Output", "F32[3, 2]", "F32[3, 2, 1]");
        Refuses(d, linear with { Output = Ints(d, 0, T, S) }, "Linear.Output", "F32[3, 2]", "I32[3, 2]");
        Refuses(d, linear with { Output = x.Columns(3, S) }, "Linear.Output", "lies over", "Input");
        Refuses(d, linear with { Weight = new ForeignWeight(S, D) }, "Linear.Weight", "'foreign'", nameof(ForeignWeight));
        Refuses(d, linear with { Input = Tensor.Create(new ForeignBuffer(1000), DType.F32, T, D) }, "Linear.Input", nameof(ForeignBuffer));

        var grouped = new GroupedLinear(Zeros(d, T, S, D), Weight(d, 2 * S, D), Zeros(d, T, S, 2));
        d.Run(grouped);
        Refuses(d, grouped with { Weight = Weight(d, 2 * S + 1, D) }, "GroupedLinear.Weight", "5 rows", "2 groups");
        Refuses(d, grouped with { Output = Zeros(d, T, S, 3) }, "GroupedLinear.Output", "F32[3, 2, 2]", "F32[3, 2, 3]");

        var embed = new Embed(d.Vector(0, 1, 2), Weight(d, 5, D), Zeros(d, T, S, D));
        d.Run(embed);
        Refuses(d, embed with { Ids = d.Vector(0f, 1, 2) }, "Embed.Ids", "I32[any]", "F32[3]");
        Refuses(d, embed with { Output = Zeros(d, T, S, D + 1) }, "Embed.Output", "F32[3, any, 8]");
        Throws(d, embed with { Ids = d.Vector(0, 5, 2) }, "Embed.Ids", "token 1", "5", "0..4");
        Throws(d, embed with { Ids = d.Vector(0, 1, -1) }, "Embed.Ids", "token 2", "-1");

        var gather = new GatherRows(x, d.Vector(2, 0), Zeros(d, 2, D));
        d.Run(gather);
        Refuses(d, gather with { Output = Zeros(d, 3, D) }, "GatherRows.Output", "F32[2, 8]", "F32[3, 8]");
        Refuses(d, gather with { Output = x.First(2) }, "GatherRows.Output", "lies over");
        Refuses(d, gather with { Input = d.Vector(1f, 2) }, "GatherRows.Input", "F32[2]");
        Throws(d, gather with { Rows = d.Vector(0, 3) }, "GatherRows.Rows", "entry 1", "3", "0..2");

        var norm = new RmsNorm(x, d.Vector(new float[D]), 1e-6f, x);
        d.Run(norm);
        Refuses(d, norm with { Weight = d.Vector(1f) }, "RmsNorm.Weight", "F32[8]", "F32[1]");
        Refuses(d, norm with { Epsilon = -1 }, "RmsNorm.Epsilon", "-1");
        Refuses(d, norm with { Epsilon = float.NaN }, "RmsNorm.Epsilon", "NaN");
        Refuses(d, norm with { Input = x.First(2), Output = x.Slice(1, 2) }, "RmsNorm.Output", "partly over", "Input");

        var swiglu = new SwiGlu(x, Zeros(d, T, D), 10, Zeros(d, T, D));
        d.Run(swiglu);
        Refuses(d, swiglu with { Up = y }, "SwiGlu.Up", "F32[3, 8]", "F32[3, 2]");
        Refuses(d, swiglu with { Limit = 0 }, "SwiGlu.Limit");
        Refuses(d, swiglu with { Limit = float.NaN }, "SwiGlu.Limit");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Row_operators_refuse_wrong_operands(string backend)
    {
        using var d = Device(backend);
        var rotate = new Rotate(Zeros(d, T, H, D), d.Vector(0, 1, 2), Rope(d), false);
        d.Run(rotate);
        Refuses(d, rotate with { Positions = d.Vector(0, 1) }, "Rotate.Positions", "I32[3]", "I32[2]");
        Refuses(d, rotate with { Rope = new Rope(d.Vector(new float[5])) }, "Rotate.Rope", "10 channels", "8");
        Refuses(d, rotate with { Rope = default }, "Rotate.Rope", "missing");
        Throws(d, rotate with { Positions = d.Vector(0, -4, 2) }, "Rotate.Positions", "token 1", "-4");

        var insert = new KvInsert(Zeros(d, T, D), d.Vector(new float[D]), 1e-6f, Tokens(d), Rope(d), RowRounding.None, Rows(d, D));
        d.Run(insert);
        Refuses(d, insert with { Rows = Rows(d, D + 1) }, "KvInsert.Rows", "8 elements", "F32[9]");
        Refuses(d, insert with { Rows = insert.Rows with { Format = D + 1 } }, "KvInsert.Rows", "8 elements", "F32[9]");
        Refuses(d, insert with { Rows = insert.Rows with { Format = RowFormat.BF16(D) } }, "KvInsert.Rows", "BF16[any, any, any, 8]", "F32[2, 1, 4, 8]");
        Refuses(d, insert with { Rows = insert.Rows with { Layer = 1 } }, "KvInsert.Rows", "layer 1");
        Refuses(d, insert with { Rows = insert.Rows with { FirstPage = d.Vector(0, 0) } }, "KvInsert.Rows", "I32[1]", "I32[2]");
        Refuses(d, insert with { Rounding = RowRounding.Fp8Block64 }, "KvInsert.Rounding", "64", "got 4 of 8");
        Refuses(d, insert with { Rounding = RowRounding.HadamardFp4Block32 }, "KvInsert.Rounding", "power of two", "8");
        Refuses(d, insert with { Rounding = (RowRounding)77 }, "KvInsert.Rounding", "77");
        Refuses(d, insert with { Norm = d.Vector(1f) }, "KvInsert.Norm", "F32[8]");
        Refuses(d, insert with { Tokens = insert.Tokens with { Position = d.Vector(1, 2) } }, "KvInsert.Tokens.Position", "I32[3]");

        var update = new CompressorUpdate(Zeros(d, T, 2 * D), Zeros(d, T, 2 * D), Zeros(d, 4, 2 * D), Rows(d, 4 * D), 4, true, Tokens(d),
            d.Vector(new float[D]), 1e-6f, Rope(d), RowRounding.None, Rows(d, D));
        d.Run(update);
        Refuses(d, update with { Ratio = 0 }, "CompressorUpdate.Ratio");
        Refuses(d, update with { Ape = Zeros(d, 3, 2 * D) }, "CompressorUpdate.Ape", "F32[4, 16]");
        Refuses(d, update with { Gates = Zeros(d, T, D) }, "CompressorUpdate.Gates", "F32[3, 16]");
        Refuses(d, update with { State = Rows(d, 2 * D) }, "CompressorUpdate.State", "32 elements");
        Refuses(d, update with { Overlap = false }, "CompressorUpdate.Norm", "F32[16]", "F32[8]");
        var ofTwo = update.Rows with { PageTable = d.In([0, 0], 2, 1), FirstPage = d.Vector(0, 0) };
        Refuses(d, update with { Rows = ofTwo }, "CompressorUpdate.Rows", "2 sequences");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Stored_rows_refuse_another_rounding_and_widths_without_whole_blocks(string backend)
    {
        using var d = Device(backend);
        PagedRows Stored(RowFormat format) =>
            new(d.Out(format.DType, 2, 1, 4, format.StoredElements), format, 0, d.In([0, 1], 1, 2), d.Vector(0));
        KvInsert Insert(RowFormat format, RowRounding rounding) => new(
            Zeros(d, T, format.Width), d.Vector(new float[format.Width]), 1e-6f, Tokens(d), Rope(d), rounding, Stored(format));
        foreach (var format in (RowFormat[])[RowFormat.BF16(D), RowFormat.Fp8(68, 4), RowFormat.Fp4(32), RowFormat.Fp8OneScale(32)])
        {
            d.Run(Insert(format, format.Rounding));
            Refuses(d, Insert(format, RowRounding.None), "KvInsert.Rows", format.ToString(), $"{format.Rounding}", "None");
        }
        Refuses(d, Insert(RowFormat.Fp8(D, 4), RowRounding.None), "KvInsert.Rows", "Fp8[4+4]", "64");
        Refuses(d, Insert(RowFormat.Fp8(68, 68), RowRounding.Fp8Row), "KvInsert.Rows", "Fp8[0+68]", "4 channels are rotated");
        Refuses(d, Insert(RowFormat.Fp4(D), RowRounding.None), "KvInsert.Rows", "Fp4[8]", "32");

        PagedRows narrow = Stored(RowFormat.BF16(D)), state = Stored(RowFormat.BF16(4 * D));
        Refuses(d, new Attention(Zeros(d, T, H, D), Tokens(d), Rows(d, D), 4, narrow, 1, default, d.Vector(0f, 0), 1, Zeros(d, T, H, D)),
            "Attention.Compressed", "BF16[8]", "F32[8]");
        Refuses(d, new CompressorUpdate(Zeros(d, T, 2 * D), Zeros(d, T, 2 * D), Zeros(d, 4, 2 * D), state, 4, true, Tokens(d),
            d.Vector(new float[D]), 1e-6f, Rope(d), RowRounding.None, Rows(d, D)), "CompressorUpdate.State", "F32", "BF16");
        Refuses(d, new IndexTopK(Zeros(d, T, H, D), Zeros(d, T, H), 1, Tokens(d), Rope(d), RowRounding.None, narrow, 1, d.Out(DType.I32, T, 2)),
            "IndexTopK.Rows", "BF16[8]", "None");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Rows_refuse_tokens_and_pages_that_do_not_exist(string backend)
    {
        using var d = Device(backend);
        var op = new KvInsert(Zeros(d, T, D), d.Vector(new float[D]), 1e-6f, Tokens(d), Rope(d), RowRounding.None, Rows(d, D));
        TokenLayout At(int[] sequences, int[] positions) => new(d.Vector(sequences), d.Vector(positions));
        Throws(d, op with { Tokens = At([0, 0, 1], [0, 1, 2]) }, "KvInsert.Tokens.Sequence", "token 2", "1");
        Throws(d, op with { Tokens = At([0, 0, 0], [0, 1, -1]) }, "KvInsert.Tokens.Position", "token 2", "-1");
        Throws(d, op with { Tokens = At([0, 0, 0], [0, 2, 2]) }, "KvInsert.Tokens.Position", "token 2", "after 2");
        Throws(d, op with { Tokens = At([0, 0, 0], [6, 7, 8]) }, "KvInsert.Rows", "row 8 of sequence 0", "page 2", "0 to 1");
        Throws(d, op with { Rows = op.Rows with { FirstPage = d.Vector(1) } }, "KvInsert.Rows", "row 1 of sequence 0", "page 0", "1 to 2");
        Throws(d, op with { Rows = op.Rows with { PageTable = d.In([2, 1], 1, 2) } }, "KvInsert.Rows", "page id 2", "2 pages");
        Throws(d, op with { Rows = op.Rows with { PageTable = d.In([-1, 1], 1, 2) } }, "KvInsert.Rows", "page id -1");
        var two = op.Rows with { PageTable = d.In([0, 1, 0, 1], 2, 2), FirstPage = d.Vector(0, 0) };
        Throws(d, op with { Rows = two, Tokens = At([0, 1, 0], [0, 1, 2]) }, "KvInsert.Tokens.Sequence", "sequence 0 comes again at token 2");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Attention_operators_refuse_wrong_operands(string backend)
    {
        using var d = Device(backend);
        var index = new IndexTopK(
            Zeros(d, T, H, D), Zeros(d, T, H), 1, Tokens(d), Rope(d), RowRounding.None, Rows(d, D), 1, d.Out(DType.I32, T, 2));
        d.Run(index);
        Refuses(d, index with { HeadWeights = Zeros(d, T, H + 1) }, "IndexTopK.HeadWeights", "F32[3, 2]");
        Refuses(d, index with { Selected = d.Out(DType.I32, T + 1, 2) }, "IndexTopK.Selected", "I32[3, any]", "I32[4, 2]");
        Refuses(d, index with { Ratio = 0 }, "IndexTopK.Ratio");
        Refuses(d, index with { Scale = float.NaN }, "IndexTopK.Scale");
        Refuses(d, index with { Rows = default }, "IndexTopK.Rows", "missing");

        var attention = new Attention(
            Zeros(d, T, H, D), Tokens(d), Rows(d, D), 4, Rows(d, D), 1, Ints(d, 0, T, 1), d.Vector(0f, 0), 1, Zeros(d, T, H, D));
        d.Run(attention);
        Refuses(d, attention with { WindowSize = 0 }, "Attention.WindowSize");
        Refuses(d, attention with { Ratio = 0 }, "Attention.Ratio");
        Refuses(d, attention with { Compressed = default }, "Attention.Selected", "Compressed is absent");
        Refuses(d, attention with { Sinks = d.Vector(0f) }, "Attention.Sinks", "F32[2]", "F32[1]");
        Refuses(d, attention with { Scale = float.PositiveInfinity }, "Attention.Scale");
        Refuses(d, attention with { Output = attention.Queries }, "Attention.Output", "lies over", "Queries");
        Refuses(d, attention with { Window = default }, "Attention.Window", "missing");
        Throws(d, attention with { Selected = Ints(d, 2, T, 1), Ratio = 2 }, "Attention.Selected", "token 0 at position 1", "row 2", "1");
        Throws(d, attention with { Selected = Ints(d, -2, T, 1) }, "Attention.Selected", "-2");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Expert_operators_refuse_wrong_operands(string backend)
    {
        using var d = Device(backend);
        var route = new Route(
            Zeros(d, T, E), RouterScoring.Sigmoid, d.Vector(new float[E]), default, default, 1, d.Out(DType.I32, T, K), Zeros(d, T, K));
        d.Run(route);
        Refuses(d, route with { Scoring = (RouterScoring)9 }, "Route.Scoring", "9");
        Refuses(d, route with { ExpertWeights = Zeros(d, T, K + 1) }, "Route.ExpertWeights", "F32[3, 2]");
        Refuses(d, route with { ExpertIds = d.Out(DType.I32, T, E + 1), ExpertWeights = Zeros(d, T, E + 1) }, "Route.ExpertIds", "5 experts", "4");
        Refuses(d, route with { Bias = d.Vector(1f) }, "Route.Bias", "F32[4]");
        Refuses(d, route with { HashTable = Ints(d, 0, 9, K) }, "Route.TokenIds", "missing");
        Refuses(d, route with { HashTable = Ints(d, 0, 9, K + 1), TokenIds = d.Vector(0, 1, 2) }, "Route.HashTable", "I32[any, 2]");
        Throws(d, route with { HashTable = Ints(d, 0, 2, K), TokenIds = d.Vector(0, 1, 2) }, "Route.TokenIds", "token 2", "0..1");
        Throws(d, route with { HashTable = Ints(d, E, 9, K), TokenIds = d.Vector(0, 1, 2) }, "Route.HashTable", "4", "0..3");

        var up = new ExpertGateUp(Zeros(d, T, D), Ints(d, 1, T, K), Zeros(d, T, K), Experts(d, I, D), Experts(d, I, D), 10, Zeros(d, T, K, I));
        d.Run(up);
        Refuses(d, up with { Gate = null! }, "ExpertGateUp.Gate", "missing");
        Refuses(d, up with { Up = [.. up.Up[..3], Weight(d, I + 1, D)] }, "ExpertGateUp.Up", "[6, 8]", "[7, 8]");
        Refuses(d, up with { Up = up.Up[..3] }, "ExpertGateUp.Up", "4 experts", "3");
        Refuses(d, up with { Limit = -1 }, "ExpertGateUp.Limit");
        Refuses(d, up with { ExpertWeights = Zeros(d, T, 1) }, "ExpertGateUp.ExpertWeights", "F32[3, 2]");
        Throws(d, up with { ExpertIds = Ints(d, E, T, K) }, "ExpertGateUp.ExpertIds", "slot 0 of token 0", "4", "0..3");

        var down = new ExpertDownCombine(Zeros(d, T, K, I), Ints(d, 1, T, K), Experts(d, D, I), default, Zeros(d, T, D));
        d.Run(down);
        Refuses(d, down with { Down = [] }, "ExpertDownCombine.Down", "missing");
        Refuses(d, down with { Shared = Zeros(d, T, D + 1) }, "ExpertDownCombine.Shared", "F32[3, 8]");
        Refuses(d, down with { Output = Zeros(d, T, D + 1) }, "ExpertDownCombine.Down", "[9, 6]");
        Throws(d, down with { ExpertIds = Ints(d, -1, T, K) }, "ExpertDownCombine.ExpertIds", "slot 0 of token 0", "-1");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Hyper_connections_refuse_wrong_operands(string backend)
    {
        using var d = Device(backend);
        const int C = (2 + S) * S;
        var pre = new HyperConnectionPre(Zeros(d, T, S, D), Weight(d, C, S * D), d.Vector(new float[C]), d.Vector(1f, 1, 1), 1e-6f, 1e-6f, 20,
            Zeros(d, T, D), Zeros(d, T, S), Zeros(d, T, S, S));
        d.Run(pre);
        Refuses(d, pre with { Mix = Weight(d, C + 1, S * D) }, "HyperConnectionPre.Mix", "[8, 16]", "[9, 16]");
        Refuses(d, pre with { Base = d.Vector(1f) }, "HyperConnectionPre.Base", "F32[8]");
        Refuses(d, pre with { Scale = d.Vector(1f) }, "HyperConnectionPre.Scale", "F32[3]");
        Refuses(d, pre with { Iterations = 0 }, "HyperConnectionPre.Iterations");
        Refuses(d, pre with { Combine = Zeros(d, T, S, S + 1) }, "HyperConnectionPre.Combine", "F32[3, 2, 2]");
        Refuses(d, pre with { Output = pre.Streams.As(T * S, D).First(T) }, "HyperConnectionPre.Output", "lies over", "Streams");

        var post = new HyperConnectionPost(pre.Streams, pre.Output, pre.Post, pre.Combine, pre.Streams);
        d.Run(post);
        Refuses(d, post with { Sublayer = Zeros(d, T, D + 1) }, "HyperConnectionPost.Sublayer", "F32[3, 8]");
        Refuses(d, post with { Post = Zeros(d, T, 1) }, "HyperConnectionPost.Post", "F32[3, 2]");

        var head = new HyperConnectionHead(pre.Streams, Weight(d, S, S * D), d.Vector(0f, 0), d.Vector(1f), 1e-6f, 1e-6f, pre.Output);
        d.Run(head);
        Refuses(d, head with { Mix = Weight(d, S, D) }, "HyperConnectionHead.Mix", "[2, 16]", "[2, 8]");
        Refuses(d, head with { Base = d.Vector(0f) }, "HyperConnectionHead.Base", "F32[2]");
    }

    [Theory, MemberData(nameof(Backends))]
    public void Weights_whose_parts_do_not_belong_together_are_refused(string backend)
    {
        using var d = Device(backend);
        using var data = new HostBuffer(1 << 16);
        void Bad(WeightData weight, params string[] words)
        {
            var e = Assert.Throws<BackendException>(() => d.Backend.PrepareWeight(weight));
            Assert.Equal(BackendErrorKind.Request, e.Kind);
            AssertNames(["'w'", .. words], e.Message);
        }
        nint at;
        unsafe { at = (nint)data.Data; }
        Bad(new WeightData("w", WeightScheme.F32, 4, 8, at, 127), "128 bytes", "127");
        Bad(new WeightData("w", WeightScheme.F32, 4, 8, 0, 128), "data", "missing");
        Bad(new WeightData("w", WeightScheme.F32, 0, 8, at, 0), "[0, 8]");
        Bad(new WeightData("w", WeightScheme.F32, 4, 8, at, 128, at, 4), "scales", "none");
        Bad(new WeightData("w", DenseCases.Fp8, 129, 200, at, 129 * 200, at, 3), "4 bytes", "3");
        Bad(new WeightData("w", DenseCases.Fp8, 129, 200, at, 129 * 200), "scales", "missing");
        Bad(new WeightData("w", DenseCases.Fp4, 2, 33, at, 33, at, 4), "two columns", "33");
        Bad(new WeightData("w", DenseCases.Fp8 with { TileRows = 0 }, 2, 4, at, 8, at, 1), "tiles", "0x128");
        Bad(new WeightData("w", DenseCases.Fp8 with { Scale = DType.I32 }, 2, 4, at, 8, at, 4), "I32", "scale");
        Bad(new WeightData("w", new WeightScheme(DType.I64), 2, 4, at, 64), "I64");
        Bad(new WeightData("w", WeightScheme.F32, int.MaxValue, int.MaxValue, at, 1 << 16), "bytes"); // no overflow, just the wrong size
    }

    [Theory, MemberData(nameof(Backends))]
    public void Memory_that_cannot_be_had_is_a_capacity_error_with_its_purpose(string backend)
    {
        using var d = Device(backend);
        var e = Assert.Throws<BackendException>(() => d.Backend.Allocate(long.MaxValue / 2, "the KV cache"));
        Assert.Equal(BackendErrorKind.Capacity, e.Kind);
        AssertNames(["the KV cache", $"{long.MaxValue / 2}"], e.Message);
        Assert.Equal(BackendErrorKind.Request, Assert.Throws<BackendException>(() => d.Backend.Allocate(-1, "nothing")).Kind);
    }

    [Theory, MemberData(nameof(Backends))]
    public void Copies_of_another_size_or_with_gaps_are_refused(string backend)
    {
        using var d = Device(backend);
        var matrix = Zeros(d, 3, 4);
        var bytes = new byte[48];
        void Bad(Action copy, params string[] words)
        {
            var e = Assert.Throws<BackendException>(copy);
            Assert.Equal(BackendErrorKind.Request, e.Kind);
            AssertNames(words, e.Message);
        }
        Bad(() => d.Backend.Upload(bytes.AsSpan(0, 44), matrix), "Upload", "F32[3, 4]", "48", "44");
        Bad(() => d.Backend.Download(matrix.Columns(1, 2), bytes.AsSpan(0, 24)), "Download", "contiguous");
        Bad(() => d.Backend.Download(default, bytes), "Download", "absent");
    }

    [Fact]
    public void Poison_shows_memory_that_nobody_wrote()
    {
        using var d = new TestDevice(new ReferenceBackend(poison: true));
        using var buffer = d.Backend.Allocate(16, "test");
        var values = new byte[16];
        d.Backend.Download(Tensor.Create(buffer, DType.F32, 4), values);
        Assert.All(values, b => Assert.Equal(0xFF, b));
    }

    private sealed class ForeignWeight(int rows, int columns) : PreparedWeight("foreign", WeightScheme.F32, rows, columns);

    private sealed class ForeignBuffer(long bytes) : DeviceBuffer(bytes)
    {
        protected override void Dispose(bool disposing) { }
    }
}

using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>
/// Tiny inputs with results that can be worked out on paper, one or more for each operator, and the check values and properties that spec
/// deepseek-v4 names. They fix what an operator means; the conformance cases cover its sizes and corners.
/// </summary>
public sealed class HandComputedTests
{
    public static TheoryData<string> Backends() => [.. BackendCases.All.Keys];

    private static TestDevice Device(string backend) => new(BackendCases.All[backend]());

    private static void AssertClose(ReadOnlySpan<double> expected, float[] actual, double tolerance = 1e-6)
    {
        Assert.Equal(expected.Length, actual.Length);
        for (var i = 0; i < actual.Length; i++)
        {
            var bound = tolerance * Math.Max(1, Math.Abs(expected[i]));
            Assert.True(Math.Abs(expected[i] - actual[i]) <= bound, $"[{i}]: {actual[i]:R}, expected {expected[i]:R}");
        }
    }

    /// <summary>Rows of one sequence on pages of two rows.</summary>
    private static PagedRows Rows(TestDevice d, int width, params float[] rows)
    {
        var pages = (rows.Length / width + 1) / 2;
        Array.Resize(ref rows, pages * 2 * width);
        var pool = d.InOut(rows, pages, 1, 2, width);
        return new PagedRows(pool, width, 0, d.In(Enumerable.Range(0, pages).ToArray(), 1, pages), d.Vector(0));
    }

    private static TokenLayout Tokens(TestDevice d, params int[] positions) => new(d.In(new int[positions.Length], positions.Length), d.Vector(positions));

    /// <summary>A rotation of two channels that does not rotate.</summary>
    private static Rope NoTurn(TestDevice d) => new(d.Vector(0f));

    [Theory, MemberData(nameof(Backends))]
    public void Embed_copies_the_row_of_the_id_into_every_stream(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 2, 2, 2);
        d.Run(new Embed(d.Vector(2, 0), d.Weight(3, 2, 1, 2, 3, 4, 5, 6), output));
        Assert.Equal([5, 6, 5, 6, 1, 2, 1, 2], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void GatherRows_repeats_and_reorders(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 3, 2);
        d.Run(new GatherRows(d.In([1f, 2, 3, 4], 2, 2), d.Vector(1, 0, 1), output));
        Assert.Equal([3, 4, 1, 2, 3, 4], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void RmsNorm_divides_by_the_root_of_the_mean_square(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 4);
        d.Run(new RmsNorm(d.In([2f, -2, 2, 2], 1, 4), d.Vector(1f, 2, 3, 0.5f), 0, output)); // root mean square 2
        AssertClose([1, -2, 3, 0.5], d.Read(output));
        d.Run(new RmsNorm(d.In([1f, -1, 1, 1], 1, 4), default, 3, output)); // 1 / sqrt(1 + 3)
        AssertClose([0.5, -0.5, 0.5, 0.5], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Linear_multiplies_rows_of_the_weight_by_the_input(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 2, 3);
        d.Run(new Linear(d.In([1f, 2, 10, 20], 2, 2), d.Weight(3, 2, 1, 0, 0, 1, 3, -1), output));
        Assert.Equal([1, 2, 1, 10, 20, 10], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Linear_reads_the_low_nibble_of_fp4_first_and_a_scale_per_32(string backend)
    {
        using var d = Device(backend);
        var data = new byte[32]; // one row of 64 columns
        data[0] = 0x21; // 0.5, then 1
        data[16] = 0xF7; // columns 32 and 33: 6, then -6
        using var stored = new StoredWeight(DenseCases.Fp4, 1, 64, data, [127 + 1, 127 - 1]); // scales 2 and 1/2
        var input = new float[64];
        (input[0], input[1], input[32], input[33]) = (1, 10, 100, 1000);
        var output = d.Out(DType.F32, 1, 1);
        d.Run(new Linear(d.In(input, 1, 64), d.Weight(stored), output));
        Assert.Equal([1 + 20 + 300 - 3000], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Linear_takes_the_scale_of_the_tile_for_fp8_also_at_the_cut_edge(string backend)
    {
        using var d = Device(backend);
        var data = new byte[3 * 130]; // tiles of 128 x 128: two of columns, one of rows
        (data[0], data[129], data[2 * 130 + 128]) = (0x38, 0x40, 0xB8); // 1 at (0, 0), 2 at (0, 129), -1 at (2, 128)
        using var stored = new StoredWeight(DenseCases.Fp8, 3, 130, data, [127 + 2, 127 - 3]); // scales 4 and 1/8
        var input = new float[130];
        (input[0], input[128], input[129]) = (1, 16, 32);
        var output = d.Out(DType.F32, 1, 3);
        d.Run(new Linear(d.In(input, 1, 130), d.Weight(stored), output));
        Assert.Equal([4 + 8, 0, -2], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void GroupedLinear_gives_each_group_its_own_rows_of_the_weight(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 2, 2);
        var weight = d.Weight(4, 2, 1, 0, 0, 1, /* second group */ 1, 1, 1, -1);
        d.Run(new GroupedLinear(d.In([3f, 4, 30, 40], 1, 2, 2), weight, output));
        Assert.Equal([3, 4, 70, -10], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void SwiGlu_clamps_the_gate_above_only_and_the_up_side_on_both_sides(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 4);
        d.Run(new SwiGlu(d.In([0f, 100, 100, -3], 1, 4), d.In([5f, 100, -100, 1], 1, 4), 2, output));
        var silu2 = 2 / (1 + Math.Exp(-2));
        AssertClose([0, 2 * silu2, -2 * silu2, -3 / (1 + Math.Exp(3))], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Rotate_turns_neighbouring_channels_at_the_end_of_the_vector(string backend)
    {
        using var d = Device(backend);
        var rope = new Rope(d.Vector(MathF.PI / 2, MathF.PI)); // a quarter turn and a half turn per position
        var vectors = d.InOut([7f, 1, 2, 3, 4], 1, 1, 5);
        d.Run(new Rotate(vectors, d.Vector(1), rope, Inverse: false));
        AssertClose([7, -2, 1, -3, -4], d.Read(vectors));
        d.Run(new Rotate(vectors, d.Vector(1), rope, Inverse: true));
        AssertClose([7, 1, 2, 3, 4], d.Read(vectors));
        d.Run(new Rotate(vectors, d.Vector(3), rope, Inverse: false)); // three quarter turns, three half turns
        AssertClose([7, 2, -1, -3, -4], d.Read(vectors));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Rotate_uses_the_f32_product_of_position_and_frequency(string backend)
    {
        using var d = Device(backend);
        float frequency = 0.687656045f;
        const int position = 1_000_003;
        var vectors = d.InOut([1f, 0], 1, 1, 2);
        d.Run(new Rotate(vectors, d.Vector(position), new Rope(d.Vector(frequency)), Inverse: false));
        float angle = position * frequency;
        Assert.True(Math.Abs(angle - position * (double)frequency) > 1e-3, "the test needs a product that F32 rounds visibly");
        AssertClose([Math.Cos(angle), Math.Sin(angle)], d.Read(vectors));
    }

    [Theory, MemberData(nameof(Backends))]
    public void KvInsert_stores_the_normed_row_at_its_position_with_the_fp8_check_values_of_the_spec(string backend)
    {
        using var d = Device(backend);
        var input = new float[66];
        (input[0], input[1], input[2], input[3], input[65]) = (3, 0.1f, 0.01f, 1e-5f, 0.1f);
        var rms = Math.Sqrt(input.Sum(x => (double)x * x) / 66);
        var norm = new float[66];
        Array.Fill(norm, (float)rms); // undoes the division
        var rows = Rows(d, 66, new float[3 * 66]);
        d.Run(new KvInsert(d.In(input, 1, 66), d.Vector(norm), 0, Tokens(d, 1), NoTurn(d), RowRounding.Fp8Block64, rows));
        var expected = new double[4 * 66];
        (expected[66], expected[67], expected[68], expected[69]) = (3, 0.1015625, 0.009765625, 1.52587890625e-5);
        expected[66 + 65] = 0.1; // a rotary channel is not rounded
        var actual = d.Read(rows.Pool);
        AssertClose(expected, actual);
        Assert.Equal([3, 0.1015625f, 0.009765625f, 1.52587890625e-5f], actual[66..70]);
    }

    [Theory, MemberData(nameof(Backends))]
    public void KvInsert_rounds_index_rows_to_fp4_after_the_hadamard_transform(string backend)
    {
        using var d = Device(backend);
        // A vector of length sqrt(32) norms to itself, and this one transforms to ones: 4 with the scale 1/4 (1/6, up to a power of two).
        var input = new float[32];
        input[0] = MathF.Sqrt(32);
        var norm = new float[32];
        Array.Fill(norm, 1);
        var rows = Rows(d, 32, new float[2 * 32]);
        d.Run(new KvInsert(d.In(input, 1, 32), d.Vector(norm), 0, Tokens(d, 0), NoTurn(d), RowRounding.HadamardFp4Block32, rows));
        Assert.Equal(Enumerable.Repeat(1f, 32), d.Read(rows.Pool)[..32]);
    }

    [Theory, MemberData(nameof(Backends))]
    public void CompressorUpdate_pools_the_first_half_of_the_previous_block_and_the_second_half_of_its_own(string backend)
    {
        using var d = Device(backend);
        // Ratio 2, width 2: channels 0 and 1 count in the next block, channels 2 and 3 in the token's own.
        var values = d.In([3f, 0, 1, 0, 3, 0, 0, 1, /* block 1 */ 50, 50, 0, 4, 50, 50, 0, 4], 4, 4);
        var ln3 = MathF.Log(3);
        var gates = d.In([0f, 0, 0, 0, 0, 0, ln3, 0, 0, 0, 0, 0, 0, 0, 0, 0], 4, 4);
        var ape = d.In([0f, 0, 0, 0, 0, 0, 0, ln3], 2, 4); // the other channel of token 1 gets its gate from its place in the block
        PagedRows state = Rows(d, 8, new float[4 * 8]), rows = Rows(d, 2, new float[2 * 2]);
        d.Run(new CompressorUpdate(values, gates, ape, state, 2, true, Tokens(d, 0, 1, 2, 3), d.Vector(1f, 1), 0, NoTurn(d), RowRounding.None, rows));
        // Row 0: tokens 0 and 1 with weights 1/4 and 3/4, no block before: (1/4, 3/4), root mean square sqrt(5/16).
        // Row 1: channel 0 is (3 + 3 + 0 + 0) / 4; channel 1 is (0 + 0 + 4 + 3 * 4) / (1 + 1 + 1 + 3); root mean square of (3/2, 8/3).
        double rms0 = Math.Sqrt(5 / 16.0), rms1 = Math.Sqrt((2.25 + 64 / 9.0) / 2);
        AssertClose([0.25 / rms0, 0.75 / rms0, 1.5 / rms1, 8 / 3.0 / rms1], d.Read(rows.Pool));
    }

    [Theory, MemberData(nameof(Backends))]
    public void CompressorUpdate_rotates_a_row_by_the_position_of_its_first_token(string backend)
    {
        using var d = Device(backend);
        var values = d.In([1f, 1, 1, 1, 1, 1, 1, 1], 4, 2);
        PagedRows state = Rows(d, 4, new float[4 * 4]), rows = Rows(d, 2, new float[2 * 2]);
        var rope = new Rope(d.Vector(MathF.PI / 4)); // an eighth turn per position: block 1 begins at position 2
        var ape = d.In(new float[4], 2, 2);
        Tensor gates = d.In(new float[8], 4, 2), norm = d.Vector(1f, 1);
        d.Run(new CompressorUpdate(values, gates, ape, state, 2, false, Tokens(d, 0, 1, 2, 3), norm, 0, rope, RowRounding.None, rows));
        AssertClose([1, 1, -1, 1], d.Read(rows.Pool));
    }

    [Theory, MemberData(nameof(Backends))]
    public void IndexTopK_takes_the_largest_visible_scores_and_of_equal_ones_the_smaller_index(string backend)
    {
        using var d = Device(backend);
        var rows = Rows(d, 2, 2, 0, 5, 0, -1, 0, 5, 0, 9, 0);
        var queries = d.InOut([1f, 0, 1, 0, 1, 0, 1, 0], 4, 1, 2);
        var selected = d.Out(DType.I32, 4, 2);
        // Ratio 2: positions 0, 3, 7, 9 see 0, 2, 4 and 5 rows.
        d.Run(new IndexTopK(queries, d.In([1f, 1, 1, 1], 4, 1), 1, Tokens(d, 0, 3, 7, 9), NoTurn(d), RowRounding.None, rows, 2, selected));
        Assert.Equal([-1, -1, 0, 1, 1, 3, 1, 4], d.ReadI32(selected));
    }

    [Theory, MemberData(nameof(Backends))]
    public void IndexTopK_cuts_each_head_at_zero_before_it_weighs_them(string backend)
    {
        using var d = Device(backend);
        // Heads look along +x and -x with weights 1 and -1. Row 0 (x = 3): 3 - 0. Row 1 (x = -4): 0 - 4. Row 2 (x = 0): 0.
        var rows = Rows(d, 2, 3, 0, -4, 0, 0, 0);
        var selected = d.Out(DType.I32, 1, 2);
        d.Run(new IndexTopK(d.InOut([1f, 0, -1, 0], 1, 2, 2), d.In([1f, -1], 1, 2), 1, Tokens(d, 2), NoTurn(d), RowRounding.None, rows, 1, selected));
        Assert.Equal([0, 2], d.ReadI32(selected));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Attention_with_equal_scores_averages_its_rows_and_the_sink_takes_its_share(string backend)
    {
        using var d = Device(backend);
        // A query orthogonal to everything: scores 0, 0. Sink 0 weighs as much as a row: (r0 + r1) / 3. No sink: (r0 + r1) / 2.
        var output = d.Out(DType.F32, 1, 2, 2);
        var queries = d.In(new float[4], 1, 2, 2);
        var sinks = d.Vector(0f, float.NegativeInfinity);
        d.Run(new Attention(queries, Tokens(d, 1), Rows(d, 2, 3, 6, 9, 0), 8, default, 0, default, sinks, 1, output));
        AssertClose([4, 2, 6, 3], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Attention_sees_the_window_and_the_visible_or_selected_compressed_rows(string backend)
    {
        using var d = Device(backend);
        // Zero query: the output is the plain mean of the rows seen. Position 5, window 2: rows 4 and 5 (x = 5, 6).
        var window = Rows(d, 1, 1, 2, 3, 4, 5, 6, 700);
        var compressed = Rows(d, 1, 10, 20, 40, 8000);
        var none = d.Vector(float.NegativeInfinity);
        var query = d.In([0f], 1, 1, 1);
        float Mean(PagedRows rows, Tensor selected)
        {
            var output = d.Out(DType.F32, 1, 1, 1);
            d.Run(new Attention(query, Tokens(d, 5), window, 2, rows, 2, selected, none, 1, output));
            return d.Read(output)[0];
        }
        AssertClose([(5 + 6) / 2.0], [Mean(default, default)]);
        AssertClose([(5 + 6 + 10 + 20 + 40) / 5.0], [Mean(compressed, default)]); // rows 0..2 of 6 div 2, though the window covers the last
        AssertClose([(5 + 6 + 10 + 40) / 4.0], [Mean(compressed, d.In([0, 2, -1, -1], 1, 4))]);
        AssertClose([(5 + 6) / 2.0], [Mean(compressed, d.In([-1, -1], 1, 2))]);
    }

    [Theory, MemberData(nameof(Backends))]
    public void Attention_weighs_rows_by_the_exponential_of_their_scaled_scores(string backend)
    {
        using var d = Device(backend);
        // Scores 2 * ln 3 / 2 and 0: weights 3 and 1, and 4 for the sink ln 4: (3 * (ln 3, 1) + (0, 5)) / 8.
        double ln3 = Math.Log(3);
        var output = d.Out(DType.F32, 1, 1, 2);
        var rows = Rows(d, 2, (float)ln3, 1, 0, 5);
        d.Run(new Attention(d.In([2f, 0], 1, 1, 2), Tokens(d, 1), rows, 2, default, 0, default, d.Vector(MathF.Log(4)), 0.5f, output));
        AssertClose([3 * ln3 / 8, 1], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void A_huge_sink_drives_the_output_of_attention_to_zero(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 1, 2);
        d.Run(new Attention(d.In([2f, 0], 1, 1, 2), Tokens(d, 1), Rows(d, 2, 1, 2, 3, 4), 2, default, 0, default, d.Vector(1e30f), 0.5f, output));
        Assert.Equal([0, 0], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Route_lets_the_bias_choose_but_not_weigh(string backend)
    {
        using var d = Device(backend);
        Tensor ids = d.Out(DType.I32, 1, 2), weights = d.Out(DType.F32, 1, 2);
        // Sigmoid scores of 0, ln 3, -ln 3, 0: 1/2, 3/4, 1/4, 1/2. The bias lifts expert 2 over all, and expert 3 ties with expert 0.
        var logits = d.In([0f, MathF.Log(3), -MathF.Log(3), 0], 1, 4);
        d.Run(new Route(logits, RouterScoring.Sigmoid, d.Vector(0f, 0, 1, 0), default, default, 2, ids, weights));
        Assert.Equal([2, 1], d.ReadI32(ids));
        AssertClose([0.5, 1.5], d.Read(weights)); // 1/4 and 3/4 of their sum 1, times 2
        d.Run(new Route(logits, RouterScoring.Sigmoid, d.Vector(0f, -9, 0, 0), default, default, 1, ids, weights));
        Assert.Equal([0, 3], d.ReadI32(ids));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Route_scores_by_the_root_of_softplus_and_by_softmax(string backend)
    {
        using var d = Device(backend);
        Tensor ids = d.Out(DType.I32, 1, 2), weights = d.Out(DType.F32, 1, 2);
        // softplus(ln(e^4 - 1)) = 4 and softplus(ln(e - 1)) = 1: roots 2 and 1.
        var logits = d.In([(float)Math.Log(Math.E - 1), -50, (float)Math.Log(Math.Exp(4) - 1)], 1, 3);
        d.Run(new Route(logits, RouterScoring.SqrtSoftplus, default, default, default, 1, ids, weights));
        Assert.Equal([2, 0], d.ReadI32(ids));
        AssertClose([2 / 3.0, 1 / 3.0], d.Read(weights));
        d.Run(new Route(d.In([0f, MathF.Log(4), -50], 1, 3), RouterScoring.Softmax, default, default, default, 1, ids, weights));
        Assert.Equal([1, 0], d.ReadI32(ids));
        AssertClose([0.8, 0.2], d.Read(weights));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Route_takes_the_experts_of_a_hash_layer_from_the_token_id(string backend)
    {
        using var d = Device(backend);
        Tensor ids = d.Out(DType.I32, 2, 2), weights = d.Out(DType.F32, 2, 2);
        var table = d.In([0, 1, 2, 0, 1, 2], 3, 2);
        var logits = d.In([0f, MathF.Log(3), 9, 0, 0, 0], 2, 3); // sigmoid scores 1/2, 3/4 of the chosen; then 1/2 each
        d.Run(new Route(logits, RouterScoring.Sigmoid, default, table, d.Vector(0, 2), 1, ids, weights));
        Assert.Equal([0, 1, 1, 2], d.ReadI32(ids));
        AssertClose([0.4, 0.6, 0.5, 0.5], d.Read(weights));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Broken_numbers_still_choose_different_experts_and_rows_that_exist(string backend)
    {
        using var d = Device(backend);
        Tensor ids = d.Out(DType.I32, 2, 2), weights = d.Out(DType.F32, 2, 2);
        var logits = d.In([float.NaN, 1, float.NaN, 2, float.NaN, float.NaN, float.NaN, float.NaN], 2, 4);
        d.Run(new Route(logits, RouterScoring.Sigmoid, default, default, default, 1, ids, weights));
        Assert.Equal([3, 1, 0, 1], d.ReadI32(ids)); // a NaN comes last

        var rows = Rows(d, 2, float.NaN, 0, 5, 0, float.NaN, 0, float.PositiveInfinity, 1);
        var selected = d.Out(DType.I32, 1, 3);
        d.Run(new IndexTopK(d.InOut([1f, float.NaN], 1, 1, 2), d.In([1f], 1, 1), 1, Tokens(d, 3), NoTurn(d), RowRounding.None, rows, 1, selected));
        var chosen = d.ReadI32(selected);
        Assert.Equal(chosen.Distinct().Order(), chosen);
        Assert.All(chosen, b => Assert.InRange(b, 0, 3));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Experts_are_gated_weighed_and_added_to_the_shared_output(string backend)
    {
        using var d = Device(backend);
        // Two experts of one inner channel: gate 1 * x0, up 1 * x1; expert 1 doubles both.
        PreparedWeight[] gate = [d.Weight(1, 2, 1, 0), d.Weight(1, 2, 2, 0)], up = [d.Weight(1, 2, 0, 1), d.Weight(1, 2, 0, 2)];
        PreparedWeight[] down = [d.Weight(2, 1, 1, -1), d.Weight(2, 1, 10, 0)];
        var ids = d.In([1, 0], 1, 2);
        var hidden = d.Out(DType.F32, 1, 2, 1);
        d.Run(new ExpertGateUp(d.In([1f, 3], 1, 2), ids, d.In([0.25f, 0.5f], 1, 2), gate, up, float.PositiveInfinity, hidden));
        double silu1 = 1 / (1 + Math.Exp(-1)), silu2 = 2 / (1 + Math.Exp(-2)), slot0 = 0.25 * silu2 * 6, slot1 = 0.5 * silu1 * 3;
        AssertClose([slot0, slot1], d.Read(hidden));
        var output = d.Out(DType.F32, 1, 2);
        d.Run(new ExpertDownCombine(hidden, ids, down, d.In([100f, 200], 1, 2), output));
        AssertClose([100 + 10 * slot0 + slot1, 200 - slot1], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void HyperConnectionPost_contracts_over_the_source_stream(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 2, 1);
        // Combine moves stream 0 to stream 1 and drops stream 1; post adds the sublayer to stream 0 only.
        d.Run(new HyperConnectionPost(d.In([5f, 7], 1, 2, 1), d.In([3f], 1, 1), d.In([2f, 0], 1, 2), d.In([0f, 1, 0, 0], 1, 2, 2), output));
        Assert.Equal([6, 5], d.Read(output));
    }

    [Theory, MemberData(nameof(Backends))]
    public void HyperConnectionPre_is_a_sigmoid_plus_epsilon_for_pre_and_twice_a_sigmoid_for_post(string backend)
    {
        using var d = Device(backend);
        // Two streams of one channel, 3 and 4: rho = 1 / sqrt(12.5). Row 0 of the mix picks stream 0: m = 3 rho; the others are zero.
        var mix = new float[8 * 2];
        mix[0] = 1;
        var bias = new float[8];
        bias[1] = MathF.Log(3); // pre of stream 1: 3/4
        bias[2] = -MathF.Log(3); // post of stream 0: 2 * 1/4
        Tensor output = d.Out(DType.F32, 1, 1), post = d.Out(DType.F32, 1, 2), combine = d.Out(DType.F32, 1, 2, 2);
        Tensor streams = d.In([3f, 4], 1, 2, 1), scale = d.Vector(2f, 1, 1);
        d.Run(new HyperConnectionPre(streams, d.Weight(8, 2, mix), d.Vector(bias), scale, 0, 0.125f, 1, output, post, combine));
        var pre0 = 1 / (1 + Math.Exp(-2 * 3 / Math.Sqrt(12.5))) + 0.125;
        AssertClose([3 * pre0 + 4 * (0.75 + 0.125)], d.Read(output));
        AssertClose([0.5, 1], d.Read(post));
        // One iteration: softmax of equal logits plus epsilon (5/8 each), then columns: 5/8 / (10/8 + 1/8).
        AssertClose([5 / 11.0, 5 / 11.0, 5 / 11.0, 5 / 11.0], d.Read(combine));
    }

    [Theory, MemberData(nameof(Backends))]
    public void HyperConnectionPre_starts_sinkhorn_with_rows_and_ends_with_columns(string backend)
    {
        using var d = Device(backend);
        // Logits ln 1, ln 3 in row 0 and ln 1, ln 1 in row 1. Softmax of rows: (1/4, 3/4), (1/2, 1/2). Columns: (1/3, 3/5), (2/3, 2/5).
        // Second round, rows: (5/14, 9/14), (5/8, 3/8); columns: sums 55/56 and 57/56.
        var bias = new float[8];
        bias[5] = MathF.Log(3);
        var mix = d.Weight(8, 2, new float[16]);
        Tensor output = d.Out(DType.F32, 1, 1), post = d.Out(DType.F32, 1, 2), combine = d.Out(DType.F32, 1, 2, 2);
        d.Run(new HyperConnectionPre(d.In([3f, 4], 1, 2, 1), mix, d.Vector(bias), d.Vector(1f, 1, 1), 0, 0, 2, output, post, combine));
        AssertClose([20 / 55.0, 36 / 57.0, 35 / 55.0, 21 / 57.0], d.Read(combine));
    }

    [Theory, MemberData(nameof(Backends))]
    public void Sinkhorn_of_twenty_iterations_has_rows_and_columns_of_sum_one(string backend)
    {
        using var d = Device(backend);
        var random = new Random(5);
        var mix = d.Weight(24, 4 * 8, Draws.Floats(random, 24 * 32, 0.1));
        Tensor output = d.Out(DType.F32, 3, 8), post = d.Out(DType.F32, 3, 4), combine = d.Out(DType.F32, 3, 4, 4);
        var streams = d.In(Draws.Floats(random, 3 * 32), 3, 4, 8);
        Tensor bias = d.Vector(Draws.Floats(random, 24)), scale = d.Vector(1f, 1, 1);
        d.Run(new HyperConnectionPre(streams, mix, bias, scale, 1e-6f, 1e-6f, 20, output, post, combine));
        var c = d.Read(combine);
        for (var line = 0; line < 12; line++)
        {
            int t = line / 4, i = line % 4;
            double column = 0, row = 0;
            for (var j = 0; j < 4; j++)
            {
                column += c[t * 16 + j * 4 + i];
                row += c[t * 16 + i * 4 + j];
            }
            Assert.InRange(column, 1 - 3e-6, 1 + 1e-6); // the last step: sum / (sum + 1e-6)
            Assert.InRange(row, 0.999, 1.001);
        }
    }

    [Theory, MemberData(nameof(Backends))]
    public void HyperConnectionHead_collapses_the_streams_by_sigmoid_weights(string backend)
    {
        using var d = Device(backend);
        var output = d.Out(DType.F32, 1, 1);
        var mix = d.Weight(2, 2, 1, 0, 0, 0);
        d.Run(new HyperConnectionHead(d.In([3f, 4], 1, 2, 1), mix, d.Vector(0f, MathF.Log(3)), d.Vector(2f), 0, 0.125f, output));
        var first = 1 / (1 + Math.Exp(-2 * 3 / Math.Sqrt(12.5))) + 0.125;
        AssertClose([3 * first + 4 * 0.875], d.Read(output));
    }

    [Fact]
    public void The_hadamard_transform_keeps_lengths_and_undoes_itself()
    {
        var x = Draws.Floats(new Random(1), 128);
        float[] y = [.. x];
        Numerics.Hadamard(y);
        Assert.Equal(x.Sum(v => (double)v * v), y.Sum(v => (double)v * v), 3);
        Assert.NotEqual(x, y);
        Numerics.Hadamard(y);
        AssertClose(Array.ConvertAll(x, v => (double)v), y);
    }
}

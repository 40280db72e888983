// Attention over several segments and index scores over several pieces and groups: the sizes at which the kernels cut their work, with the cases and
// the bounds of the conformance suite.
using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Inference.Backends.Reference;
using Inference.Backends.Tests.Conformance;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed class LongContextTests
{
    internal static readonly Dictionary<string, OperatorCase> Cases = new OperatorCase[]
    {
        new AttentionCase([(900, 6), (255, 3), (511, 2)], heads: 6, width: 80, window: 600, compressed: 4, AttentionRows.AllVisible, sink: 0.5), // 1 to 4 segments
        new AttentionCase([(1500, 3)], heads: 17, width: 64, window: 100, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 300),
        new AttentionCase([(700, 2)], heads: 5, width: 33, window: 700, compressed: 0, AttentionRows.WindowOnly, sink: float.NegativeInfinity),
        new IndexCase([(2390, 13), (40, 3), (2100, 1)], heads: 5, width: 32, rotary: 16, ratio: 4, topK: 50, RowRounding.None),
        new IndexCase([(2390, 13)], heads: 9, width: 48, rotary: 16, ratio: 2, topK: 300, RowRounding.None, IndexInputs.EqualRows),
        new IndexCase([(1200, 9)], heads: 4, width: 128, rotary: 64, ratio: 1, topK: 40, RowRounding.HadamardFp4Block32),
        new AttentionCase([(900, 6), (255, 3), (511, 2)], heads: 21, width: 86, window: 600, compressed: 4, AttentionRows.AllVisible, sink: 0.5, encoding: RowEncoding.Fp8, rotary: 22),
        new AttentionCase([(1500, 2)], heads: 70, width: 64, window: 100, compressed: 4, AttentionRows.Selected, sink: 0.5, topK: 300, encoding: RowEncoding.BF16),
        new IndexCase([(2390, 13), (40, 3), (2100, 1)], heads: 6, width: 32, rotary: 16, ratio: 4, topK: 50, RowRounding.HadamardFp4Block32, encoding: RowEncoding.Fp4),
        new IndexCase([(1200, 9)], heads: 4, width: 128, rotary: 64, ratio: 1, topK: 40, RowRounding.HadamardFp4Block32, IndexInputs.EqualRows, RowEncoding.Fp4),
        new IndexCase([(1200, 9)], heads: 1, width: 64, rotary: 64, ratio: 1, topK: 40, RowRounding.HadamardFp8, encoding: RowEncoding.Fp8OneScale),
        new CompressorCase([(0, 300)], ratio: 128, overlap: false, width: 144, rotary: 16, RowRounding.Fp8Block64, rowsPerPage: 7),
    }.ToDictionary(c => c.Name);

    public static TheoryData<string> Names() => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(Names))]
    public void Agrees_with_the_reference_within_the_error_bound(string name)
    {
        var c = Cases[name];
        using var reference = new TestDevice(new ReferenceBackend(poison: true));
        using var device = new TestDevice(new CpuBackend(2));
        c.Check(c.Run(reference, Schedule.Whole(c)), c.Run(device, Schedule.Whole(c)));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_token_gets_the_same_bits_in_any_batch_on_any_number_of_threads(string name)
    {
        var c = Cases[name];
        using var plain = new TestDevice(new CpuBackend(1));
        var expected = c.Run(plain, Schedule.Whole(c));
        foreach (var threads in new[] { 1, 2, 5 })
        {
            foreach (var schedule in new[] { Schedule.Whole(c), Schedule.OneByOne(c), Schedule.Chunked(c, threads) })
            {
                using var device = new TestDevice(new CpuBackend(threads, grainWork: 1), new Random(threads));
                expected.AssertSameBits(c.Run(device, schedule), $"{schedule.Name}, {threads} threads");
            }
        }
    }

    public static TheoryData<string> NarrowNames() => [.. Cases.Values.Where(c => c is SequenceCase s && s.Wide() is not null).Select(c => c.Name)];

    [Theory]
    [MemberData(nameof(NarrowNames))]
    public void Rows_stored_narrow_give_the_bits_of_the_same_rows_stored_as_F32(string name)
    {
        var c = (SequenceCase)Cases[name];
        using var narrow = new TestDevice(new CpuBackend(2));
        using var wide = new TestDevice(new CpuBackend(2));
        c.Wide()!.Run(wide, Schedule.Whole(c)).AssertSameBits(c.Run(narrow, Schedule.Whole(c)), "stored narrow");
    }
}

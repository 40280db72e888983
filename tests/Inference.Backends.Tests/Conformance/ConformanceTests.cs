using Inference.Backends.Reference;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Every operator on every backend: one body, the cases of the *Cases files, the backends of <see cref="BackendCases"/>.</summary>
public sealed class ConformanceTests
{
    private static readonly Dictionary<string, OperatorCase> Cases =
        DenseCases.All.Concat(ExpertCases.All).Concat(HyperConnectionCases.All).Concat(RowCases.All).Concat(AttentionCases.All)
            .ToDictionary(c => c.Name);

    public static TheoryData<string> CaseNames() => [.. Cases.Keys];

    public static TheoryData<string, string> BackendsAndCases()
    {
        var data = new TheoryData<string, string>();
        foreach (var backend in BackendCases.All.Keys)
        {
            foreach (var c in Cases.Keys) data.Add(backend, c);
        }
        return data;
    }

    [Theory]
    [MemberData(nameof(CaseNames))]
    public void The_reference_agrees_with_a_second_computation_in_double(string name)
    {
        var c = Cases[name];
        using var device = new TestDevice(new ReferenceBackend(poison: true));
        c.CheckReference(c.Run(device, Schedule.Whole(c)));
    }

    [Theory]
    [MemberData(nameof(BackendsAndCases))]
    public void A_backend_agrees_with_the_reference_within_the_error_bound(string backend, string name)
    {
        var c = Cases[name];
        using var reference = new TestDevice(new ReferenceBackend(poison: true));
        using var device = new TestDevice(BackendCases.All[backend]());
        c.Check(c.Run(reference, Schedule.Whole(c)), Run(c, device, Schedule.Whole(c)));
    }

    [Theory]
    [MemberData(nameof(BackendsAndCases))]
    public void A_token_gets_the_same_bits_in_any_batch_and_place(string backend, string name)
    {
        var c = Cases[name];
        using var plain = new TestDevice(BackendCases.All[backend]());
        Assert.SkipUnless(plain.Backend.Info.Determinism == Determinism.AnySchedule, "the backend does not claim it");
        var expected = Run(c, plain, Schedule.Whole(c));
        Schedule[] schedules = [Schedule.Whole(c), Schedule.OneByOne(c), Schedule.Chunked(c, 1), Schedule.Chunked(c, 2)];
        for (var i = 0; i < schedules.Length; i++)
        {
            using var device = new TestDevice(BackendCases.All[backend](), new Random(i));
            if (c.Tokens > 0) expected.AssertSameBits(Run(c, device, schedules[i]), schedules[i].Name);
            // An engine plans once, for its largest step.
            Assert.True(device.WorkspaceBytesMax <= plain.WorkspaceBytesMax, "a part of the batch wants more workspace than the whole");
        }
    }

    public static TheoryData<string, string> BackendsAndNarrowCases()
    {
        var data = new TheoryData<string, string>();
        foreach (var backend in BackendCases.All.Keys)
        {
            foreach (var c in Cases.Values) if (c is SequenceCase s && s.Wide() is not null) data.Add(backend, c.Name);
        }
        return data;
    }

    [Theory]
    [MemberData(nameof(BackendsAndNarrowCases))]
    public void Rows_stored_narrow_give_the_bits_of_the_same_rows_stored_as_F32(string backend, string name)
    {
        var c = (SequenceCase)Cases[name];
        using var narrow = new TestDevice(BackendCases.All[backend]());
        using var wide = new TestDevice(BackendCases.All[backend]());
        Run(c.Wide()!, wide, Schedule.Whole(c)).AssertSameBits(Run(c, narrow, Schedule.Whole(c)), "stored narrow");
    }

    private static Outputs Run(OperatorCase c, TestDevice device, Schedule schedule)
    {
        try
        {
            return c.Run(device, schedule);
        }
        catch (BackendException e) when (c.MayBeRefused && e.Kind == BackendErrorKind.Request)
        {
            Assert.Skip(e.Message);
            throw;
        }
    }
}

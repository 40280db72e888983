// The same bits with 512-bit, 256-bit and no vector instructions: every conformance case and some larger products are run by a child process whose
// runtime was told to do without, and its digests compared with ours.
// By hand, for the whole suite: DOTNET_EnableAVX512=0 (or DOTNET_EnableHWIntrinsic=0) before the test command.
using System.Diagnostics;
using System.Runtime.InteropServices;
using Inference.Backends.Cpu;
using Inference.Backends.Operators;
using Inference.Backends.Tests.Conformance;
using Xunit;

namespace Inference.Backends.Tests.Cpu;

public sealed class InstructionSetTests
{
    private const string FileVariable = "INFERENCE_TEST_DIGESTS";
    private const string Off = "switched off: ";

    [Theory]
    [InlineData("DOTNET_EnableAVX512")]
    [InlineData("DOTNET_EnableHWIntrinsic")]
    public async Task Bits_are_the_same_without_an_instruction_set(string variable)
    {
        var file = Path.GetTempFileName();
        try
        {
            var start = new ProcessStartInfo(Environment.ProcessPath!) { RedirectStandardOutput = true, RedirectStandardError = true };
            if (Path.GetFileNameWithoutExtension(start.FileName) == "dotnet") start.ArgumentList.Add(typeof(InstructionSetTests).Assembly.Location);
            start.ArgumentList.Add("-method");
            start.ArgumentList.Add($"{typeof(InstructionSetTests).FullName}.{nameof(Digests_are_the_same_in_every_run)}");
            start.Environment[variable] = "0";
            start.Environment[FileVariable] = file;
            using var child = Process.Start(start)!;
            var output = child.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
            var errors = child.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
            await child.WaitForExitAsync(TestContext.Current.CancellationToken);
            Assert.True(child.ExitCode == 0, $"the child failed: {await output}{await errors}");

            var theirs = await File.ReadAllLinesAsync(file, TestContext.Current.CancellationToken);
            Assert.Contains(Off + variable, theirs);
            Assert.Equal(Digests(), theirs.Where(line => !line.StartsWith(Off, StringComparison.Ordinal)));
        }
        finally
        {
            File.Delete(file);
        }
    }

    [Fact]
    public void Digests_are_the_same_in_every_run()
    {
        var digests = Digests();
        Assert.Equal(digests, Digests());
        if (Environment.GetEnvironmentVariable(FileVariable) is not { Length: > 0 } file) return;
        // Proof that the runtime took the variable at its word, for the parent to look at.
        if (!System.Runtime.Intrinsics.X86.Avx512F.IsSupported) digests.Add(Off + "DOTNET_EnableAVX512");
        if (!System.Runtime.Intrinsics.Vector128.IsHardwareAccelerated) digests.Add(Off + "DOTNET_EnableHWIntrinsic");
        File.WriteAllLines(file, digests);
    }

    private static List<string> Digests()
    {
        var digests = new List<string>();
        foreach (var c in DenseCases.All.Concat(ExpertCases.All).Concat(HyperConnectionCases.All).Concat(RowCases.All).Concat(AttentionCases.All)
            .Concat(LongContextTests.Cases.Values))
        {
            using var device = new TestDevice(new CpuBackend(1));
            var outputs = c.Run(device, Schedule.Whole(c));
            foreach (var (name, values) in outputs.Floats) digests.Add($"{c.Name}, {name}: {Digest(values)}");
            foreach (var (name, values) in outputs.Ints) digests.Add($"{c.Name}, {name}: {Digest(values)}");
        }
        foreach (var (name, scheme) in ScheduleBitsTests.Schemes)
        {
            using var weight = new RandomMatrix(scheme, 40, 1184, seed: 5);
            foreach (var tokens in new[] { 1, 4, 20 })
                digests.Add($"{name}, {tokens} tokens: {Digest(Product(weight, tokens))}");
        }
        return digests;
    }

    private static float[] Product(RandomMatrix weight, int tokens)
    {
        using var backend = new CpuBackend(1);
        using var memory = new TensorMemory(backend);
        using var prepared = weight.Prepare(backend);
        var random = new Random(6);
        float[] x = [.. Enumerable.Range(0, tokens * weight.Columns).Select(_ => random.NextSingle() - 0.5f)];
        var y = memory.Empty(tokens, weight.Rows);
        backend.Enqueue(new Linear(memory.F32(x, tokens, weight.Columns), prepared, y));
        return TensorMemory.Read(y);
    }

    private static string Digest<T>(T[] values) where T : unmanaged
    {
        var hash = 14695981039346656037UL; // FNV-1a
        foreach (var bits in MemoryMarshal.Cast<T, uint>(values))
        {
            var isNaN = (bits & 0x7FFFFFFF) > 0x7F800000 && typeof(T) == typeof(float);
            hash = (hash ^ (isNaN ? 0x7FC00000 : bits)) * 1099511628211UL; // which NaN it is, IEEE leaves open
        }
        return hash.ToString("x16", System.Globalization.CultureInfo.InvariantCulture);
    }
}

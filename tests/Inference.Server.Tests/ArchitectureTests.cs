using ArchUnitNET.Domain;
using ArchUnitNET.Domain.Extensions;
using ArchUnitNET.Loader;
using Inference.Backends;
using Inference.Backends.Cpu;
using Inference.Runtime.Engine;
using Inference.Server.Hosting;
using Xunit;

namespace Inference.Server.Tests;

/// <summary>The arrows of the house: Server -> Runtime -> Backends, and vendors only where the process is composed.</summary>
public sealed class ArchitectureTests
{
    private static readonly Architecture Product = new ArchLoader()
        .LoadAssemblies(typeof(ServerHost).Assembly, typeof(InferenceEngine).Assembly, typeof(IBackend).Assembly)
        .Build();

    [Fact]
    public void The_test_sees_the_code_it_judges()
    {
        // A rule about nothing would pass: what must be allowed is found.
        Assert.Contains(Dependencies("inference", _ => true), d => d.Target == typeof(InferenceEngine).FullName);
        Assert.Contains(Dependencies("Inference.Runtime", _ => true), d => d.Target == typeof(IBackend).FullName);
        Assert.Contains(Dependencies("inference", IsVendor), d => d.Origin == typeof(ModelHost).FullName && d.Target == typeof(CpuBackend).FullName);
    }

    [Fact]
    public void Backends_know_neither_the_runtime_nor_the_server() =>
        Assert.Empty(Dependencies("Inference.Backends", t => IsIn(t, "Inference.Runtime", "Inference.Server", "Inference.V1")));

    [Fact]
    public void The_runtime_knows_no_server() => Assert.Empty(Dependencies("Inference.Runtime", t => IsIn(t, "Inference.Server", "Inference.V1")));

    [Fact]
    public void Backends_and_runtime_know_no_network()
    {
        foreach (var assembly in (System.Reflection.Assembly[])[typeof(IBackend).Assembly, typeof(InferenceEngine).Assembly])
            Assert.DoesNotContain(assembly.GetReferencedAssemblies(), r => IsNetwork(r.Name!));
        Assert.Contains(typeof(ServerHost).Assembly.GetReferencedAssemblies(), r => IsNetwork(r.Name!));
    }

    [Fact]
    public void The_runtime_names_no_vendor() => Assert.Empty(Dependencies("Inference.Runtime", IsVendor));

    [Fact]
    public void Only_the_model_host_names_vendors() =>
        Assert.All(Dependencies("inference", IsVendor), d => Assert.Equal(typeof(ModelHost).FullName, d.Origin.Split('+', '/')[0]));

    private static bool IsVendor(string type) => IsIn(type, "Inference.Backends.Cpu", "Inference.Backends.Reference", "Inference.Backends.Torch", "Inference.Backends.Cuda");

    private static bool IsNetwork(string assembly) =>
        ((string[])["Grpc.", "Google.", "Microsoft.AspNetCore", "System.Net.", "OpenTelemetry", "System.CommandLine", "Spectre."]).Any(
            n => assembly.StartsWith(n, StringComparison.Ordinal));

    private static bool IsIn(string type, params string[] namespaces) => namespaces.Any(n => type.StartsWith(n + ".", StringComparison.Ordinal));

    /// <summary>What types of an assembly use, as pairs of names.</summary>
    private static List<(string Origin, string Target)> Dependencies(string assembly, Func<string, bool> target) =>
    [
        .. from type in Product.Types
           where type.Assembly.Name.Split(',')[0] == assembly
           from dependency in type.Dependencies
           where target(dependency.Target.FullName)
           select (type.FullName, dependency.Target.FullName),
    ];
}

using Grpc.Core;
using Grpc.Health.V1;
using Grpc.Reflection.V1Alpha;
using Inference.Backends;
using Inference.Server.Errors;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Microsoft.Extensions.DependencyInjection;
using Xunit;
using static Grpc.Health.V1.HealthCheckResponse.Types;

namespace Inference.Server.Tests.Hosting;

/// <summary>What health, readiness and reflection say, from before the model is loaded until the end.</summary>
public sealed class HealthTests
{
    [Fact]
    public async Task Nothing_is_ready_before_the_model_is_and_callers_hear_why()
    {
        var load = new TaskCompletionSource();
        await using var server = await TestServer.StartAsync(beforeLoad: () => load.Task, waitUntilServing: false);
        var health = new Health.HealthClient(server.Channel());
        Assert.Equal(ServingStatus.NotServing, (await health.CheckAsync(new())).Status);
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/livez"));
        Assert.Equal((503, "loading\n"), await PageAsync(server, "/readyz"));
        var failure = await Rpc.FailureAsync(() => server.Completions.CompleteAsync(Rpc.Ids(1)).ResponseAsync);
        failure.Is(StatusCode.Unavailable, ErrorReason.Loading);
        Assert.True(failure.Retry!.RetryDelay.ToTimeSpan() > TimeSpan.Zero);
        Assert.Empty((await new V1.Models.ModelsClient(server.Channel()).ListModelsAsync(new())).Models);

        load.SetResult();
        await server.UntilAsync(() => server.Engine.State == ServingState.Serving, "the model is loaded");
        foreach (string service in HealthReporter.Services.Append(""))
            Assert.Equal(ServingStatus.Serving, (await health.CheckAsync(new() { Service = service })).Status);
        Assert.Equal((200, "ok\n"), await PageAsync(server, "/readyz"));
        Assert.Equal(StatusCode.NotFound, (await Rpc.FailureAsync(() => health.CheckAsync(new() { Service = "nope" }).ResponseAsync)).Code);
    }

    [Fact]
    public async Task A_watch_sees_each_change_and_ends_when_the_server_stops()
    {
        var load = new TaskCompletionSource();
        await using var server = await TestServer.StartAsync(beforeLoad: () => load.Task, waitUntilServing: false);
        using var watch = new Health.HealthClient(server.Channel()).Watch(new() { Service = "inference.v1.Completions" });
        var seen = new List<ServingStatus>();
        var failure = Rpc.FailureAsync(async () =>
        {
            await foreach (var response in watch.ResponseStream.ReadAllAsync())
                lock (seen) seen.Add(response.Status);
        });
        await server.UntilAsync(() => Count() == 1, "the watch has its first answer");
        load.SetResult();
        await server.UntilAsync(() => Count() == 2, "the watch sees that the model is ready");
        await server.Host.StopAsync().WaitAsync(TimeSpan.FromSeconds(10));
        (await failure).Is(StatusCode.Unavailable, ErrorReason.Draining);
        Assert.Equal([ServingStatus.NotServing, ServingStatus.Serving, ServingStatus.NotServing], seen);

        int Count()
        {
            lock (seen) return seen.Count;
        }
    }

    [Fact]
    public async Task A_model_that_cannot_be_loaded_ends_the_process_with_an_error()
    {
        await using var server = await TestServer.StartAsync(beforeLoad: () => throw new InvalidDataException("no weights"), waitUntilServing: false);
        await server.UntilAsync(() => server.Engine.State == ServingState.Failed, "loading fails");
        await server.Host.WhenStopped.WaitAsync(TimeSpan.FromSeconds(10));
        Assert.Equal(ExitCode.EngineFailed, server.Host.Services.GetRequiredService<ShutdownController>().ExitCode);
    }

    [Fact]
    public async Task A_broken_engine_answers_everyone_and_ends_the_process_with_an_error()
    {
        bool broken = false;
        var model = new Inference.Testing.HashModel(vocab: 1024, contextMax: 4096, pageRows: 32)
        {
            BeforeStep = _ =>
            {
                Thread.Sleep(5);
                if (Volatile.Read(ref broken)) throw new BackendException(BackendErrorKind.Device, "secret device text");
            },
        };
        await using var server = await TestServer.StartAsync(model: model);
        var calls = Enumerable.Range(0, 4).Select(_ => server.Completions.Generate(Rpc.Ids(4000))).ToList();
        foreach (var call in calls) Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
        Volatile.Write(ref broken, true);
        foreach (var call in calls)
        {
            var failure = await Rpc.FailureAsync(() => Rpc.ReadAsync(call));
            failure.Is(StatusCode.Unavailable, ErrorReason.EngineFailed);
            Assert.DoesNotContain("secret", failure.Message, StringComparison.Ordinal);
        }
        await server.Host.WhenStopped.WaitAsync(TimeSpan.FromSeconds(10));
        Assert.Equal(ExitCode.EngineFailed, server.Host.Services.GetRequiredService<ShutdownController>().ExitCode);
    }

    [Fact]
    public async Task Reflection_lists_the_services_and_gives_their_files()
    {
        await using var server = await TestServer.StartAsync();
        using var call = new ServerReflection.ServerReflectionClient(server.Channel()).ServerReflectionInfo();
        var services = (await AskAsync(new() { ListServices = "" })).ListServicesResponse.Service.Select(s => s.Name).ToList();
        Assert.Superset(new HashSet<string>([.. HealthReporter.Services, "grpc.health.v1.Health"]), services.ToHashSet());
        var files = (await AskAsync(new() { FileContainingSymbol = "inference.v1.Completions" })).FileDescriptorResponse;
        Assert.Contains(files.FileDescriptorProto, f => f.ToStringUtf8().Contains("GenerateRequest", StringComparison.Ordinal));
        await call.RequestStream.CompleteAsync();

        async Task<ServerReflectionResponse> AskAsync(ServerReflectionRequest request)
        {
            await call.RequestStream.WriteAsync(request);
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
            return call.ResponseStream.Current;
        }
    }

    [Theory]
    [InlineData("off", "127.0.0.1:0", false)]
    [InlineData("auto", "0.0.0.0:0", false)]
    [InlineData("on", "0.0.0.0:0", true)]
    public async Task Reflection_is_for_loopback_listeners_unless_told_otherwise(string mode, string listen, bool answers)
    {
        await using var server = await TestServer.StartAsync(
            new Dictionary<string, string> { ["reflection"] = mode, ["listen"] = listen, ["allow-remote-plaintext"] = "true" });
        using var channel = Grpc.Net.Client.GrpcChannel.ForAddress($"http://127.0.0.1:{server.Host.Endpoint(ListenerKind.Grpc).Port}");
        using var call = new ServerReflection.ServerReflectionClient(channel).ServerReflectionInfo();
        if (answers) Assert.True(await AskAsync());
        else Assert.Equal(StatusCode.Unimplemented, (await Rpc.FailureAsync(AskAsync)).Code);

        async Task<bool> AskAsync()
        {
            await call.RequestStream.WriteAsync(new() { ListServices = "" });
            return await call.ResponseStream.MoveNext(CancellationToken.None);
        }
    }

    [Fact]
    public async Task A_model_is_described_with_its_limits_and_defaults()
    {
        await using var server = await TestServer.StartAsync();
        var client = new V1.Models.ModelsClient(server.Channel());
        var model = await client.GetModelAsync(new() { Name = "hash" });
        Assert.Equal(("hash", "hash", V1.ModelState.Ready), (model.Name, model.Family, model.State));
        Assert.Equal((1024, 4096, 4096), (model.VocabularySize, model.ContextTokensMax, model.DefaultMaxTokens));
        Assert.Equal((0f, 1f), (model.DefaultSampling.Temperature, model.DefaultSampling.TopP));
        Assert.False(model.DefaultSampling.HasSeed);
        Assert.Equal([1u], model.EndTokenIds);
        Assert.Equal((V1.DeterminismClass.AnySchedule, "host-memory", true), (model.Determinism, model.Backend, model.SupportsChat));
        Assert.Equal("f32", model.KvFormat);
        Assert.Equal(model, Assert.Single((await client.ListModelsAsync(new())).Models));
        (await Rpc.FailureAsync(() => client.GetModelAsync(new() { Name = "other" }).ResponseAsync)).Is(StatusCode.NotFound, ErrorReason.ModelNotFound);
        var failure = await Rpc.FailureAsync(() => client.ListModelsAsync(new() { PageSize = -1, PageToken = "x" }).ResponseAsync);
        Assert.Equal(["page_size", "page_token"], failure.Fields);
    }

    private static async Task<(int, string)> PageAsync(TestServer server, string path)
    {
        using var http = new HttpClient();
        using var response = await http.GetAsync(new Uri(server.Http, path));
        return ((int)response.StatusCode, await response.Content.ReadAsStringAsync());
    }
}

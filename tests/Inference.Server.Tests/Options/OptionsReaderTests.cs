using System.Net;
using Inference.Runtime.Models;
using Inference.Server.Options;
using Inference.Testing;
using Microsoft.Extensions.Logging;
using Xunit;

namespace Inference.Server.Tests.Options;

/// <summary>Settings from three places, checked once, every fault told.</summary>
public sealed class OptionsReaderTests
{
    [Fact]
    public void Nothing_given_is_the_day_one_posture()
    {
        var options = Read();
        Assert.Equal(
            [(ListenerKind.Grpc, "127.0.0.1:50051"), (ListenerKind.Http, "127.0.0.1:50080")], options.Listeners.Select(l => (l.Kind, l.Endpoint.ToString())));
        Assert.All(options.Listeners, l => Assert.True(l.IsLoopback));
        Assert.Equal((64 << 20, 300, ReflectionMode.Auto), (options.ReceiveBytesMax, options.DrainLimit.TotalSeconds, options.Reflection));
        Assert.Null(options.Tls);
        Assert.Null(options.Model.Folder);
        Assert.Null(options.OtlpEndpoint);
    }

    [Theory]
    [InlineData("auto", null)]
    [InlineData("f32", KvRowFormat.F32)]
    [InlineData("BF16", KvRowFormat.BF16)]
    [InlineData("fp8", KvRowFormat.Fp8WithFp4Index)]
    [InlineData("fp8-index8", KvRowFormat.Fp8WithFp8Index)]
    public void Cached_rows_are_stored_as_asked(string text, KvRowFormat? format) => Assert.Equal(format, Read(("kv-format", text)).Model.KvFormat);

    [Fact]
    public void Tenants_have_the_weights_they_are_given()
    {
        Assert.Empty(Read().Model.TenantWeights);
        var options = Read(("tenant-weights", "gold=4, free tier=0.5,a=b=1"), ("queue-tokens-max", "9000"), ("priority-ahead", "90s"), ("share-prefixes", "true"));
        Assert.Equal([("a=b", 1.0), ("free tier", 0.5), ("gold", 4.0)], options.Model.TenantWeights.Select(w => (w.Key, w.Value)).Order());
        Assert.Equal((9000, 90, true), (options.Model.QueueTokensMax, options.Model.PriorityAhead.TotalSeconds, options.Model.SharePrefixes));
    }

    [Fact]
    public void The_command_line_wins_over_the_environment_and_that_over_the_file()
    {
        using var folder = new TemporaryFolder();
        string file = folder["appsettings.json"];
        File.WriteAllText(file, """{"Inference": {"QueueMax": 1, "SequencesMax": 2, "DrainLimit": "3s", "Listen": ["127.0.0.1:1", "[::1]:2"]}, "Other": {"x": 1}}""");
        var options = new OptionsReader(
            new Dictionary<string, string> { ["queue-max"] = "30" },
            new Dictionary<string, string> { ["INFERENCE_QUEUE_MAX"] = "20", ["INFERENCE_SEQUENCES_MAX"] = "21", ["PATH"] = "/bin" }, file).ReadServer();
        Assert.Equal((30, 21, 3), (options.Model.QueueMax, options.Model.SequencesMax, options.DrainLimit.TotalSeconds));
        Assert.Equal(["127.0.0.1:1", "[::1]:2"], options.Listeners.Where(l => l.Kind == ListenerKind.Grpc).Select(l => l.Endpoint.ToString()));
    }

    [Fact]
    public void Every_fault_is_told_with_its_place()
    {
        using var folder = new TemporaryFolder();
        string file = folder["appsettings.json"];
        File.WriteAllText(file, """{"Inference": {"Queue": 1, "DrainLimit": "soon"}}""");
        var e = Assert.Throws<OptionsException>(() => new OptionsReader(
            new Dictionary<string, string> { ["max-receive-bytes"] = "12 parsecs", ["http-listen"] = "8080", ["backend"] = "abacus" },
            new Dictionary<string, string> { ["INFERENCE_THREADS"] = "-1" }, file).ReadServer());
        Assert.Equal(6, e.Errors.Count);
        Assert.Contains(e.Errors, m => m.StartsWith("Inference:Queue in ", StringComparison.Ordinal) && m.Contains("no such setting", StringComparison.Ordinal));
        Assert.Contains(e.Errors, m => m.StartsWith("Inference:DrainLimit in ", StringComparison.Ordinal));
        Assert.Contains(e.Errors, m => m.StartsWith("--max-receive-bytes: '12 parsecs'", StringComparison.Ordinal));
        Assert.Contains(e.Errors, m => m.StartsWith("--http-listen: '8080'", StringComparison.Ordinal));
        Assert.Contains(e.Errors, m => m.StartsWith("--backend: 'abacus' is none of auto, cpu, reference", StringComparison.Ordinal));
        Assert.Contains(e.Errors, m => m.StartsWith("INFERENCE_THREADS: '-1'", StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("listen", "0.0.0.0:50051", "--allow-remote-plaintext")]
    [InlineData("http-listen", "[::]:80", "--allow-remote-plaintext")]
    [InlineData("listen", "none", "no gRPC listener")]
    [InlineData("listen", "127.0.0.1:50080", "given to 2 listeners")]
    [InlineData("tls-listen", "127.0.0.1:50443", "needs a PEM file")]
    [InlineData("tls-certificate", "/nowhere.pem", "there is no file")]
    [InlineData("model", "/nowhere", "there is no folder")]
    [InlineData("model-name", "two words", "printable")]
    [InlineData("kv-cache-bytes", "9999999TiB", "not auto or a whole number")]
    [InlineData("sequences-max", "auto", "not a whole number")]
    [InlineData("write-stall-limit", "0", "not a time")]
    [InlineData("write-stall-limit", "NaN", "not a time")]
    [InlineData("tenant-weights", "gold", "'gold' is not a tenant's name and a weight from 0.01 to 100")]
    [InlineData("tenant-weights", "gold=0", "'gold=0' is not")]
    [InlineData("tenant-weights", "gold=NaN", "'gold=NaN' is not")]
    [InlineData("tenant-weights", "=2", "'=2' is not")]
    [InlineData("tenant-weights", "a=1,é=2", "'é=2' is not")]
    [InlineData("tenant-weights", "a=1,a=2", "'a' has two weights")]
    [InlineData("queue-tokens-max", "0", "not auto or a whole number")]
    [InlineData("priority-ahead", "25h", "not a time")]
    [InlineData("reflection", "maybe", "none of auto, on, off")]
    [InlineData("log-level", "loud", "none of trace")]
    [InlineData("allow-remote-plaintext", "yes", "neither true nor false")]
    public void What_cannot_work_is_refused(string name, string value, string message)
    {
        var e = Assert.Throws<OptionsException>(() => Read((name, value)));
        Assert.Contains(e.Errors, m => m.Contains(message, StringComparison.Ordinal));
    }

    [Theory]
    [InlineData("1024", 1024)]
    [InlineData("8 MiB", 8 << 20)]
    [InlineData("512KiB", 512 << 10)]
    public void Bytes_have_units(string value, int bytes) => Assert.Equal(bytes, Read(("max-receive-bytes", value)).ReceiveBytesMax);

    [Theory]
    [InlineData("250ms", 0.25)]
    [InlineData("2", 2)]
    [InlineData("1.5m", 90)]
    [InlineData("1h", 3600)]
    public void Times_have_units(string value, double seconds) => Assert.Equal(seconds, Read(("write-stall-limit", value)).WriteStallLimit.TotalSeconds);

    [Fact]
    public void Localhost_is_loopback_and_names_are_not_looked_up()
    {
        Assert.Equal(new IPEndPoint(IPAddress.Loopback, 7), Read(("listen", "localhost:7")).Listeners[0].Endpoint);
        Assert.Throws<OptionsException>(() => Read(("listen", "example.com:7")));
    }

    [Fact]
    public void A_remote_plaintext_listener_is_allowed_when_asked_for() =>
        Assert.False(Read(("listen", "0.0.0.0:7"), ("allow-remote-plaintext", "true")).Listeners[0].IsLoopback);

    [Fact]
    public void A_variable_that_names_no_setting_is_found()
    {
        var reader = new OptionsReader(
            new Dictionary<string, string>(), new Dictionary<string, string> { ["INFERENCE_TREADS"] = "4", ["INFERENCE_THREADS"] = "4" }, null);
        Assert.Equal(["INFERENCE_TREADS"], reader.UnknownEnvironmentVariables());
    }

    [Fact]
    public void Every_setting_has_three_spellings_of_its_own()
    {
        Assert.Equal(LogLevel.Information, Read().LogLevel);
        Assert.Equal(Settings.All.Count(), Settings.All.Select(s => s.Json).Distinct().Count());
        Assert.All(Settings.All, s => Assert.NotEmpty(s.Help));
        Assert.Equal(
            ("--max-receive-bytes", "INFERENCE_MAX_RECEIVE_BYTES", "MaxReceiveBytes"),
            (Settings.MaxReceiveBytes.CommandLine, Settings.MaxReceiveBytes.Environment, Settings.MaxReceiveBytes.Json));
    }

    private static ServerOptions Read(params (string Name, string Value)[] settings) =>
        new OptionsReader(settings.ToDictionary(s => s.Name, s => s.Value), new Dictionary<string, string>(), null).ReadServer();
}

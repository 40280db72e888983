using Inference.Backends;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Runtime.Models;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Weights;
using Inference.Server.Commands;
using Inference.Server.Options;
using Xunit;

namespace Inference.Server.Tests.Commands;

public sealed class FaultTests
{
    public static TheoryData<Exception, int, string> Known => new()
    {
        { new InputException("bad"), Verb.BadInput, "bad" },
        { new OptionsException(["--a: bad", "--b: bad"]), Verb.BadInput, "--a: bad" },
        { new CheckpointException(CheckpointFault.FileMissing, "f", null, "gone", "Get it."), Verb.BadInput, "f: gone. Get it." },
        { new ModelConfigException("f", "key", "1", "2"), Verb.BadInput, "'key'" },
        { new TokenizerException("f", "broken.", "Get another."), Verb.BadInput, "broken" },
        { new ChatEncodingException("odd", "say it otherwise", 3, "role"), Verb.BadInput, "messages[3].role" },
        { new InvalidDataException("generation_config.json: odd"), Verb.BadInput, "generation_config.json" },
        { new EngineOptionsException("KvCapacityBytes", "too few; lower SequencesMax"), Verb.BadInput, "--kv-cache-bytes: too few; lower --sequences-max" },
        { new RequestRejectedException(RejectionReason.InvalidRequest, "too high", "sampling.top_p"), Verb.BadInput, "--top-p: too high" },
        { new RequestRejectedException(RejectionReason.InvalidRequest, "too long", "prompt"), Verb.BadInput, "too long" },
        { new RequestRejectedException(RejectionReason.Unavailable, "stopping"), Verb.Failed, "stopping" },
        { new BackendException(BackendErrorKind.Capacity, "full"), Verb.Failed, "full" },
        { new BackendException(BackendErrorKind.Device, "gone"), Verb.Failed, "gone" },
        { new BackendException(BackendErrorKind.Request, "odd"), Verb.Failed, "odd" },
        { new AnswerException("odd"), Verb.Failed, "odd" },
        { new IOException("disk full"), Verb.Failed, "disk full" },
        { new InvalidOperationException("bug"), Verb.Failed, "Unexpected: InvalidOperationException: bug" },
    };

    [Theory, MemberData(nameof(Known), DisableDiscoveryEnumeration = true)]
    public void Every_exception_becomes_lines_and_an_exit_code(Exception exception, int exitCode, string line)
    {
        var fault = Fault.Of(exception, CancellationToken.None);
        Assert.Equal(exitCode, fault.ExitCode);
        Assert.Contains(line, fault.Lines[0], StringComparison.Ordinal);
        Assert.All(fault.Lines, l => Assert.DoesNotContain('\n', l));
    }

    [Fact]
    public void What_an_interrupt_ends_is_no_fault()
    {
        var interrupted = new CancellationToken(canceled: true);
        var fault = Fault.Of(new OperationCanceledException(interrupted), interrupted);
        Assert.Equal(Verb.Interrupted, fault.ExitCode);
        Assert.Empty(fault.Lines);
    }
}

using System.Reflection;
using Google.Rpc;
using Grpc.Core;
using Inference.Runtime.Chat;
using Inference.Runtime.Engine;
using Inference.Server.Errors;
using Inference.Server.Telemetry;
using Xunit;

namespace Inference.Server.Tests.Errors;

/// <summary>From faults to statuses, without a network.</summary>
public sealed class StatusMappingTests
{
    [Fact]
    public void Every_reason_has_a_code_and_none_is_OK()
    {
        string[] reasons = [.. typeof(ErrorReason).GetFields(BindingFlags.Public | BindingFlags.Static).Where(f => f.Name != nameof(ErrorReason.Domain)).Select(f => (string)f.GetValue(null)!)];
        Assert.True(reasons.Length > 10);
        Assert.Equal(reasons.Order(), StatusMapping.Codes.Keys.Order());
        Assert.DoesNotContain(StatusCode.OK, StatusMapping.Codes.Values);
    }

    [Fact]
    public void A_refusal_of_the_engine_names_the_field_or_the_time_to_come_back()
    {
        var invalid = StatusMapping.Map(new RequestRejectedException(RejectionReason.InvalidRequest, "too long", "prompt"));
        Assert.Equal((Code.InvalidArgument, ErrorReason.CannotRun), ((Code)invalid.Code, Info(invalid).Reason));
        Assert.Equal("prompt", Assert.Single(invalid.GetDetail<BadRequest>()!.FieldViolations).Field);

        var overloaded = StatusMapping.Map(new RequestRejectedException(RejectionReason.Overloaded, "full", retryAfter: TimeSpan.FromSeconds(7)));
        Assert.Equal((Code.ResourceExhausted, ErrorReason.Overloaded), ((Code)overloaded.Code, Info(overloaded).Reason));
        Assert.Equal(7, overloaded.GetDetail<RetryInfo>()!.RetryDelay.Seconds);

        var stopping = StatusMapping.Map(new RequestRejectedException(RejectionReason.Unavailable, "stopping"));
        Assert.Equal((Code.Unavailable, ErrorReason.Draining), ((Code)stopping.Code, Info(stopping).Reason));
    }

    [Fact]
    public void A_chat_fault_names_the_message_and_the_field()
    {
        var status = StatusMapping.Map(new ChatEncodingException("no content", "give some", 3, "content"));
        Assert.Equal("chat.messages[3].content", Assert.Single(status.GetDetail<BadRequest>()!.FieldViolations).Field);
    }

    [Fact]
    public void A_cancelled_call_is_told_by_its_deadline()
    {
        Assert.Equal(ErrorReason.DeadlineExceeded, Info(StatusMapping.Map(new OperationCanceledException(), deadlinePassed: true)).Reason);
        Assert.Equal(ErrorReason.Cancelled, Info(StatusMapping.Map(new TaskCanceledException())).Reason);
    }

    [Fact]
    public void The_text_of_an_unexpected_fault_stays_inside()
    {
        var status = StatusMapping.Map(new InvalidOperationException("/srv/models/secret.bin at 0x7fff0000"));
        Assert.Equal(Code.Internal, (Code)status.Code);
        Assert.DoesNotContain("secret", status.ToString(), StringComparison.Ordinal);
        Assert.False(StatusMapping.IsExpected(new InvalidCastException()));
    }

    [Fact]
    public void Long_texts_are_cut_between_characters_and_details_stay_small()
    {
        string text = new string('x', 499) + "🙂" + new string('y', 10_000);
        var violations = Enumerable.Range(0, 500).Select(i => StatusMapping.Violation($"f[{i}]", text)).ToList();
        var status = StatusMapping.Map(new RequestException(ErrorReason.InvalidField, text) { Violations = violations });
        Assert.Equal(new string('x', 499) + "...", status.Message);
        Assert.Equal("500", Info(status).Metadata["violations"]);
        Assert.InRange(status.CalculateSize(), 100, 6000);
    }

    [Theory]
    [InlineData(StatusCode.OK, "OK")]
    [InlineData(StatusCode.InvalidArgument, "INVALID_ARGUMENT")]
    [InlineData(StatusCode.Unavailable, "UNAVAILABLE")]
    public void Metrics_spell_codes_as_gRPC_does(StatusCode code, string name) => Assert.Equal(name, RpcMetrics.Name(code));

    private static ErrorInfo Info(Google.Rpc.Status status) => status.GetDetail<ErrorInfo>()!;
}

using Grpc.Core;
using Inference.Server.Errors;
using Xunit;

namespace Inference.Server.Tests.Services;

/// <summary>What a client did wrong, told by code, reason and field, through real calls.</summary>
public sealed class ValidationTests(SharedServer shared) : IClassFixture<SharedServer>
{
    private readonly TestServer _server = shared.Server;

    /// <summary>Each case: what is changed in a good request, and the fields that must be named.</summary>
    public static readonly IReadOnlyDictionary<string, (Action<V1.GenerateRequest> Change, string[] Fields)> Cases =
        new Dictionary<string, (Action<V1.GenerateRequest>, string[])>
        {
            ["no prompt"] = (r => r.ClearPrompt(), ["prompt"]),
            ["empty text"] = (r => r.Text = "", ["text"]),
            ["empty ids"] = (r => r.TokenIds = new(), ["token_ids.ids"]),
            ["id out of range"] = (r => r.TokenIds = new() { Ids = { 1, 1024 } }, ["token_ids.ids[1]"]),
            ["id beyond int"] = (r => r.TokenIds = new() { Ids = { uint.MaxValue } }, ["token_ids.ids[0]"]),
            ["plain_text with ids"] = (r => r.PlainText = true, ["plain_text"]),
            ["request id too long"] = (r => r.RequestId = new string('x', 129), ["request_id"]),
            ["request id empty"] = (r => r.RequestId = "", ["request_id"]),
            ["request id with control character"] = (r => r.RequestId = "a\nb", ["request_id"]),
            ["request id not ASCII"] = (r => r.RequestId = "é", ["request_id"]),
            ["temperature NaN"] = (r => r.Sampling.Temperature = float.NaN, ["sampling.temperature"]),
            ["temperature infinite"] = (r => r.Sampling.Temperature = float.PositiveInfinity, ["sampling.temperature"]),
            ["temperature negative"] = (r => r.Sampling.Temperature = -0.1f, ["sampling.temperature"]),
            ["temperature too high"] = (r => r.Sampling.Temperature = 101, ["sampling.temperature"]),
            ["top_k negative"] = (r => r.Sampling.TopK = -1, ["sampling.top_k"]),
            ["top_p zero"] = (r => r.Sampling.TopP = 0, ["sampling.top_p"]),
            ["top_p above one"] = (r => r.Sampling.TopP = 1.1f, ["sampling.top_p"]),
            ["top_p NaN"] = (r => r.Sampling.TopP = float.NaN, ["sampling.top_p"]),
            ["min_p negative"] = (r => r.Sampling.MinP = -0.5f, ["sampling.min_p"]),
            ["repetition_penalty zero"] = (r => r.Sampling.RepetitionPenalty = 0, ["sampling.repetition_penalty"]),
            ["presence_penalty too high"] = (r => r.Sampling.PresencePenalty = 2.5f, ["sampling.presence_penalty"]),
            ["frequency_penalty NaN"] = (r => r.Sampling.FrequencyPenalty = float.NaN, ["sampling.frequency_penalty"]),
            ["logit_bias id"] = (r => r.Sampling.LogitBias[5000] = 1, ["sampling.logit_bias[5000]"]),
            ["logit_bias value"] = (r => r.Sampling.LogitBias[5] = float.NegativeInfinity, ["sampling.logit_bias[5]"]),
            ["logit_bias entries"] = (r => Fill(r.Sampling.LogitBias, 1025), ["sampling.logit_bias"]),
            ["max_tokens zero"] = (r => r.Stopping.MaxTokens = 0, ["stopping.max_tokens"]),
            ["max_tokens negative"] = (r => r.Stopping.MaxTokens = -5, ["stopping.max_tokens"]),
            ["max_tokens beyond the context"] = (r => r.Stopping.MaxTokens = 4097, ["stopping.max_tokens"]),
            ["too many stop strings"] = (r => r.Stopping.Stop.Add(Enumerable.Repeat("s", 17)), ["stopping.stop"]),
            ["empty stop string"] = (r => r.Stopping.Stop.Add(["a", ""]), ["stopping.stop[1]"]),
            ["long stop string"] = (r => r.Stopping.Stop.Add(new string('é', 129)), ["stopping.stop[0]"]),
            ["stop id out of range"] = (r => r.Stopping.StopTokenIds.Add(1024), ["stopping.stop_token_ids[0]"]),
            ["too many stop ids"] = (r => r.Stopping.StopTokenIds.Add(Enumerable.Repeat(3u, 65)), ["stopping.stop_token_ids"]),
            ["top_logprobs negative"] = (r => r.Output.TopLogprobs = -1, ["output.top_logprobs"]),
            ["top_logprobs too many"] = (r => r.Output.TopLogprobs = 21, ["output.top_logprobs"]),
            ["chat without messages"] = (r => r.Chat = new(), ["chat.messages"]),
            ["role missing"] = (r => r.Chat = Chat(new V1.Message { Content = { Part("x") } }), ["chat.messages[0].role"]),
            ["role unknown"] = (r => r.Chat = Chat(new V1.Message { Role = (V1.Role)99, Content = { Part("x") } }), ["chat.messages[0].role"]),
            ["content part empty"] = (r => r.Chat = Chat(new V1.Message { Role = V1.Role.User, Content = { new V1.ContentPart() } }), ["chat.messages[0].content[0]"]),
            ["reasoning of a user"] = (r => r.Chat = Chat(new V1.Message { Role = V1.Role.User, Reasoning = "r" }), ["chat.messages[0].reasoning"]),
            ["calls of a user"] =
                (r => r.Chat = Chat(new V1.Message { Role = V1.Role.User, ToolCalls = { new V1.ToolCall { Name = "f" } } }), ["chat.messages[0].tool_calls"]),
            ["call without a name"] =
                (r => r.Chat = Chat(new V1.Message { Role = V1.Role.Assistant, ToolCalls = { new V1.ToolCall() } }), ["chat.messages[0].tool_calls[0].name"]),
            ["tool without its call"] = (r => r.Chat = Chat(new V1.Message { Role = V1.Role.Tool, Content = { Part("x") } }), ["chat.messages[0].tool_call_id"]),
            ["thinking unknown"] = (r => r.Chat = User(c => c.Thinking = (V1.ThinkingMode)7), ["chat.thinking"]),
            ["effort unknown"] = (r => r.Chat = User(c => c.ReasoningEffort = (V1.ReasoningEffort)77), ["chat.reasoning_effort"]),
            ["effort without thinking"] =
                (r => r.Chat = User(c => (c.Thinking, c.ReasoningEffort) = (V1.ThinkingMode.Off, V1.ReasoningEffort.Max)), ["chat.reasoning_effort"]),
            ["tool without a name"] = (r => r.Chat = User(c => c.Tools.Add(new V1.Tool())), ["chat.tools[0].name"]),
            ["tool twice"] = (r => r.Chat = User(c => c.Tools.Add([new() { Name = "f" }, new() { Name = "f" }])), ["chat.tools[1].name"]),
            ["tool schema not JSON"] = (r => r.Chat = User(c => c.Tools.Add(new V1.Tool { Name = "f", Parameters = "{" })), ["chat.tools[0].parameters"]),
            ["tool schema that closes its object"] =
                (r => r.Chat = User(c => c.Tools.Add(new V1.Tool { Name = "f", Parameters = "{}},{\"x\":{}" })), ["chat.tools[0].parameters"]),
            ["priority too low"] = (r => r.Priority = -3, ["priority"]),
            ["priority too high"] = (r => r.Priority = 3, ["priority"]),
            ["first_token_timeout zero"] = (r => r.FirstTokenTimeout = new(), ["first_token_timeout"]),
            ["first_token_timeout negative"] = (r => r.FirstTokenTimeout = new() { Seconds = -1 }, ["first_token_timeout"]),
            ["first_token_timeout out of range"] = (r => r.FirstTokenTimeout = new() { Seconds = long.MaxValue, Nanos = 5 }, ["first_token_timeout"]),
            ["first_token_timeout not normal"] = (r => r.FirstTokenTimeout = new() { Seconds = 1, Nanos = 1_000_000_000 }, ["first_token_timeout"]),
            ["several at once"] = (r => (r.Sampling.TopP, r.Stopping.MaxTokens, r.RequestId) = (7, -1, ""), ["request_id", "sampling.top_p", "stopping.max_tokens"]),
        };

    public static TheoryData<string> CaseNames => [.. Cases.Keys];

    [Theory]
    [MemberData(nameof(CaseNames))]
    public async Task A_wrong_field_is_named(string name)
    {
        var (change, fields) = Cases[name];
        var request = Good();
        change(request);
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.InvalidArgument, ErrorReason.InvalidField);
        Assert.Equal(fields, failure.Fields);
        Assert.All(failure.BadRequest!.FieldViolations, v => Assert.NotEmpty(v.Description));
        Assert.StartsWith(failure.Fields[0] + ": ", failure.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task The_good_request_of_these_cases_runs()
    {
        var response = await _server.Completions.CompleteAsync(Good());
        Assert.Equal(V1.FinishReason.Length, response.Finished.Reason);
    }

    [Fact]
    public async Task A_stream_is_refused_as_a_unary_call_is()
    {
        var request = Good();
        request.Sampling.Temperature = -1;
        var failure = await Rpc.FailureAsync(() => Rpc.ReadAsync(_server.Completions.Generate(request)));
        failure.Is(StatusCode.InvalidArgument, ErrorReason.InvalidField);
    }

    [Fact]
    public async Task Many_faults_fit_the_trailers_and_are_counted()
    {
        var request = Good();
        for (uint id = 2000; id < 2900; id++) request.Sampling.LogitBias[id] = 1;
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.InvalidArgument, ErrorReason.InvalidField);
        Assert.Equal(16, failure.Fields.Count);
        Assert.Equal("900", failure.Info!.Metadata["violations"]);
    }

    [Theory]
    [InlineData(4096, 1)]
    [InlineData(4000, 97)]
    public async Task Prompt_and_answer_beyond_the_context_are_refused_with_the_numbers(int prompt, int maxTokens)
    {
        var request = Rpc.Ids(maxTokens, [.. Enumerable.Repeat(3u, prompt)]);
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.InvalidArgument, ErrorReason.ContextExceeded);
        Assert.Equal(prompt.ToString(), failure.Info!.Metadata["prompt_tokens"]);
        Assert.Equal(maxTokens.ToString(), failure.Info.Metadata["max_tokens"]);
        Assert.Equal("4096", failure.Info.Metadata["context_tokens_max"]);
    }

    [Fact]
    public async Task A_million_ids_pass_the_transport_and_meet_the_models_limit()
    {
        var request = Rpc.Ids(1, [.. Enumerable.Repeat(1000u, 1_000_000)]);
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.InvalidArgument, ErrorReason.ContextExceeded);
        Assert.Equal("1000000", failure.Info!.Metadata["prompt_tokens"]);
    }

    [Fact]
    public async Task Another_models_name_is_not_found()
    {
        var request = Good();
        request.Model = "other";
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.NotFound, ErrorReason.ModelNotFound);
    }

    [Fact]
    public async Task A_conversation_the_encoding_cannot_express_is_refused_by_message()
    {
        var request = Good();
        request.Chat = Chat(
            new V1.Message { Role = V1.Role.User, Content = { Part("x") } },
            new V1.Message { Role = V1.Role.Assistant, ToolCalls = { new V1.ToolCall { Name = "f", Arguments = "{\"a\": \"\\ud800\"}" } } });
        var failure = await Rpc.FailureAsync(() => _server.Completions.CompleteAsync(request).ResponseAsync);
        failure.Is(StatusCode.InvalidArgument, ErrorReason.ChatEncoding);
        Assert.StartsWith("chat.messages[1]", Assert.Single(failure.Fields), StringComparison.Ordinal);
    }

    private static V1.GenerateRequest Good()
    {
        var request = Rpc.Ids(4);
        request.Sampling = new V1.SamplingOptions();
        request.Output = new V1.OutputOptions();
        return request;
    }

    private static V1.ContentPart Part(string text) => new() { Text = text };

    private static V1.ChatPrompt Chat(params V1.Message[] messages) => new() { Messages = { messages } };

    private static V1.ChatPrompt User(Action<V1.ChatPrompt> change)
    {
        var chat = Chat(new V1.Message { Role = V1.Role.User, Content = { Part("Hi") } });
        change(chat);
        return chat;
    }

    private static void Fill(IDictionary<uint, float> bias, int count)
    {
        for (uint id = 0; id < count; id++) bias[id] = 0;
    }
}

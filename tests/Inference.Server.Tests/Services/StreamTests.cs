using System.Text;
using Google.Protobuf;
using Grpc.Core;
using Inference.Server.Errors;
using Xunit;

namespace Inference.Server.Tests.Services;

/// <summary>What a stream says, and that the unary call says the same.</summary>
public sealed class StreamTests(SharedServer shared) : IClassFixture<SharedServer>
{
    private readonly TestServer _server = shared.Server;

    [Fact]
    public async Task Events_come_in_order_and_add_up()
    {
        var request = Rpc.Ids(40);
        request.RequestId = "mine";
        var events = await Rpc.ReadAsync(_server.Completions.Generate(request));

        Assert.Equal(Enumerable.Range(0, events.Count).Select(i => (ulong)i), events.Select(e => e.Sequence));
        Assert.Equal(V1.GenerateEvent.EventOneofCase.Started, events[0].EventCase);
        Assert.Equal(V1.GenerateEvent.EventOneofCase.Finished, events[^1].EventCase);
        var deltas = events[1..^1].Select(e => e.Delta).ToList();
        Assert.All(deltas, Assert.NotNull);

        var started = events[0].Started;
        Assert.Equal(("mine", "hash", 3), (started.RequestId, started.Model, started.PromptTokens));
        Assert.InRange(started.CachedTokens, 0, 2); // tests of this class share a server, which keeps prefixes
        var ids = new List<uint>();
        foreach (var delta in deltas)
        {
            Assert.Equal((uint)ids.Count, delta.Index);
            ids.AddRange(delta.TokenIds);
        }
        Assert.Equal(40, ids.Count);
        Assert.Equal(ids, Expected([5, 6, 7], 40));
        var bytes = deltas.SelectMany(d => d.Bytes).ToArray();
        var shown = ids.Where(id => !_server.Served.Tokenizer.IsSpecial((int)id));
        Assert.Equal(shown.SelectMany(id => _server.Served.Tokenizer.TokenBytes((int)id).ToArray()), bytes);

        var finished = events[^1].Finished;
        Assert.Equal(V1.FinishReason.Length, finished.Reason);
        Assert.Equal((3, started.CachedTokens, 40), (finished.Usage.PromptTokens, finished.Usage.CachedTokens, finished.Usage.OutputTokens));
        Assert.NotNull(finished.Timings.TimeToFirstToken);
        Assert.True(finished.Timings.Total.ToTimeSpan() >= finished.Timings.TimeToFirstToken.ToTimeSpan());
        Assert.Null(finished.Error);
    }

    [Fact]
    public async Task The_unary_call_gives_the_stream_in_one_message()
    {
        var request = Rpc.Ids(60, 9, 8, 7);
        request.Output = new V1.OutputOptions { TopLogprobs = 2, SpecialTokens = true };
        var events = await Rpc.ReadAsync(_server.Completions.Generate(request));
        var deltas = events.Where(e => e.Delta is not null).Select(e => e.Delta).ToList();
        var response = await _server.Completions.CompleteAsync(request);

        Assert.Equal(string.Concat(deltas.Select(d => d.Text)), response.Text);
        Assert.Equal(deltas.SelectMany(d => d.TokenIds), response.TokenIds);
        Assert.Equal(deltas.SelectMany(d => d.Bytes), response.Bytes);
        Assert.Equal(deltas.SelectMany(d => d.Logprobs), response.Logprobs);
        Assert.Equal(60, response.Logprobs.Count);
        Assert.Equal(events[^1].Finished.Reason, response.Finished.Reason);
        Assert.Equal(Encoding.UTF8.GetString(response.Bytes.Span), response.Text);
    }

    [Fact]
    public async Task Log_probabilities_name_the_chosen_token_first_when_greedy()
    {
        var request = Rpc.Ids(5);
        request.Output = new V1.OutputOptions { TopLogprobs = 3 };
        request.Sampling = new V1.SamplingOptions { Temperature = 0 };
        var response = await _server.Completions.CompleteAsync(request);
        Assert.All(response.Logprobs, l =>
        {
            Assert.Equal(3, l.Top.Count);
            Assert.Equal((l.TokenId, l.Logprob), (l.Top[0].TokenId, l.Top[0].Logprob));
            Assert.True(l.Top[0].Logprob >= l.Top[1].Logprob && l.Top[1].Logprob >= l.Top[2].Logprob && l.Top[0].Logprob <= 0);
            Assert.All(l.Top, t => Assert.Equal(_server.Served.Tokenizer.TokenBytes((int)t.TokenId).ToArray(), t.Bytes));
        });
    }

    [Fact]
    public async Task Output_options_leave_out_what_they_say()
    {
        var request = Rpc.Ids(5);
        request.Output = new V1.OutputOptions { OmitTokenIds = true, OmitBytes = true };
        var response = await _server.Completions.CompleteAsync(request);
        Assert.Empty(response.TokenIds);
        Assert.Empty(response.Bytes);
        Assert.Empty(response.Logprobs);
        Assert.NotEmpty(response.Text);
    }

    [Fact]
    public async Task Control_tokens_are_shown_when_asked_for()
    {
        // Only <｜User｜> can be drawn.
        var request = Rpc.Ids(2);
        request.Sampling = new V1.SamplingOptions { Temperature = 0, LogitBias = { [1015] = 100 } };
        var hidden = await _server.Completions.CompleteAsync(request);
        request.Output = new V1.OutputOptions { SpecialTokens = true };
        var shown = await _server.Completions.CompleteAsync(request);
        Assert.Equal([1015u, 1015u], hidden.TokenIds);
        Assert.Equal(("", "<｜User｜><｜User｜>"), (hidden.Text, shown.Text));
        Assert.Equal(("", "<｜User｜><｜User｜>"), (hidden.Bytes.ToStringUtf8(), shown.Bytes.ToStringUtf8()));
    }

    [Fact]
    public async Task Unset_values_come_from_the_models_file_and_are_reported()
    {
        var response = await _server.Completions.CompleteAsync(new V1.GenerateRequest { TokenIds = new() { Ids = { 4 } }, Stopping = new() { MaxTokens = 1 } });
        var sampling = response.Started.Sampling;
        Assert.Equal(0, sampling.Temperature);  // Pebble's generation_config.json
        Assert.Equal((0, 1, 0, 1), (sampling.TopK, sampling.TopP, sampling.MinP, sampling.RepetitionPenalty));
        Assert.True(sampling.HasSeed && sampling.HasTemperature && sampling.HasPresencePenalty && sampling.HasFrequencyPenalty);
        Assert.Equal([1u], response.Started.Stopping.StopTokenIds);
        Assert.False(response.Started.Stopping.IgnoreEos);
        Assert.NotEmpty(response.Started.RequestId);
    }

    [Fact]
    public async Task An_unset_max_tokens_is_the_default_or_what_is_left()
    {
        await using var server = await TestServer.StartAsync(new Dictionary<string, string> { ["default-max-tokens"] = "20", ["context-max"] = "64" });
        Assert.Equal(20, (await Started(3)).MaxTokens);
        Assert.Equal(4, (await Started(60)).MaxTokens);

        async Task<V1.StoppingOptions> Started(int prompt)
        {
            var request = new V1.GenerateRequest { TokenIds = new() { Ids = { Enumerable.Repeat(3u, prompt) } }, Stopping = new() { IgnoreEos = true } };
            return (await server.Completions.CompleteAsync(request)).Started.Stopping;
        }
    }

    [Fact]
    public async Task A_cache_smaller_than_the_context_is_the_limit_and_the_default_fits_it()
    {
        await using var server = await TestServer.StartAsync(
            new Dictionary<string, string> { ["kv-cache-bytes"] = "1MiB", ["sequences-max"] = "2", ["step-tokens-max"] = "64" },
            new(vocab: 1024, contextMax: 1 << 20, pageRows: 32));
        int limit = (await new V1.Models.ModelsClient(server.Channel()).GetModelAsync(new())).ContextTokensMax;
        Assert.InRange(limit, 256, 1 << 19);
        var request = new V1.GenerateRequest { TokenIds = new() { Ids = { Enumerable.Repeat(3u, limit - 5) } }, Stopping = new() { IgnoreEos = true } };
        Assert.Equal(5, (await server.Completions.CompleteAsync(request)).TokenIds.Count);
        request.Stopping.MaxTokens = 6;
        (await Rpc.FailureAsync(() => server.Completions.CompleteAsync(request).ResponseAsync)).Is(StatusCode.InvalidArgument, ErrorReason.ContextExceeded);
    }

    [Fact]
    public async Task The_reported_seed_repeats_the_draw()
    {
        var request = Rpc.Ids(30);
        request.Sampling = new V1.SamplingOptions { Temperature = 1.5f };
        var first = await _server.Completions.CompleteAsync(request);
        var other = await _server.Completions.CompleteAsync(request);
        request.Sampling = first.Started.Sampling;
        var again = await _server.Completions.CompleteAsync(request);
        Assert.Equal(first.TokenIds, again.TokenIds);
        Assert.NotEqual(first.TokenIds, other.TokenIds);
        Assert.True(first.Started.Sampling.Seed < 1UL << 53);
    }

    [Fact]
    public async Task Zero_is_not_unset()
    {
        var request = Rpc.Ids(12);
        request.Sampling = new V1.SamplingOptions { Temperature = 1, Seed = 0, TopK = 0, MinP = 0, PresencePenalty = 0 };
        var response = await _server.Completions.CompleteAsync(request);
        Assert.Equal(0UL, response.Started.Sampling.Seed);
        Assert.Equal(response.TokenIds, (await _server.Completions.CompleteAsync(request)).TokenIds);
    }

    [Fact]
    public async Task A_stop_string_ends_the_answer_and_is_told()
    {
        var whole = await _server.Completions.CompleteAsync(Rpc.Ids(40));
        string stop = whole.Text[10..13];
        var request = Rpc.Ids(40);
        request.Stopping.Stop.Add(["never in it", stop]);
        var response = await _server.Completions.CompleteAsync(request);
        Assert.Equal(whole.Text[..whole.Text.IndexOf(stop, StringComparison.Ordinal)], response.Text);
        Assert.Equal((V1.FinishReason.Stop, stop), (response.Finished.Reason, response.Finished.Stop));
        request.Stopping.IncludeStop = true;
        response = await _server.Completions.CompleteAsync(request);
        Assert.EndsWith(stop, response.Text, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_stop_token_ends_the_answer_and_is_told()
    {
        uint third = Expected([5, 6, 7], 3)[2];
        var request = Rpc.Ids(40);
        request.Stopping.StopTokenIds.Add(third);
        var response = await _server.Completions.CompleteAsync(request);
        Assert.Equal((V1.FinishReason.Stop, third), (response.Finished.Reason, response.Finished.StopTokenId));
        Assert.Equal(V1.Finished.StopMatchOneofCase.StopTokenId, response.Finished.StopMatchCase);
    }

    [Fact]
    public async Task Sixteen_streams_at_once_say_what_each_says_alone()
    {
        var client = _server.Completions;
        var streams = Enumerable.Range(0, 16).Select(async i =>
        {
            var events = await Rpc.ReadAsync(client.Generate(Rpc.Ids(50, (uint)i + 3, 40, 50)));
            Assert.Equal(Expected([i + 3, 40, 50], 50), events.Where(e => e.Delta is not null).SelectMany(e => e.Delta.TokenIds));
        });
        await Task.WhenAll(streams);
        await _server.UntilAsync(() => _server.IsIdle, "all pages are free");
    }

    [Fact]
    public async Task An_answer_that_fails_ends_in_one_event_and_a_status_and_touches_no_other()
    {
        await using var server = await TestServer.StartAsync(model: new(vocab: 1024, contextMax: 4096, pageRows: 32) { NanToken = 77 });
        var good = Rpc.ReadAsync(server.Completions.Generate(Rpc.Ids(200)));
        var events = new List<V1.GenerateEvent>();
        var failure = await Rpc.FailureAsync(async () =>
        {
            using var call = server.Completions.Generate(Rpc.Ids(20, 5, 77));
            await foreach (var e in call.ResponseStream.ReadAllAsync()) events.Add(e);
        });
        failure.Is(StatusCode.Internal, ErrorReason.GenerationFailed);
        var finished = events[^1].Finished;
        Assert.Equal((V1.FinishReason.Error, ErrorReason.GenerationFailed, false), (finished.Reason, finished.Error.Reason, finished.Error.Retryable));
        Assert.Equal(V1.FinishReason.Length, (await good)[^1].Finished.Reason);
    }

    [Fact]
    public async Task Text_is_encoded_with_its_control_tokens_unless_told_otherwise()
    {
        var request = new V1.GenerateRequest { Text = "<｜User｜>Hi", Stopping = new() { MaxTokens = 1 } };
        int read = (await _server.Completions.CompleteAsync(request)).Started.PromptTokens;
        request.PlainText = true;
        int plain = (await _server.Completions.CompleteAsync(request)).Started.PromptTokens;
        Assert.True(plain > read, $"{plain} tokens as plain text, {read} with control tokens");
    }

    [Fact]
    public async Task A_conversation_is_the_prompt_that_render_chat_shows()
    {
        var chat = new V1.ChatPrompt
        {
            Messages =
            {
                new V1.Message { Role = V1.Role.System, Content = { new V1.ContentPart { Text = "Be brief." } } },
                new V1.Message { Role = V1.Role.User, Content = { new V1.ContentPart { Text = "What is <｜User｜>?" } } },
            },
            Thinking = V1.ThinkingMode.Off,
        };
        var rendered = await new V1.Tokenization.TokenizationClient(_server.Channel()).RenderChatAsync(new V1.RenderChatRequest { Chat = chat });
        var byChat = await _server.Completions.CompleteAsync(new V1.GenerateRequest { Chat = chat, Stopping = new() { MaxTokens = 8 } });
        var byIds = await _server.Completions.CompleteAsync(
            new V1.GenerateRequest { TokenIds = new() { Ids = { rendered.TokenIds } }, Stopping = new() { MaxTokens = 8 } });
        Assert.Equal("<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is <｜User｜>?<｜Assistant｜></think>", rendered.Text);
        Assert.Equal(rendered.TokenCount, byChat.Started.PromptTokens);
        Assert.Equal(byIds.TokenIds, byChat.TokenIds);
        Assert.Equal(1, rendered.TokenIds.Count(id => id == 1015));  // the turn's own; the one in the content is text
    }

    /// <summary>What the model says greedily, by its definition.</summary>
    private List<uint> Expected(int[] prompt, int count)
    {
        var prefix = prompt.ToList();
        var logits = new float[1024];
        for (int i = 0; i < count; i++)
        {
            _server.Model.Logits(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(prefix), logits);
            prefix.Add(Array.IndexOf(logits, logits.Max()));
        }
        return [.. prefix.Skip(prompt.Length).Select(id => (uint)id)];
    }
}

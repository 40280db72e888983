using System.Text;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Files that are refused, with the reason and the way out, and what is read from a folder.</summary>
public sealed class LoadingTests
{
    public static TheoryData<string, Action<JsonObject>, string> BrokenFiles => new()
    {
        { "no model", json => json.Remove("model"), "has no \"model\"" },
        { "another model", json => json["model"]!["type"] = "Unigram", "the model type is \"Unigram\"" },
        { "dropout", json => json["model"]!["dropout"] = 0.1, "dropped at random" },
        { "sub-word prefix", json => json["model"]!["continuing_subword_prefix"] = "##", "continuing_subword_prefix" },
        { "word suffix", json => json["model"]!["end_of_word_suffix"] = "</w>", "end_of_word_suffix" },
        { "vocabulary as a list", json => json["model"]!["vocab"] = new JsonArray(), "not an object of tokens and ids" },
        { "negative id", json => json["model"]!["vocab"]!["hello"] = -1, "expected a whole number" },
        { "id beyond an int", json => json["model"]!["vocab"]!["hello"] = 1e300, "expected a whole number" },
        { "id as text", json => json["model"]!["vocab"]!["hello"] = "7", "expected a whole number" },
        { "huge id", json => json["model"]!["vocab"]!["hello"] = 2_000_000_000, "expected a whole number" },
        { "huge added id", json => json["added_tokens"]![0]!["id"] = 2_000_000_000, "far beyond the number of tokens" },
        { "an id twice", json => json["model"]!["vocab"]!["hello"] = 0, "two tokens have the id 0" },
        { "empty token", json => json["model"]!["vocab"]![""] = 300, "empty string" },
        { "missing byte", json => { json["model"]!["vocab"]!.AsObject().Remove("a"); json["model"]!["merges"]!.AsArray().RemoveAt(5); }, "lacks the byte 61" },
        { "merge of an unknown part", json => json["model"]!["merges"]!.AsArray().Add("q zz"), "is not in the vocabulary" },
        { "merge without result", json => json["model"]!["merges"]!.AsArray().Add("q q"), "is not in the vocabulary" },
        { "merge twice", json => json["model"]!["merges"]!.AsArray().Add("h e"), "listed twice" },
        { "merge of three", json => json["model"]!["merges"]!.AsArray().Add("h e l"), "not two tokens" },
        { "merge without a space", json => json["model"]!["merges"]!.AsArray().Add("he"), "not two tokens" },
        { "merge as a triple", json => json["model"]!["merges"]!.AsArray().Add(new JsonArray("h", "e", "l")), "not a pair" },
        { "merge as a number", json => json["model"]!["merges"]!.AsArray().Add(3), "expected a string" },
        { "unknown pattern", json => Split(json)["pattern"]!["Regex"] = "(a+)+$", "the split pattern is not known" },
        { "split at a string", json => Split(json)["pattern"] = new JsonObject { ["String"] = " " }, "splits at a plain string" },
        { "split that drops", json => Split(json)["behavior"] = "Removed", "does not keep matches" },
        { "unknown step", json => Split(json)["type"] = "Digits", "the pre-tokenizer step \"Digits\"" },
        { "byte level twice", json => json["pre_tokenizer"]!["pretokenizers"]![1]!["use_regex"] = true, "splits or prefixes" },
        { "unknown normaliser", json => json["normalizer"] = new JsonObject { ["type"] = "Lowercase" }, "the normaliser \"Lowercase\"" },
        { "regex normaliser", json => json["normalizer"] = JsonNode.Parse("""{"type":"Replace","pattern":{"Regex":"(a+)+$"},"content":""}"""), "replaces a regular expression" },
        { "long normaliser", json => json["normalizer"] = new JsonObject { ["type"] = "Prepend", ["prepend"] = new string('x', 1000) }, "has 1000 bytes" },
        { "many normalisers", json => json["normalizer"] = Sequence(5, """{"type":"NFC"}"""), "more than 4 steps" },
        { "growth on growth", json => json["normalizer"] = Sequence(2, """{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaaaaaaaaa"}"""), "more than one Replace" },
        { "no decoder", json => json["decoder"] = null, "does not fit the ByteLevel" },
        { "unknown post-processor", json => json["post_processor"] = new JsonObject { ["type"] = "BertProcessing" }, "the post-processor \"BertProcessing\"" },
        { "template id", json => json["post_processor"]!["special_tokens"]!["<|end|>"]!["ids"]![0] = 100000, "expected a whole number from 0 to 263" },
        { "template without text", json => json["post_processor"]!["single"]!.AsArray().RemoveAt(1), "does not hold the text" },
        { "template token", json => json["post_processor"]!["special_tokens"] = new JsonObject(), "has no \"<|end|>\"" },
        { "added token twice", json => json["added_tokens"]![1]!["content"] = "<|end|>", "listed twice" },
        { "added id twice", json => json["added_tokens"]![1]!["id"] = 262, "listed twice" },
        { "added id of an entry", json => json["added_tokens"]![0]!["id"] = 5, "the model's vocabulary says otherwise" },
        { "added token with another id", json => json["model"]!["vocab"]!["<think>"] = 300, "the model's vocabulary says otherwise" },
        { "added token without flags", json => json["added_tokens"]![0]!.AsObject().Remove("special"), "has no \"special\"" },
        { "empty added token", json => json["added_tokens"]![0]!["content"] = "", "the content has 0 bytes" },
        { "long added token", json => json["added_tokens"]![0]!["content"] = new string('x', 257), "the content has 257 bytes" },
        { "forgeable added token", json => { json["added_tokens"]![1]!["content"] = "hello"; json["added_tokens"]![1]!["id"] = 259; }, "a user could forge it" },
        { "forgeable byte", json => { json["added_tokens"]![1]!["content"] = "a"; json["added_tokens"]![1]!["id"] = 97; }, "a user could forge it" },
    };

    [Theory]
    [MemberData(nameof(BrokenFiles), DisableDiscoveryEnumeration = true)]
    public void A_broken_file_is_refused_with_its_name_the_reason_and_a_way_out(string what, Action<JsonObject> breakIt, string reason)
    {
        var json = TinyTokenizer.ByteLevel();
        TinyTokenizer.Load(json); // complete until it is broken
        breakIt(json);
        var error = Assert.Throws<TokenizerException>(() => TinyTokenizer.Load(json));
        Assert.Equal("tiny.json", error.File);
        Assert.True(error.Reason.Contains(reason, StringComparison.Ordinal), $"{what}: {error.Reason}");
        Assert.NotEmpty(error.WayOut);
    }

    [Theory]
    [InlineData("")]
    [InlineData("{")]
    [InlineData("[]")]
    [InlineData("null")]
    [InlineData("{\"model\":1}")]
    [InlineData("{\"model\":{},\"model\":{}}")]
    [InlineData("{\"\\ud83d\":1}")]
    public void What_is_no_tokenizer_json_is_refused(string json) =>
        Assert.Throws<TokenizerException>(() => TokenizerFactory.FromJson(Encoding.UTF8.GetBytes(json)));

    [Fact]
    public void Text_that_is_half_a_surrogate_pair_is_refused()
    {
        var json = TinyTokenizer.ByteLevel().ToJsonString();
        foreach (var place in (string[])["\"content\":\"\\u003C|end|\\u003E\"", "\"hell\":", "\"merges\":[\"h e\""])
        {
            Assert.Contains(place, json, StringComparison.Ordinal);
            var broken = json.Replace(place, place.Replace("h", "\\ud83d", StringComparison.Ordinal).Replace("|end|", "\\ud83d", StringComparison.Ordinal), StringComparison.Ordinal);
            Assert.Throws<TokenizerException>(() => TokenizerFactory.FromJson(Encoding.UTF8.GetBytes(broken)));
        }
    }

    [Fact]
    public void Deep_nesting_and_invalid_utf_8_are_refused()
    {
        Assert.Throws<TokenizerException>(() => TokenizerFactory.FromJson(Encoding.UTF8.GetBytes(new string('[', 1_000_000))));
        var json = Encoding.UTF8.GetBytes(TinyTokenizer.ByteLevel().ToJsonString(new() { Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping }));
        json[json.AsSpan().IndexOf("hello"u8)] = 0xFF;
        Assert.Throws<TokenizerException>(() => TokenizerFactory.FromJson(json));
    }

    [Fact]
    public void An_unknown_pattern_lists_the_supported_ones()
    {
        var json = TinyTokenizer.ByteLevel();
        Split(json)["pattern"]!["Regex"] = @"\w+";
        var error = Assert.Throws<TokenizerException>(() => TinyTokenizer.Load(json));
        foreach (var family in (string[])["DeepSeek", "Llama-3", "Qwen3.5", "o200k", "Kimi", "tekken", "GPT-2"])
            Assert.Contains(family, error.WayOut, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("model", "byte_fallback is set, but the vocabulary lacks <0x41>")]
    [InlineData("unknown", "neither byte fallback nor an unknown token")]
    [InlineData("decoder", "the decoder (Replace, Strip) is not supported")]
    [InlineData("marker", "does not turn U+2581 into a space")]
    [InlineData("strip", "expected a whole number from 0 to 1")]
    [InlineData("metaspace", "the prepend_scheme \"sometimes\"")]
    [InlineData("contradiction", "contradict each other")]
    [InlineData("replacement", "replaces spaces by \"_\"")]
    [InlineData("split", "the pre-tokenizer (Split) is not supported")]
    public void A_broken_byte_fallback_file_is_refused(string what, string reason)
    {
        var json = TinyTokenizer.ByteFallback();
        TinyTokenizer.Load(json);
        var metaspace = JsonNode.Parse("""{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}""")!;
        switch (what)
        {
            case "model":
                json["model"]!["vocab"]!.AsObject().Remove("<0x41>");
                break;
            case "unknown":
                json["model"]!["byte_fallback"] = false;
                json["model"]!["unk_token"] = null;
                break;
            case "decoder":
                json["decoder"]!["decoders"]!.AsArray().RemoveAt(1);
                json["decoder"]!["decoders"]!.AsArray().RemoveAt(1);
                break;
            case "marker":
                json["decoder"]!["decoders"]![0]!["content"] = "_";
                break;
            case "strip":
                json["decoder"]!["decoders"]![3]!["start"] = 2;
                break;
            case "metaspace":
                metaspace["prepend_scheme"] = "sometimes";
                json["pre_tokenizer"] = metaspace;
                break;
            case "contradiction":
                metaspace["add_prefix_space"] = false;
                json["pre_tokenizer"] = metaspace;
                break;
            case "replacement":
                metaspace["replacement"] = "_";
                json["pre_tokenizer"] = metaspace;
                break;
            case "split":
                json["pre_tokenizer"] = new JsonObject { ["type"] = "Split" };
                break;
        }
        var error = Assert.Throws<TokenizerException>(() => TinyTokenizer.Load(json));
        Assert.True(error.Reason.Contains(reason, StringComparison.Ordinal), error.Reason);
    }

    [Fact]
    public void Folders_without_a_tokenizer_are_refused()
    {
        using var folder = new TemporaryFolder();
        Assert.Contains("no such folder", Refused(folder["missing"]), StringComparison.Ordinal);
        Assert.Contains("no tokenizer.json", Refused(folder.Path), StringComparison.Ordinal);
        File.WriteAllBytes(folder["tokenizer.model"], [0x0A, 0x0E, 0x0A, 0x05, (byte)'<']);
        Assert.Contains("SentencePiece", Refused(folder.Path), StringComparison.Ordinal);
        File.WriteAllText(folder["tokenizer.model"], "IQ== 0\n");
        Assert.Contains("config.json gives no", Refused(folder.Path), StringComparison.Ordinal);
        File.WriteAllText(folder["config.json"], """{"pattern":"x+","special_tokens":{}}""");
        Assert.Contains("pattern is not known", Refused(folder.Path), StringComparison.Ordinal);
        File.WriteAllText(folder["tokenizer_config.json"], "[]");
        Assert.Contains("expected an object", Refused(folder.Path), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("IQ== 0", "lacks the byte 00")]
    [InlineData("IQ==0", "line 1 is not")]
    [InlineData("IQ== x", "line 1 is not")]
    [InlineData("IQ== -1", "line 1 is not")]
    [InlineData("I= 1", "line 1 is not")]
    [InlineData("IQ== 0\nIg== 0", "two entries have the rank 0")]
    [InlineData("IQ== 2000000000", "far beyond the number of tokens")]
    [InlineData("all\nIQ== 300", "is listed twice")]
    public void A_broken_rank_file_is_refused(string lines, string reason)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder["ranks"], lines.Replace("all", string.Join('\n', AllBytes()), StringComparison.Ordinal));
        var error = Assert.Throws<TokenizerException>(() => TokenizerFactory.LoadTiktoken(folder["ranks"], Inference.Runtime.Tokenization.Loading.SplitPatterns.O200k, new Dictionary<string, int>()));
        Assert.Equal(folder["ranks"], error.File);
        Assert.True(error.Reason.Contains(reason, StringComparison.Ordinal), error.Reason);
    }

    [Fact]
    public void A_rank_file_with_long_entries_or_wrong_control_tokens_is_refused()
    {
        using var folder = new TemporaryFolder();
        File.WriteAllLines(folder["long"], AllBytes().Append(Convert.ToBase64String(new byte[513]) + " 256"));
        File.WriteAllLines(folder["ranks"], AllBytes());
        Assert.Contains("has 513 bytes", Load("long", []).Reason, StringComparison.Ordinal);
        Assert.Contains("says otherwise", Load("ranks", new() { ["<|a|>"] = 7 }).Reason, StringComparison.Ordinal);
        Assert.Contains("listed twice", Load("ranks", new() { ["<|a|>"] = 256, ["<|b|>"] = 256 }).Reason, StringComparison.Ordinal);
        Assert.Contains("far beyond", Load("ranks", new() { ["<|a|>"] = int.MaxValue }).Reason, StringComparison.Ordinal);
        Assert.Contains("the id -1", Load("ranks", new() { ["<|a|>"] = -1 }).Reason, StringComparison.Ordinal);
        Assert.Contains("no bytes", Load("ranks", new() { [""] = 256 }).Reason, StringComparison.Ordinal);

        TokenizerException Load(string name, Dictionary<string, int> special) => Assert.Throws<TokenizerException>(
            () => TokenizerFactory.LoadTiktoken(folder[name], Inference.Runtime.Tokenization.Loading.SplitPatterns.O200k, special));
    }

    [Fact]
    public void Names_of_tokens_are_read_as_text_or_as_objects()
    {
        Assert.Equal(new TokenNames("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), TokenizerFixtures.Load("deepseek-v3").Names);
        Assert.Equal(new TokenNames(null, "<|im_end|>", "<|endoftext|>"), TokenizerFixtures.Load("qwen2").Names);
        Assert.Equal(new TokenNames("<s>", "</s>", null, "<unk>"), TokenizerFixtures.Load("mixtral").Names);
    }

    [Fact]
    public void Ids_spellings_and_flags_can_be_asked_for()
    {
        var tokenizer = TokenizerFixtures.Load("deepseek-v3");
        Assert.Equal(1417, tokenizer.VocabSize);
        Assert.Equal(1, tokenizer.IdOf("<｜end▁of▁sentence｜>"));
        Assert.Equal(223, tokenizer.IdOf("Ġ"));
        Assert.Null(tokenizer.IdOf("<no such token>"));
        Assert.Equal(" ", tokenizer.TokenText(223));
        Assert.Equal(" "u8.ToArray(), tokenizer.TokenBytes(223).ToArray());
        Assert.Equal("<｜end▁of▁sentence｜>", tokenizer.TokenText(1));
        Assert.True(tokenizer.IsSpecial(1));
        Assert.False(tokenizer.IsSpecial(1402));
        Assert.True(tokenizer.IsAdded(1402));
        Assert.False(tokenizer.IsAdded(223));
        foreach (var id in (int[])[-1, int.MinValue, 1417, int.MaxValue])
        {
            Assert.False(tokenizer.HasToken(id));
            Assert.False(tokenizer.IsSpecial(id));
            Assert.Null(tokenizer.TokenText(id));
            Assert.True(tokenizer.TokenBytes(id).IsEmpty);
        }
        Assert.Equal(0, TokenizerFixtures.Load("tiktoken-llama4-like").IdOf("!"));
    }

    private static JsonObject Sequence(int count, string step) => new()
    {
        ["type"] = "Sequence",
        ["normalizers"] = new JsonArray([.. Enumerable.Range(0, count).Select(_ => JsonNode.Parse(step))]),
    };

    private static JsonObject Split(JsonObject json) => json["pre_tokenizer"]!["pretokenizers"]![0]!.AsObject();

    private static IEnumerable<string> AllBytes() => Enumerable.Range(0, 256).Select(value => $"{Convert.ToBase64String([(byte)value])} {value}");

    private static string Refused(string folder) => Assert.Throws<TokenizerException>(() => TokenizerFactory.Load(folder)).Message;
}

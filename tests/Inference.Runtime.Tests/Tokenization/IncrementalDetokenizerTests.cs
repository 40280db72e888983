using System.Text;
using System.Text.Json;
using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Streams of ids: stop strings, held-back text, cost. What the text is, DecodingTests compares with the reference.</summary>
public sealed class IncrementalDetokenizerTests
{
    private const int StreamsPerFamily = 400;

    public static TheoryData<string> Families => ["pebble", "deepseek-v3", "mixtral", "mixtral-metaspace", "qwen3.5", "tiktoken-llama4-like"];

    [Theory]
    [MemberData(nameof(Families))]
    public void Random_ids_stream_to_the_text_of_whole_decoding(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var random = new Random(21);
        for (var i = 0; i < StreamsPerFamily; i++)
        {
            var ids = RandomIds(tokenizer, random, 40);
            var text = Stream(tokenizer, ids, new DetokenizerOptions(), (_, _) => { });
            var whole = tokenizer.Decode(ids);
            if (!(TokenizerFixtures.IsByteFallback(family) && whole.Contains('\uFFFD', StringComparison.Ordinal)))
                Assert.True(whole == text, $"stream {i} [{string.Join(",", ids)}]: \"{text}\" instead of \"{whole}\"");
        }
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void A_stop_string_cuts_the_text_wherever_tokens_end(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var random = new Random(22);
        var stopped = 0;
        for (var i = 0; i < StreamsPerFamily; i++)
        {
            var ids = RandomIds(tokenizer, random, 30);
            var whole = Stream(tokenizer, ids, new DetokenizerOptions(), (_, _) => { });
            var stops = RandomStops(whole, random);
            var (end, stop) = FirstStop(whole, stops);
            var before = end < 0 ? whole : whole[..(end - stops[stop].Length)];
            var with = end < 0 ? whole : whole[..end];
            var matcher = new StopMatcher(stops);
            var described = $"stream {i} [{string.Join(",", ids)}], stops {JsonSerializer.Serialize(stops)}";
            var plain = tokenizer.CreateDetokenizer();
            var (read, known) = (0, "");
            var cut = Stream(tokenizer, ids, new DetokenizerOptions(Stops: matcher), (d, emitted) =>
            {
                known += plain.Append(ids[read++]).ToString();
                var expected = d.IsStopped ? before : known[..^HeldBack(known, stops)];
                Assert.True(emitted == expected, $"{described}, token {read}: {JsonSerializer.Serialize(emitted)} instead of {JsonSerializer.Serialize(expected)}");
            });
            Assert.True(before == cut, $"{described}: {JsonSerializer.Serialize(cut)} instead of {JsonSerializer.Serialize(before)}");
            var included = Stream(tokenizer, ids, new DetokenizerOptions(Stops: matcher, IncludeStop: true), (d, _) => Assert.True(!d.IsStopped || d.StopIndex == stop, described));
            Assert.True(with == included, $"{described}, included: {JsonSerializer.Serialize(included)}");
            stopped += end >= 0 ? 1 : 0;
        }
        Assert.InRange(stopped, StreamsPerFamily / 4, StreamsPerFamily);
    }

    [Fact]
    public void The_end_that_may_begin_a_stop_string_is_held_back_and_no_more()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(Stops: new StopMatcher(["\n\nEND", "\nE"])));
        var emitted = Letters("x\n").Select(id => detokenizer.Append(id).ToString()).ToArray();
        Assert.Equal(["x", ""], emitted);
        Assert.False(detokenizer.IsDrained);
        Assert.Equal("", detokenizer.Append(Letters("\n")[0]).ToString());
        Assert.Equal("\n\n!", detokenizer.Append(Letters("!")[0]).ToString()); // neither goes on
        Assert.Equal("\n", string.Concat(Letters("\n\nE").Select(id => detokenizer.Append(id).ToString())));
        Assert.True(detokenizer.IsStopped);
        Assert.Equal("\nE", detokenizer.StopString);
        Assert.Equal(1, detokenizer.StopIndex);
        Assert.Equal("", detokenizer.Append(Letters("a")[0]).ToString());
        Assert.Equal("", detokenizer.Flush().ToString());

        List<int> Letters(string text) => [.. text.Select(c => tokenizer.Encode(c.ToString(), AddedTokenPolicy.None)[0])];
    }

    [Fact]
    public void Flush_gives_what_was_held_back_when_no_stop_string_came()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(Stops: new StopMatcher(["abc"])));
        var text = string.Concat(tokenizer.Encode("x ab", AddedTokenPolicy.None).Select(id => detokenizer.Append(id).ToString()));
        Assert.Equal("x ", text);
        Assert.Equal("ab", detokenizer.Flush().ToString());
        Assert.True(detokenizer.IsDrained);
        Assert.Equal("", detokenizer.Flush().ToString());
    }

    [Fact]
    public void A_character_is_emitted_when_its_last_byte_is_there()
    {
        var tokenizer = TinyTokenizer.Load(TinyTokenizer.ByteLevel());
        var detokenizer = tokenizer.CreateDetokenizer();
        var texts = new List<string>();
        foreach (var value in "🙂é"u8)
        {
            texts.Add(detokenizer.Append(value).ToString());
            Assert.Equal([value], detokenizer.LastTokenBytes.ToArray());
        }
        Assert.Equal(["", "", "", "🙂", "", "é"], texts);
        Assert.Equal("", detokenizer.Append(0xF0).ToString());
        Assert.Equal([0xF0], detokenizer.PendingBytes.ToArray());
        Assert.Equal("", detokenizer.Append(0x9F).ToString());
        Assert.Equal("\uFFFDa", detokenizer.Append('a').ToString()); // one ill-formed part
        detokenizer.Append(0xE4);
        Assert.Equal("\uFFFD", detokenizer.Flush().ToString());
    }

    [Fact]
    public void Special_tokens_are_kept_or_left_out_as_asked()
    {
        var tokenizer = TokenizerFixtures.Load("deepseek-v3");
        var ids = tokenizer.Encode("a<think>b</think><｜end▁of▁sentence｜>", AddedTokenPolicy.All);
        Assert.Equal("a<think>b</think><｜end▁of▁sentence｜>", Stream(tokenizer, ids.ToArray(), new DetokenizerOptions(), (_, _) => { }));
        Assert.Equal("a<think>b</think>", Stream(tokenizer, ids.ToArray(), new DetokenizerOptions(SkipSpecial: true), (_, _) => { }));
        var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(SkipSpecial: true));
        Assert.Equal("", detokenizer.Append(tokenizer.IdOf("<｜end▁of▁sentence｜>")!.Value).ToString());
        Assert.Equal([], detokenizer.LastTokenBytes.ToArray());
        Assert.Equal("", detokenizer.Append(-1).ToString());
        Assert.Equal("", detokenizer.Append(int.MaxValue).ToString());
    }

    [Fact]
    public void A_stream_that_continues_a_text_keeps_its_first_space()
    {
        var tokenizer = TokenizerFixtures.Load("mixtral");
        var ids = tokenizer.Encode("hi there", AddedTokenPolicy.None).ToArray();
        Assert.Equal("hi there", Stream(tokenizer, ids, new DetokenizerOptions(), (_, _) => { }));
        Assert.Equal(" hi there", Stream(tokenizer, ids, new DetokenizerOptions(ContinuesText: true), (_, _) => { }));
    }

    [Fact]
    public void Reading_a_token_allocates_nothing()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var ids = tokenizer.Encode("The quick brown fox, 123 times: é🙂 and so on.\n", AddedTokenPolicy.None);
        var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(Stops: new StopMatcher(["never said", "nor this"])));
        Read(50);
        var before = GC.GetAllocatedBytesForCurrentThread();
        Read(1000);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);

        void Read(int times)
        {
            for (var i = 0; i < times; i++)
            {
                foreach (var id in ids)
                    detokenizer.Append(id);
            }
        }
    }

    [Fact]
    public void Useless_stop_strings_are_refused()
    {
        Assert.Throws<ArgumentException>(() => new StopMatcher(["a", ""]));
        Assert.Throws<ArgumentException>(() => new StopMatcher(["a\ud83d"]));
        Assert.Throws<ArgumentException>(() => new StopMatcher(["\ude42b"]));
        Assert.Throws<ArgumentException>(() => new StopMatcher([new string('a', StopMatcher.TotalLengthMax + 1)]));
        Assert.Equal(["🙂"], new StopMatcher(["🙂"]).Stops);
    }

    [Fact]
    public void The_longest_stop_strings_are_matched_in_linear_time()
    {
        // Each unit falls back through the whole pattern: quadratic without the automaton.
        var tokenizer = TinyTokenizer.Load(TinyTokenizer.ByteLevel());
        var stop = new string('a', StopMatcher.TotalLengthMax - 1) + "b";
        var detokenizer = tokenizer.CreateDetokenizer(new DetokenizerOptions(Stops: new StopMatcher([stop])));
        var length = 0;
        for (var i = 0; i < 2; i++)
        {
            for (var k = 0; k < StopMatcher.TotalLengthMax - 1; k += 2)
                length += detokenizer.Append(261).Length;
            length += detokenizer.Append('c').Length;
        }
        Assert.Equal(2 * (StopMatcher.TotalLengthMax + 1), length);
        Assert.False(detokenizer.IsStopped);
    }

    private static string Stream(ModelTokenizer tokenizer, int[] ids, DetokenizerOptions options, Action<IncrementalDetokenizer, string> afterEach)
    {
        var detokenizer = tokenizer.CreateDetokenizer(options);
        var text = new StringBuilder();
        foreach (var id in ids)
        {
            text.Append(detokenizer.Append(id));
            Assert.False(text.Length > 0 && char.IsHighSurrogate(text[^1]));
            afterEach(detokenizer, text.ToString());
        }
        return text.Append(detokenizer.Flush()).ToString();
    }

    // Length of the longest end of the text that begins a stop string.
    private static int HeldBack(string text, List<string> stops) => Enumerable.Range(0, text.Length + 1)
        .First(start => start == text.Length || stops.Any(stop => stop.StartsWith(text[start..], StringComparison.Ordinal))) is var first ? text.Length - first : 0;

    private static int[] RandomIds(ModelTokenizer tokenizer, Random random, int most)
    {
        var ids = new int[random.Next(1, most)];
        for (var i = 0; i < ids.Length; i++)
            ids[i] = random.Next(3) == 0 ? random.Next(300) : random.Next(tokenizer.VocabSize + 2);
        return ids;
    }

    // Mostly parts of the text, some of them changed at the end, so that beginnings of stop strings are common.
    private static List<string> RandomStops(string text, Random random)
    {
        var stops = new List<string>();
        for (var count = random.Next(1, 5); count > 0; count--)
        {
            var start = random.Next(text.Length + 1);
            var stop = text[start..Math.Min(text.Length, start + random.Next(1, 8))];
            if (stop.Length > 0 && !char.IsLowSurrogate(stop[0]) && !char.IsHighSurrogate(stop[^1]))
                stops.Add(random.Next(3) == 0 ? stop + "x" : stop);
        }
        if (stops.Count == 0)
            stops.Add("no such text");
        return stops;
    }

    // The first place where a stop string ends, and the longest of those that end there.
    private static (int End, int Stop) FirstStop(string text, List<string> stops)
    {
        for (var end = 1; end <= text.Length; end++)
        {
            var stop = Enumerable.Range(0, stops.Count).Where(i => text.AsSpan(0, end).EndsWith(stops[i])).OrderByDescending(i => stops[i].Length).FirstOrDefault(-1);
            if (stop >= 0)
                return (end, stop);
        }
        return (-1, -1);
    }
}

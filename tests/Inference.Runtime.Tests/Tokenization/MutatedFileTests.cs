using System.Collections.Concurrent;
using System.Diagnostics;
using System.Text;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;
using Inference.Runtime.Tokenization.AddedTokens;
using Inference.Runtime.Tokenization.Loading;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Hostile files: every one loads or is refused by a typed error, in bounded time; what loads also works.</summary>
public sealed class MutatedFileTests
{
    private const int TreeMutations = 60_000;
    private const int ByteMutations = 25_000;
    private const int RankFileMutations = 10_000;
    private const int ConfigMutations = 5_000;

    // One file takes about half a millisecond; a second on a busy machine is still a bound, and a hang is none.
    private static readonly TimeSpan LongestLoad = TimeSpan.FromSeconds(20);

    private const string Sample = "hello  wörld 🙂 e\u0301 <|end|><think> aaaa\n123 \0";

    [Fact]
    public void Trees_with_random_changes_load_or_are_refused() => Run(TreeMutations, seed: 1, random =>
    {
        var json = random.Next(3) == 0 ? TinyTokenizer.ByteFallback() : TinyTokenizer.ByteLevel();
        for (var changes = random.Next(1, 4); changes > 0; changes--)
            ChangeTree(json, random);
        return () => TokenizerFactory.FromJson(Encoding.UTF8.GetBytes(json.ToJsonString()));
    });

    [Fact]
    public void Files_with_random_bytes_changed_load_or_are_refused()
    {
        byte[][] files = [Bytes(TinyTokenizer.ByteLevel()), Bytes(TinyTokenizer.ByteFallback())];
        Run(ByteMutations, seed: 2, random =>
        {
            var bytes = ChangeBytes(files[random.Next(files.Length)], random);
            return () => TokenizerFactory.FromJson(bytes);
        });
    }

    [Fact]
    public void Rank_files_with_random_bytes_changed_load_or_are_refused()
    {
        var lines = Enumerable.Range(0, 256).Select(value => $"{Convert.ToBase64String([(byte)value])} {value}").ToList();
        foreach (var entry in (string[])["he", "ll", "hell", "hello", "aa", "aaaa", " w"])
            lines.Add($"{Convert.ToBase64String(Encoding.UTF8.GetBytes(entry))} {lines.Count}");
        var file = Encoding.UTF8.GetBytes(string.Join('\n', lines));
        List<AddedToken> special = [new AddedToken(lines.Count, "<|end|>", Special: true)];
        Run(RankFileMutations, seed: 3, random =>
        {
            var bytes = ChangeBytes(file, random);
            return () => TiktokenFile.Read("ranks", bytes, SplitPatterns.O200k, special, new TokenNames());
        });
    }

    [Fact]
    public void Configs_with_random_bytes_changed_are_read_or_refused()
    {
        byte[][] files =
        [
            File.ReadAllBytes(Path.Combine(TokenizerFixtures.FolderOf("deepseek-v3"), "tokenizer_config.json")),
            File.ReadAllBytes(Path.Combine(TokenizerFixtures.FolderOf("tiktoken-llama4-like"), "config.json")),
        ];
        Run(ConfigMutations, seed: 4, random =>
        {
            var bytes = ChangeBytes(files[random.Next(files.Length)], random);
            return () =>
            {
                TokenizerConfigJson.Read("config", bytes);
                TokenizerConfigJson.ReadRankFileSettings("config", bytes);
                return null;
            };
        });
    }

    [Fact]
    public void Files_made_to_be_slow_are_not()
    {
        // A chain of merges each of which needs the one before; a token as long as the file; all entries behind one prefix.
        var chain = TinyTokenizer.ByteLevel();
        var (vocabulary, merges) = (chain["model"]!["vocab"]!.AsObject(), chain["model"]!["merges"]!.AsArray());
        for (var length = 3; length < 1500; length++)
        {
            vocabulary[new string('a', length)] = 300 + length;
            merges.Add(new JsonArray(new string('a', length - 1), "a"));
        }
        var watch = Stopwatch.StartNew();
        TinyTokenizer.Load(chain).Encode(new string('a', 100_000), AddedTokenPolicy.None);

        var longToken = TinyTokenizer.ByteLevel();
        longToken["model"]!["vocab"]![new string('a', 4_000_000)] = 270;
        TinyTokenizer.Load(longToken).Encode(new string('a', 100_000), AddedTokenPolicy.None);

        var manyAdded = TinyTokenizer.ByteLevel();
        for (var i = 0; i < 5_000; i++)
            manyAdded["added_tokens"]!.AsArray().Add(TinyTokenizer.Added(300 + i, new string('<', 200) + i, special: true));
        TinyTokenizer.Load(manyAdded).Encode(new string('<', 100_000), AddedTokenPolicy.All);
        Assert.True(watch.Elapsed < LongestLoad, $"took {watch.Elapsed}");
    }

    private static void Run(int count, int seed, Func<Random, Func<ModelTokenizer?>> mutate)
    {
        var failures = new ConcurrentBag<string>();
        var (loaded, refused) = (0, 0);
        Parallel.For(0, count, new ParallelOptions { MaxDegreeOfParallelism = Environment.ProcessorCount }, i =>
        {
            var watch = Stopwatch.StartNew();
            try
            {
                if (mutate(new Random((seed * 1_000_003) + i))() is { } tokenizer)
                    Use(tokenizer);
                Interlocked.Increment(ref loaded);
            }
            catch (TokenizerException)
            {
                Interlocked.Increment(ref refused);
            }
            catch (Exception e)
            {
                failures.Add($"seed {seed}, file {i}: {e}");
            }
            if (watch.Elapsed > LongestLoad)
                failures.Add($"seed {seed}, file {i}: took {watch.Elapsed}");
        });
        Assert.True(failures.IsEmpty, $"{failures.Count} of {count}:\n{string.Join('\n', failures.Take(5))}");
        Assert.True(loaded > count / 100 && refused > count / 10, $"{loaded} loaded and {refused} were refused: the changes are too small or too large");
    }

    // Whatever loads must hold what a tokenizer promises.
    private static void Use(ModelTokenizer tokenizer)
    {
        var ids = tokenizer.Encode(Sample, AddedTokenPolicy.All);
        Assert.All(ids, id => Assert.True(tokenizer.HasToken(id)));
        Assert.DoesNotContain(tokenizer.Encode(Sample, AddedTokenPolicy.None), id => tokenizer.IsAdded(id) && tokenizer.TokenText(id) != "<unk>");
        Assert.Equal(ids.Count, tokenizer.EncodeWithOffsets(Sample, AddedTokenPolicy.All).Count);
        tokenizer.Decode(ids.ToArray());
        var detokenizer = tokenizer.CreateDetokenizer();
        foreach (var id in ids)
            detokenizer.Append(id);
        detokenizer.Flush();
    }

    private static byte[] Bytes(JsonObject json) => Encoding.UTF8.GetBytes(json.ToJsonString());

    private static byte[] ChangeBytes(byte[] file, Random random)
    {
        var bytes = file.ToList();
        for (var changes = random.Next(1, 4); changes > 0; changes--)
        {
            var at = random.Next(bytes.Count);
            switch (random.Next(7))
            {
                case 0:
                    bytes[at] = (byte)random.Next(256);
                    break;
                case 1:
                    bytes[at] ^= (byte)(1 << random.Next(8));
                    break;
                case 2:
                    bytes.RemoveRange(at, Math.Min(bytes.Count - at, random.Next(1, 20)));
                    break;
                case 3:
                    bytes.InsertRange(at, bytes.GetRange(random.Next(bytes.Count / 2), random.Next(1, 20)));
                    break;
                case 4:
                    bytes.Insert(at, (byte)"{}[]\",:0123456789\\u-eE."[random.Next(23)]);
                    break;
                case 5:
                    bytes[at] = (byte)"0123456789"[random.Next(10)];
                    break;
                case 6 when random.Next(4) == 0:
                    bytes.RemoveRange(at, bytes.Count - at);
                    break;
            }
            if (bytes.Count < 40)
                break;
        }
        return [.. bytes];
    }

    // Changes one place: removes it, or puts another value there, or a value from elsewhere in the file.
    private static void ChangeTree(JsonObject root, Random random)
    {
        JsonNode node = root;
        while (true)
        {
            var children = node is JsonObject parent ? parent.Select(member => member.Key).ToArray() : [];
            var count = node is JsonArray list ? list.Count : children.Length;
            if (count == 0)
                return;
            var index = random.Next(count);
            var child = node is JsonArray array ? array[index] : node[children[index]];
            if (child is JsonObject or JsonArray && random.Next(8) != 0)
            {
                node = child;
                continue;
            }
            var remove = random.Next(4) == 0;
            if (node is JsonArray items && remove)
                items.RemoveAt(index);
            else if (node is JsonArray values)
                values[index] = NewValue(root, child, random);
            else if (remove)
                node.AsObject().Remove(children[index]);
            else
                node[children[index]] = NewValue(root, child, random);
            return;
        }
    }

    private static JsonNode? NewValue(JsonObject root, JsonNode? old, Random random)
    {
        switch (random.Next(10))
        {
            case 0:
                return null;
            case 1:
                return random.Next(2) == 0;
            case 2:
                return (int[])[0, 1, -1, 262, 263, 264, 1000, 70_000, int.MaxValue] is var numbers ? numbers[random.Next(numbers.Length)] : null;
            case 3:
                return JsonNode.Parse("1e400");
            case 4:
                return (string[])["", " ", "a", "hello", "▁", "\0", "ByteLevel", "Sequence", "NFC", "Metaspace", "always", "<|end|>", "é", "a b"] is var texts ? texts[random.Next(texts.Length)] : null;
            case 5:
                return new JsonArray();
            case 6:
                return new JsonObject();
            case 7:
                return new string('a', random.Next(1, 2000));
            case 8 when old is JsonValue && old.GetValueKind() is System.Text.Json.JsonValueKind.True or System.Text.Json.JsonValueKind.False:
                return !old.GetValue<bool>();
            default:
                return root.ElementAt(random.Next(root.Count)).Value?.DeepClone();
        }
    }
}

using System.Text;
using System.Text.Json.Nodes;
using Inference.Runtime.Tokenization;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>The smallest complete tokenizer.json files, to be changed by a test before they are loaded.</summary>
internal static class TinyTokenizer
{
    /// <summary>A byte-level file: 256 bytes, a few merges, one special and one plain added token, the Llama-3 pattern.</summary>
    public static JsonObject ByteLevel() => JsonNode.Parse(ByteLevelText)!.AsObject();

    /// <summary>A byte-fallback file in the form of SentencePiece models.</summary>
    public static JsonObject ByteFallback() => JsonNode.Parse(ByteFallbackText)!.AsObject();

    private static readonly string ByteLevelText = BuildByteLevel().ToJsonString();

    private static readonly string ByteFallbackText = BuildByteFallback().ToJsonString();

    private static JsonObject BuildByteLevel()
    {
        var vocabulary = new JsonObject();
        for (var value = 0; value < 256; value++)
            vocabulary[Spell((byte)value)] = value;
        foreach (var token in (string[])["he", "ll", "hell", "hello", "Ġw", "aa"])
            vocabulary[token] = vocabulary.Count;
        return new JsonObject
        {
            ["version"] = "1.0",
            ["added_tokens"] = new JsonArray(Added(262, "<|end|>", special: true), Added(263, "<think>", special: false)),
            ["normalizer"] = null,
            ["pre_tokenizer"] = new JsonObject
            {
                ["type"] = "Sequence",
                ["pretokenizers"] = new JsonArray(
                    new JsonObject
                    {
                        ["type"] = "Split",
                        ["pattern"] = new JsonObject { ["Regex"] = @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" },
                        ["behavior"] = "Isolated",
                        ["invert"] = false,
                    },
                    new JsonObject { ["type"] = "ByteLevel", ["add_prefix_space"] = false, ["trim_offsets"] = true, ["use_regex"] = false }),
            },
            ["post_processor"] = JsonNode.Parse("""
                {"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
                 "special_tokens":{"<|end|>":{"id":"<|end|>","ids":[262],"tokens":["<|end|>"]}}}
                """),
            ["decoder"] = new JsonObject { ["type"] = "ByteLevel" },
            ["model"] = new JsonObject
            {
                ["type"] = "BPE",
                ["unk_token"] = null,
                ["fuse_unk"] = false,
                ["byte_fallback"] = false,
                ["ignore_merges"] = false,
                ["vocab"] = vocabulary,
                ["merges"] = new JsonArray("h e", "l l", new JsonArray("he", "ll"), "hell o", "Ġ w", "a a"),
            },
        };
    }

    private static JsonObject BuildByteFallback()
    {
        var vocabulary = new JsonObject { ["<unk>"] = 0, ["<s>"] = 1 };
        for (var value = 0; value < 256; value++)
            vocabulary[$"<0x{value:X2}>"] = vocabulary.Count;
        foreach (var token in (string[])["▁", "h", "e", "l", "o", "a", "he", "ll", "hell", "hello", "▁hello", "▁▁", "é"])
            vocabulary[token] = vocabulary.Count;
        return new JsonObject
        {
            ["added_tokens"] = new JsonArray(Added(0, "<unk>", special: true), Added(1, "<s>", special: true)),
            ["normalizer"] = JsonNode.Parse("""
                {"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}
                """),
            ["pre_tokenizer"] = null,
            ["post_processor"] = null,
            ["decoder"] = JsonNode.Parse("""
                {"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}
                """),
            ["model"] = new JsonObject
            {
                ["type"] = "BPE",
                ["unk_token"] = "<unk>",
                ["fuse_unk"] = true,
                ["byte_fallback"] = true,
                ["vocab"] = vocabulary,
                ["merges"] = new JsonArray("h e", "l l", "he ll", "hell o", "▁ hello", "▁ ▁"),
            },
        };
    }

    public static JsonObject Added(int id, string content, bool special) => new()
    {
        ["id"] = id,
        ["content"] = content,
        ["single_word"] = false,
        ["lstrip"] = false,
        ["rstrip"] = false,
        ["normalized"] = false,
        ["special"] = special,
    };

    public static ModelTokenizer Load(JsonObject json) => TokenizerFactory.FromJson(Encoding.UTF8.GetBytes(json.ToJsonString()), "tiny.json");

    /// <summary>How byte-level files spell a byte: itself when printable in Latin-1, else the next character from U+0100 on.</summary>
    public static string Spell(byte value)
    {
        static bool Visible(int b) => b is (>= '!' and <= '~') or (>= 0xA1 and <= 0xAC) or >= 0xAE;
        return ((char)(Visible(value) ? value : 0x100 + Enumerable.Range(0, value).Count(b => !Visible(b)))).ToString();
    }
}

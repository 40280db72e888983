using Inference.Runtime.Tokenization;
using Inference.Runtime.Tokenization.Loading;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Published vocabularies that are not in the repository; environment variables say where they lie.</summary>
internal static class ExternalVocabularies
{
    private const string Llama4Variable = "INFERENCE_LLAMA4_TOKENIZER";
    private const string DeepSeekVariable = "INFERENCE_DEEPSEEK_TOKENIZER";
    private const string DeepSeekVectorsVariable = "INFERENCE_DEEPSEEK_TOKENIZER_VECTORS";

    /// <summary>Llama 4 from its tiktoken tokenizer.model; skips the test when the variable is not set.</summary>
    public static ModelTokenizer Llama4() =>
        TokenizerFactory.LoadTiktoken(Require(Llama4Variable, "Llama 4's tokenizer.model"), SplitPatterns.O200k, Llama4ControlTokens());

    /// <summary>Whether <see cref="Llama4"/> can be loaded.</summary>
    public static bool HasLlama4 => File.Exists(Environment.GetEnvironmentVariable(Llama4Variable));

    /// <summary>DeepSeek V3/V4 from its tokenizer.json.</summary>
    public static ModelTokenizer DeepSeek() => TokenizerFactory.FromJson(File.ReadAllBytes(Require(DeepSeekVariable, "DeepSeek-V4's tokenizer.json")));

    /// <summary>The file of strings and ids under the DeepSeek vocabulary.</summary>
    public static string DeepSeekVectors() => Require(DeepSeekVectorsVariable, "the list of strings and ids (objects with t and ids)");

    private static string Require(string variable, string what)
    {
        var path = Environment.GetEnvironmentVariable(variable);
        Assert.SkipWhen(string.IsNullOrEmpty(path), $"{variable} does not name {what}, which is not ours to keep here");
        Assert.True(File.Exists(path), $"{variable} names {path}, which does not exist");
        return path!;
    }

    // The 2,048 slots behind the 200,000 entries, as the authors' code numbers them.
    private static Dictionary<string, int> Llama4ControlTokens()
    {
        const int first = 200000;
        const int count = 2048;
        var tokens = new List<string>
        {
            "begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix", "header_start", "header_end", "eom", "eot", "step",
        };
        tokens.AddRange(Numbered("text_post_train_reserved_special_token", 0, 5));
        tokens.AddRange(["python_start", "python_end", "finetune_right_pad"]);
        tokens.AddRange(Numbered("text_post_train_reserved_special_token", 8, 68));
        tokens.AddRange(["image_start", "image_end"]);
        tokens.AddRange(Numbered("vision_reserved_special_token", 0, 1));
        tokens.AddRange(["tile_x_separator", "tile_y_separator"]);
        tokens.AddRange(Numbered("vision_reserved_special_token", 2, 5));
        tokens.AddRange(["image"]);
        tokens.AddRange(Numbered("vision_reserved_special_token", 6, 6));
        tokens.AddRange(["patch"]);
        tokens.AddRange(Numbered("vision_reserved_special_token", 7, 1047));
        tokens.AddRange(Numbered("reasoning_reserved_special_token", 0, 7));
        tokens.AddRange(["reasoning_thinking_start", "reasoning_thinking_end"]);
        tokens.AddRange(Numbered("reserved_special_token", 0, 903));
        Assert.Equal(count, tokens.Count);
        return tokens.Select((name, index) => (name, index)).ToDictionary(token => $"<|{token.name}|>", token => first + token.index);
    }

    private static IEnumerable<string> Numbered(string name, int from, int to) => Enumerable.Range(from, to - from + 1).Select(n => $"{name}_{n}");
}

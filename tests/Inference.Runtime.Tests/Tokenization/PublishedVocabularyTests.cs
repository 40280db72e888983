using System.Text.Json;
using System.Text.Json.Serialization;
using Inference.Runtime.Tokenization;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>The embedded model's tokenizer, and published ones where they are at hand.</summary>
public sealed class PublishedVocabularyTests
{
    [Fact]
    public void Prompts_and_completions_of_the_embedded_model_have_the_ids_it_was_trained_on()
    {
        var tokenizer = TokenizerFixtures.Load("pebble");
        var differences = new Differences();
        foreach (var example in JsonSerializer.Deserialize<Example[]>(File.ReadAllBytes(Path.Combine(RepositoryPaths.Pebble, "examples.json")))!)
        {
            Check(differences, tokenizer, example.Prompt, example.PromptIds);
            Check(differences, tokenizer, example.Completion, example.CompletionIds);
        }
        differences.AssertNone(60);
    }

    [Fact]
    public void Llama_4_ids_are_those_of_the_tiktoken_library()
    {
        var tokenizer = ExternalVocabularies.Llama4();
        Assert.Equal(202048, tokenizer.VocabSize);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<EncodingCase[]>("llama4_tokenizer_cases.json"))
        {
            foreach (var (policy, expected) in new[] { (AddedTokenPolicy.All, c.Ids), (AddedTokenPolicy.None, c.IdsNoSpecialParse ?? c.Ids) })
            {
                var ids = tokenizer.Encode(c.Text, policy);
                differences.Check(expected.Matches(ids), () => $"{c.Name}: {string.Join(",", ids.Take(60))} instead of {expected}");
                var decoded = tokenizer.Decode(ids.ToArray());
                differences.Check(decoded == c.Text, () => $"{c.Name} reads back as {decoded}");
            }
        }
        differences.AssertNone(4 * 225);
    }

    [Fact]
    public void DeepSeek_ids_are_those_of_the_released_tokenizer()
    {
        var tokenizer = ExternalVocabularies.DeepSeek();
        var differences = new Differences();
        foreach (var vector in JsonSerializer.Deserialize<Vector[]>(File.ReadAllBytes(ExternalVocabularies.DeepSeekVectors()))!)
            Check(differences, tokenizer, vector.Text, vector.Ids);
        differences.AssertNone(2000);
    }

    private static void Check(Differences differences, ModelTokenizer tokenizer, string text, int[] expected)
    {
        var ids = tokenizer.Encode(text, AddedTokenPolicy.All);
        differences.Check(ids.SequenceEqual(expected), () => $"{JsonSerializer.Serialize(text)}: {string.Join(",", ids)} instead of {string.Join(",", expected)}");
    }

    private sealed record Example(
        [property: JsonPropertyName("prompt")] string Prompt,
        [property: JsonPropertyName("prompt_ids")] int[] PromptIds,
        [property: JsonPropertyName("completion")] string Completion,
        [property: JsonPropertyName("completion_ids")] int[] CompletionIds);

    private sealed record Vector([property: JsonPropertyName("t")] string Text, [property: JsonPropertyName("ids")] int[] Ids);
}

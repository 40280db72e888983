using Inference.Runtime.Tokenization;
using Xunit;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Every case of the reference libraries, field by field.</summary>
public sealed class EncodingFixtureTests
{
    private const int CasesPerFamily = 240;
    private static readonly string[] ChangesLongTexts = ["qwen2", "qwen3.5", "gpt2-prefix", "mixtral-metaspace"];

    public static TheoryData<string> Families => TokenizerFixtures.Families;

    [Theory]
    [MemberData(nameof(Families))]
    public void Text_with_all_added_tokens_parsed_has_the_ids_of_the_reference(string family) =>
        CheckIds(family, AddedTokenPolicy.All, c => c.Ids);

    [Theory]
    [MemberData(nameof(Families))]
    public void Text_with_only_non_special_added_tokens_parsed_has_the_ids_of_the_reference(string family) =>
        CheckIds(family, AddedTokenPolicy.NonSpecial, c => c.IdsNoSpecialParse ?? c.Ids);

    [Theory]
    [MemberData(nameof(Families))]
    public void Text_with_no_added_token_parsed_has_the_ids_of_the_reference(string family) =>
        CheckIds(family, AddedTokenPolicy.None, c => c.IdsNoAddedParse ?? c.IdsNoSpecialParse ?? c.Ids);

    [Fact]
    public void The_rank_file_of_kimi_gives_the_same_ids_as_its_tokenizer_json()
    {
        var folder = Directory.CreateTempSubdirectory("kimi-").FullName;
        try
        {
            foreach (var name in (string[])["tiktoken.model", "tokenizer_config.json"])
                File.Copy(Path.Combine(TokenizerFixtures.FolderOf("kimi-k2"), name), Path.Combine(folder, name));
            var tokenizer = TokenizerFactory.Load(folder);
            var differences = new Differences();
            foreach (var c in TokenizerFixtures.Read<EncodingCase[]>("kimi-k2/cases.json"))
            {
                CheckOne(differences, tokenizer, c, AddedTokenPolicy.All, c.Ids);
                CheckOne(differences, tokenizer, c, AddedTokenPolicy.None, c.IdsNoAddedParse ?? c.IdsNoSpecialParse ?? c.Ids);
            }
            differences.AssertNone(2 * CasesPerFamily);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Theory]
    [InlineData("glm-4")]
    [InlineData("llama-3")]
    [InlineData("llama-4")]
    [InlineData("mistral-tekken")]
    [InlineData("mixtral")]
    [InlineData("mixtral-metaspace")]
    public void The_post_processor_puts_its_tokens_around_the_text(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<EncodingCase[]>($"{family}/cases.json").Where(c => c.IdsWithPost is not null))
        {
            var ids = new List<int>();
            tokenizer.EncodeWithTemplate(c.Text, AddedTokenPolicy.All, ids);
            differences.Check(c.IdsWithPost!.Matches(ids), () => $"{c.Name}: {string.Join(",", ids)} instead of {c.IdsWithPost}");
        }
        differences.AssertNone(CasesPerFamily);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Encoded_text_reads_back_as_the_reference_reads_it(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<EncodingCase[]>($"{family}/cases.json"))
        {
            if (c.Written is null && ChangesLongTexts.Contains(family))
                continue; // the decodings of repeated texts are not kept, and here they are not the text
            var ids = tokenizer.Encode(c.Text, AddedTokenPolicy.All).ToArray();
            var expected = c.Decoded ?? c.Text;
            var decoded = tokenizer.Decode(ids);
            differences.Check(decoded == expected, () => $"{c.Name}: \"{decoded}\"");
            if (family == "tiktoken-llama4-like")
                continue; // the reference has no skipping there
            var skipped = tokenizer.Decode(ids, skipSpecial: true);
            differences.Check(skipped == (c.DecodedSkipSpecial ?? expected), () => $"{c.Name} without special tokens: \"{skipped}\"");
        }
        differences.AssertNone(CasesPerFamily);
    }

    [Theory]
    [MemberData(nameof(Families))]
    public void Offsets_are_the_code_points_of_the_reference(string family)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<EncodingCase[]>($"{family}/cases.json").Where(c => c.Offsets is not null))
        {
            var found = tokenizer.EncodeWithOffsets(c.Text, AddedTokenPolicy.All);
            var same = found.Count == c.Offsets!.Length
                && found.Zip(c.Offsets, (ours, theirs) => ours.Start == theirs[0] && ours.End == theirs[1]).All(equal => equal);
            differences.Check(same, () => $"{c.Name}: {string.Join(" ", found.Select(o => $"{o.Start}-{o.End}"))} instead of {string.Join(" ", c.Offsets.Select(o => $"{o[0]}-{o[1]}"))}");
        }
        if (family != "tiktoken-llama4-like") // its reference gives no offsets
            differences.AssertNone(CasesPerFamily - 5);
    }

    private static void CheckIds(string family, AddedTokenPolicy policy, Func<EncodingCase, IdList> expected)
    {
        var tokenizer = TokenizerFixtures.Load(family);
        var differences = new Differences();
        foreach (var c in TokenizerFixtures.Read<EncodingCase[]>($"{family}/cases.json"))
            CheckOne(differences, tokenizer, c, policy, expected(c));
        differences.AssertNone(CasesPerFamily);
    }

    private static void CheckOne(Differences differences, ModelTokenizer tokenizer, EncodingCase c, AddedTokenPolicy policy, IdList expected)
    {
        var ids = tokenizer.Encode(c.Text, policy);
        differences.Check(expected.Matches(ids), () => $"{c.Name}: {string.Join(",", ids.Take(60))} instead of {expected}");
    }
}

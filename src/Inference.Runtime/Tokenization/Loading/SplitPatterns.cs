// The split patterns we know, by their exact text. A file with another pattern is refused: a pattern is a program, and one
// from a file may run forever or split differently than we guess.
using Inference.Runtime.Tokenization.Splitting;

namespace Inference.Runtime.Tokenization.Loading;

internal static class SplitPatterns
{
    /// <summary>The pattern of Llama-4 and gpt-oss, also of files that name none.</summary>
    public const string O200k =
        @"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        + @"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        + @"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// <summary>The pattern of Kimi's Python code, which its rank file does not hold.</summary>
    public const string Kimi =
        @"[\p{Han}]+"
        + @"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        + @"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        + @"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    private const string Contractions = @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|";
    private const string Rest = @"|\s*[\r\n]+|\s+(?!\S)|\s+";

    private static readonly (string Families, string[] Steps, PieceSplitter Splitter)[] Known =
    [
        ("DeepSeek V3 to V4",
            [@"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                @"[!""#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + Rest],
            new DeepSeekSplitter()),
        ("Llama-3, GLM-4",
            [Contractions + @"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + Rest],
            new Cl100kSplitter(digits: 3, marks: false)),
        ("Qwen2, Qwen3",
            [Contractions + @"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + Rest],
            new Cl100kSplitter(digits: 1, marks: false)),
        ("Qwen3.5",
            [Contractions + @"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + Rest],
            new Cl100kSplitter(digits: 1, marks: true)),
        ("o200k (gpt-oss, Llama-4, MiniMax-M2)", [O200k],
            new O200kSplitter(digits: 3, contractions: true, slash: true, hanFirst: false)),
        ("Kimi", [Kimi],
            new O200kSplitter(digits: 3, contractions: true, slash: false, hanFirst: true)),
        ("Mistral tekken",
            [@"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                + @"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
                + @"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + Rest],
            new O200kSplitter(digits: 1, contractions: false, slash: true, hanFirst: false)),
    ];

    private static readonly Dictionary<string, PieceSplitter> ByPattern = Known.ToDictionary(known => Key(known.Steps), known => known.Splitter);

    /// <summary>What the message about an unknown pattern lists.</summary>
    public static string Supported => string.Join("; ", Known.Select(known => known.Families)) + "; the ByteLevel step's own pattern (GPT-2)";

    /// <summary>The splitter of these steps in a row, or null when we do not know them.</summary>
    public static PieceSplitter? Find(IEnumerable<string> steps) => ByPattern.GetValueOrDefault(Key(steps));

    private static string Key(IEnumerable<string> steps) => string.Join('\0', steps.Select(Canonical));

    // Files differ in whether a line break or a quote is written as itself or escaped; for the regex it is the same.
    private static string Canonical(string pattern) => pattern
        .Replace("\r", @"\r", StringComparison.Ordinal)
        .Replace("\n", @"\n", StringComparison.Ordinal)
        .Replace(@"\""", @"""", StringComparison.Ordinal);
}

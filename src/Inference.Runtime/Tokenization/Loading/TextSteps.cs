// The "normalizer", "pre_tokenizer" and "decoder" sections of a tokenizer.json: recognised as one of the combinations that the
// model families use, or refused.
using System.Text;
using Inference.Runtime.Tokenization.Normalization;
using Inference.Runtime.Tokenization.Splitting;

namespace Inference.Runtime.Tokenization.Loading;

/// <summary>How text becomes pieces and tokens become text.</summary>
/// <param name="Normalizers">The normaliser's steps.</param>
/// <param name="Preparation">The pre-tokenizer's change of text, or null.</param>
/// <param name="Splitter">Where it cuts; null to cut only where that changes no id (see <see cref="MarkerSplitter"/>).</param>
/// <param name="IsByteLevel">Symbols are bytes spelled in the byte-level alphabet; else characters.</param>
/// <param name="DropsFirstSpace">Decoding drops one space at the start.</param>
internal sealed record TextSteps(
    IReadOnlyList<TextTransform> Normalizers, TextTransform? Preparation, PieceSplitter? Splitter, bool IsByteLevel, bool DropsFirstSpace)
{
    /// <summary>The character that stands for a space in the SentencePiece families.</summary>
    public const string Marker = "\u2581";

    // Real normalisers have one or two steps. The limits bound how much a file can make a text grow: 16 times.
    private const int NormalizersMax = 4;
    private const int AffixBytesMax = 16;

    public static TextSteps Read(JsonPlace root)
    {
        var normalizers = ReadNormalizers(root);
        List<JsonPlace> steps = [.. Flatten(root.Optional("pre_tokenizer"), "pretokenizers")];
        var isByteLevel = steps.Count > 0 && steps[^1].Text("type") == "ByteLevel";
        var dropsFirstSpace = ReadDecoder(root, isByteLevel);
        var (preparation, splitter) = isByteLevel ? ReadByteLevel(steps) : ReadCharacters(steps, root);
        return new TextSteps(normalizers, preparation, splitter, isByteLevel, dropsFirstSpace);
    }

    // A section is null, one step, or a (nested) Sequence of steps.
    private static IEnumerable<JsonPlace> Flatten(JsonPlace? section, string listName)
    {
        if (section is not { } node)
            return [];
        return node.Text("type") == "Sequence"
            ? node.Required(listName).Items().SelectMany(item => Flatten(item, listName))
            : [node];
    }

    private static List<TextTransform> ReadNormalizers(JsonPlace root)
    {
        List<TextTransform> normalizers = [.. Flatten(root.Optional("normalizer"), "normalizers").Take(NormalizersMax + 1).Select(ReadNormalizer)];
        if (normalizers.Count > NormalizersMax || normalizers.Count(step => step is ReplaceTransform) > 1)
            throw root.Fail($"the normaliser has more than {NormalizersMax} steps, or more than one Replace");
        return normalizers;
    }

    private static TextTransform ReadNormalizer(JsonPlace step)
    {
        switch (step.Text("type"))
        {
            case "NFC":
                return new NfcTransform();
            case "Prepend":
                return new PrependTransform(Affix(step.Required("prepend"), mayBeEmpty: false));
            case "Replace":
                if (step.Required("pattern").Optional("String") is not { } from)
                    throw step.Fail("replaces a regular expression", "Only replacing a plain string is supported.");
                return new ReplaceTransform(Affix(from, mayBeEmpty: false), Affix(step.Required("content"), mayBeEmpty: true));
            case var type:
                throw step.Fail($"the normaliser {JsonPlace.Show(type)} is not supported", "Supported: NFC, Prepend, Replace of a string, and sequences of those.");
        }
    }

    private static byte[] Affix(JsonPlace node, bool mayBeEmpty)
    {
        var bytes = Encoding.UTF8.GetBytes(node.Text());
        if (bytes.Length > AffixBytesMax || (bytes.Length == 0 && !mayBeEmpty))
            throw node.Fail($"has {bytes.Length} bytes, expected {(mayBeEmpty ? 0 : 1)} to {AffixBytesMax}");
        return bytes;
    }

    private static (TextTransform? Preparation, PieceSplitter Splitter) ReadByteLevel(List<JsonPlace> steps)
    {
        var byteLevel = steps[^1];
        var addsPrefixSpace = byteLevel.Flag("add_prefix_space");
        var usesPattern = byteLevel.Flag("use_regex", true);
        if (steps.Count == 1)
            return (addsPrefixSpace ? new PrefixSpaceTransform() : null, usesPattern ? new Gpt2Splitter() : new WholeTextSplitter());
        if (usesPattern || addsPrefixSpace)
            throw byteLevel.Fail("splits or prefixes the pieces of an earlier split once more", "Behind Split steps, ByteLevel is supported with add_prefix_space and use_regex false.");
        return (null, FindSplitter(steps[..^1]));
    }

    private static PieceSplitter FindSplitter(List<JsonPlace> splits)
    {
        var patterns = new List<string>();
        foreach (var split in splits)
        {
            if (split.Text("type") is var type && type != "Split")
                throw split.Fail($"the pre-tokenizer step {JsonPlace.Show(type)} is not supported", "Supported before ByteLevel: Split.");
            if (split.Text("behavior") != "Isolated" || split.Flag("invert"))
                throw split.Fail("does not keep matches as pieces of their own", "Supported: behavior Isolated, invert false.");
            if (split.Required("pattern").Optional("Regex") is not { } pattern)
                throw split.Fail("splits at a plain string", "Supported: the regular expressions of the model families.");
            patterns.Add(pattern.Text());
        }
        return SplitPatterns.Find(patterns) ?? throw splits[0].Fail(
            $"the split pattern is not known: {JsonPlace.Show(string.Join(" | then | ", patterns))}", $"Supported: {SplitPatterns.Supported}.");
    }

    private static (TextTransform? Preparation, PieceSplitter? Splitter) ReadCharacters(List<JsonPlace> steps, JsonPlace root)
    {
        if (steps.Count == 0)
            return (null, null);
        var step = steps[0];
        if (steps.Count > 1 || step.Text("type") != "Metaspace")
        {
            throw root.Fail($"the pre-tokenizer ({string.Join(", ", steps.Select(s => s.Text("type")))}) is not supported",
                "Supported: ByteLevel, with or without Split before it; Metaspace; none.");
        }
        if (step.Text("replacement") != Marker)
            throw step.Fail($"replaces spaces by {JsonPlace.Show(step.Text("replacement"))}", "Supported: U+2581.");
        return (new MetaspaceTransform(ReadScheme(step)), step.Flag("split", true) ? new MarkerSplitter(everyMarker: true) : null);
    }

    // Older files have add_prefix_space instead of the scheme.
    private static PrependScheme ReadScheme(JsonPlace step)
    {
        var never = step.Optional("add_prefix_space") is { } adds && !adds.Flag();
        var scheme = step.Optional("prepend_scheme")?.Text() ?? (never ? "never" : "always");
        return scheme switch
        {
            _ when never && scheme != "never" => throw step.Fail("add_prefix_space and prepend_scheme contradict each other"),
            "never" => PrependScheme.Never,
            "first" => PrependScheme.First,
            "always" => PrependScheme.Always,
            _ => throw step.Fail($"the prepend_scheme {JsonPlace.Show(scheme)} is not supported", "Supported: never, first, always."),
        };
    }

    // True when decoding drops one space at the start.
    private static bool ReadDecoder(JsonPlace root, bool isByteLevel)
    {
        List<JsonPlace> steps = [.. Flatten(root.Optional("decoder"), "decoders")];
        var names = string.Join(", ", steps.Select(step => step.Text("type")));
        if (isByteLevel)
            return names == "ByteLevel" ? false : throw root.Fail($"the decoder ({names}) does not fit the ByteLevel pre-tokenizer", "Supported: ByteLevel.");
        if (names is not ("Replace, ByteFallback, Fuse, Strip" or "Replace, ByteFallback, Fuse" or "Replace, Fuse, Strip" or "Replace, Fuse"))
            throw root.Fail($"the decoder ({names}) is not supported", "Supported without ByteLevel: Replace, ByteFallback, Fuse, Strip.");
        var replace = steps[0];
        if (replace.Required("pattern").Optional("String")?.Text() != Marker || replace.Text("content") != " ")
            throw replace.Fail("does not turn U+2581 into a space");
        if (!names.EndsWith("Strip", StringComparison.Ordinal))
            return false;
        var strip = steps[^1];
        if (strip.Text("content") != " " || strip.Required("start").Index(2) != 1 || strip.Required("stop").Index(1) != 0)
            throw strip.Fail("does not strip exactly one space at the start");
        return true;
    }
}

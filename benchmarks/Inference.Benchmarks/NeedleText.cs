// Long texts of the kind that the embedded model was trained on (models/pebble/README.md): sentences of a small grammar, and among them secret codes of
// cities. The same seed gives the same text. It knows no model; lengths are counted by a function that the caller gives.
using System.Globalization;
using System.Text;

namespace Inference.Benchmarks;

/// <summary>A city, its code, and where in the text it stands.</summary>
/// <param name="Depth">0 = first sentence, 100 = last.</param>
internal sealed record Needle(string City, string Code, double Depth)
{
    public string Sentence => $"The secret code for {City} is {Code}.";
    public string Question => $"What is the secret code for {City}?";
}

internal sealed class NeedleText
{
    private static readonly string[] Names = "Ben Clara Oscar Hugo Zoe Felix Wanda Nora David Ravi Petra Viktor Emma Jonas Rosa Yusuf Mia Tara Grace Leo Lars Iris Olga Anna Paul Simon Quinn".Split(' ');
    private static readonly string[] Kinds = "hard narrow square empty heavy cold soft red old large round quiet warm small green new bright light wide blue".Split(' ');
    private static readonly string[] Things = "wagon orchard engine harbor mirror kitchen market island basket window garden saddle lantern teapot bridge umbrella bottle violin jacket notebook drawer river ladder anchor blanket pencil kettle candle cabin".Split(' ');
    private static readonly string[] Verbs = "painted measured watched closed carried described opened returned wrapped counted repaired lifted cleaned moved found borrowed".Split(' ');
    private static readonly string[] Times = ["during the storm", "on Monday", "at noon", "in the morning", "in the evening", "on Friday", "late in autumn", "early in spring", "before lunch", "after dinner", "last week", "yesterday"];
    private static readonly string[] Cities = "Athens Warsaw Quito Tunis Accra Delhi Lisbon Tbilisi Tokyo Seoul Bogota Dublin Madrid Lima Cairo Paris Manila Nairobi Kyoto Oslo Zagreb Havana Vienna Berlin".Split(' ');

    private readonly Random _random;

    /// <param name="tokens">Length of the text, to the sentence.</param>
    /// <param name="depths">Of the codes that are asked for.</param>
    /// <param name="others">Further codes, at places of their own.</param>
    /// <param name="count">Tokens of a sentence with the space before it.</param>
    public NeedleText(int seed, int tokens, double[] depths, int others, Func<string, int> count)
    {
        _random = new Random(seed);
        string[] cities = [.. Cities];
        _random.Shuffle(cities);
        Needles = [.. depths.Select((depth, i) => new Needle(cities[i], Code(), depth))];
        var all = Needles.Concat(Enumerable.Range(depths.Length, others).Select(i => new Needle(cities[i], Code(), _random.NextDouble() * 100)))
            .OrderBy(n => n.Depth).ToList();
        int left = tokens - all.Sum(n => count(" " + n.Sentence));
        var sentences = new List<(string Text, int End)>();
        for (int length = 0; length < left;)
        {
            string sentence = Sentence();
            length += count(" " + sentence);
            sentences.Add((sentence, length));
        }
        Text = Join(sentences, all, sentences[^1].End);
    }

    public string Text { get; }

    /// <summary>The codes that are asked for, by depth.</summary>
    public IReadOnlyList<Needle> Needles { get; }

    private static string Join(List<(string Text, int End)> sentences, List<Needle> needles, int length)
    {
        var text = new StringBuilder();
        int next = 0;
        foreach (var (sentence, end) in sentences)
        {
            for (; next < needles.Count && needles[next].Depth / 100 * length < end && needles[next].Depth < 100; next++) Add(needles[next].Sentence);
            Add(sentence);
        }
        for (; next < needles.Count; next++) Add(needles[next].Sentence);
        return text.ToString();

        void Add(string sentence)
        {
            if (text.Length > 0) text.Append(' ');
            text.Append(sentence);
        }
    }

    private string Code() => _random.Next(10_000).ToString("D4", CultureInfo.InvariantCulture);

    private string Sentence() => _random.Next(4) switch
    {
        0 => $"The {Of(Things)} {Place()} was {Of(Kinds)} and {Of(Kinds)}.",
        1 => Capital($"{Of(Times)}, {Of(Names)} and {Of(Names)} {Of(Verbs)} the {Of(Kinds)} {Of(Things)}."),
        _ => $"{Of(Names)} {Of(Verbs)} the {Of(Kinds)} {Of(Things)} {Place()} {Of(Times)}.",
    };

    private string Place() => _random.Next(2) == 0
        ? $"{Of(["under", "beside", "near", "behind"])} the {Of(Things)}"
        : $"{Of(["in", "outside", "on the way to"])} {Of(Cities)}";

    private static string Capital(string text) => char.ToUpperInvariant(text[0]) + text[1..];

    private string Of(string[] words) => words[_random.Next(words.Length)];
}

using System.Globalization;
using System.Text;

namespace Inference.Runtime.Tests.Tokenization;

/// <summary>Random text of the kinds that tokenizers get wrong. Valid Unicode always; the same seed gives the same text.</summary>
internal sealed class NastyText(int seed)
{
    private static readonly string[] Snippets =
    [
        "the ", " and", "Hello", "wörd", "'s", "'S", "'ll", "'LL", "'re", "'ve", "'m", "'d", "'t", "'\u017f", "''", "don't", "WON'T", "I'M", "ABCdef", "aBc",
        "123", "1234567", " 12", "3.14", "٣٤٥", "𝟏𝟐", "½", "Ⅷ", "²", "〇", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n", "\n ", "\t\n\t", "\r",
        "\u00a0", "\u3000", "\u2028", "\u0085", "\u1680", "\u180e", "\u200b", "\u200d", "\u00ad", "\ufeff", "\0", "\u0001", "\u001c", "\u007f", "\ufffd", "\u2581", "\u2581\u2581",
        "中文", "漢字かな", "ジョン・スミス", "ー", "゛", "・", "・\n", "゛・\r\n", "中・a", "か\n", "中 ", "字  字", "１字", "한국어", "각", "ㄱ", "नि", "ก็", "Привет", "Ελλάδα", "عربي", "ß", "ǅ", "ŉ", "İ", "ʰ", "ª", "々", "⺀",
        "🙂", "👩‍💻", "👍🏽", "🇩🇪", "𐐀", "𝐀𝐛", "𠀀", "é", "e\u0301", "a\u0301\u0302", "\u0301", "\u0344", "o\u0308", "ﬁ", "Å", "Ω", "\u212a", "\u0958", "\u1e9b\u0323",
        "!", "?!", "...", "…", "---", "//", "http://a.b/c?d=e", "_", "__a", "$x", "<d>", "</", "<|", "|>", "«»", "“”", "，。", "（", "\\n", "@#%", "{\"a\": [1]}", "€", "+", "~", "`", "^",
    ];

    private readonly Random _random = new(seed);

    /// <summary>A text of up to <paramref name="most"/> parts; the literals (added tokens, mostly) are mixed in.</summary>
    public string Next(int most, IReadOnlyList<string> literals)
    {
        var text = new StringBuilder();
        for (var parts = _random.Next(1, most + 1); parts > 0; parts--)
            text.Append(NextPart(literals));
        return text.ToString();
    }

    private string NextPart(IReadOnlyList<string> literals)
    {
        switch (_random.Next(10))
        {
            case 0:
                return Any(0x110000);
            case 1:
                return Any(0x3100);
            case 2:
                return ((char)_random.Next(0x80)).ToString(CultureInfo.InvariantCulture);
            case 3 when literals.Count > 0:
                var literal = literals[_random.Next(literals.Count)];
                return _random.Next(8) == 0 ? literal[..^1] : literal;
            case 4:
                return new string((char)_random.Next('a', 'z' + 1), _random.Next(1, 9));
            default:
                return Snippets[_random.Next(Snippets.Length)];
        }
    }

    private string Any(int below)
    {
        var codePoint = _random.Next(below);
        return char.ConvertFromUtf32(codePoint is >= 0xD800 and < 0xE000 ? 0xFFFD : codePoint);
    }
}

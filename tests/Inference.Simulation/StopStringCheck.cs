using Inference.Runtime.Tokenization;
using Inference.Testing;

namespace Inference.Simulation;

/// <summary>Answers by the tokenizer of the model that ships with the server, with stop strings that lie across its tokens: no part of a stop string may be sent.</summary>
internal static class StopStringCheck
{
    public static string? Run()
    {
        var tokenizer = TokenizerFactory.Load(RepositoryPaths.Pebble);
        var random = new Random(1);
        for (int trial = 0; trial < 500; trial++)
        {
            // A word, cut anywhere, as the model may cut it: letter by letter.
            string text = string.Concat(Enumerable.Range(0, 40).Select(_ => "ab c"[random.Next(4)]));
            int at = random.Next(10, 30);
            string stop = text.Substring(at, random.Next(2, 6));
            var detokenizer = tokenizer.CreateDetokenizer(new(Stops: new StopMatcher([stop]), ContinuesText: true));
            string sent = "";
            foreach (char letter in text)
                foreach (int id in tokenizer.Encode(letter.ToString(), AddedTokenPolicy.None))
                    sent += detokenizer.Append(id).ToString();
            sent += detokenizer.Flush().ToString();
            string expected = text[..text.IndexOf(stop, StringComparison.Ordinal)];
            if (sent != expected) return $"'{sent}' was sent of '{text}' with the stop string '{stop}'";
        }
        return null;
    }
}

using Inference.Runtime.Chat;
using Inference.Runtime.Tokenization;

namespace Inference.Server.Commands;

/// <summary>The tokenizer of a model folder, for verbs that load no weights.</summary>
internal static class FolderTokenizer
{
    /// <exception cref="TokenizerException">There is none, or it is broken.</exception>
    public static ModelTokenizer Load(string folder) => TokenizerFactory.Load(folder);

    /// <summary>The ids of a UTF-8 file.</summary>
    /// <param name="option">For messages.</param>
    public static List<int> EncodeFile(this ModelTokenizer tokenizer, string file, string option, AddedTokenPolicy policy)
    {
        string text = InputFile.Text(file, option);
        if (text.Length > ModelTokenizer.TextLengthMax)
            throw new InputException($"{option}: '{file}' has {text.Length} characters, at most {ModelTokenizer.TextLengthMax} can be read at once; split it.");
        return tokenizer.Encode(text, policy);
    }

    /// <summary>A rendered conversation to token ids; only what the encoding itself wrote can become a control token.</summary>
    public static List<int> Encode(this ModelTokenizer tokenizer, RenderedPrompt prompt)
    {
        var ids = new List<int>();
        tokenizer.Encode(prompt.Segments.Select(s => s.Trusted ? TextSegment.Trusted(s.Text) : TextSegment.Untrusted(s.Text)).ToArray(), ids);
        return ids;
    }
}

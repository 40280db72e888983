using System.Security.Cryptography;
using System.Text;
using Inference.Runtime.Chat;

namespace Inference.Server.Commands;

/// <summary>
/// A long text that questions are asked about: it stands before the first question, and what the model has computed of it is kept. In the process the prefix
/// cache does that by itself, also when the reading is stopped; with a disk the state is saved there, so that a later process goes on from it.
/// </summary>
internal sealed class TextReading(LocalModel model, string text)
{
    private readonly string _name = "text-" + Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))[..32];
    private int _saved;

    /// <summary>The first message: the text, and a question about it.</summary>
    public string With(string question) => $"{text}\n\n{question}";

    /// <summary>Saves what the cache holds of a prompt's text, if there is a disk and it is more than before.</summary>
    /// <param name="prompt">A prompt that begins with the text.</param>
    /// <param name="other">The prompt of another question about it: what both begin with belongs to the text.</param>
    /// <returns>Tokens that are saved; null without a disk.</returns>
    public async Task<int?> SaveAsync(int[] prompt, ReadOnlyMemory<int> other)
    {
        if (!model.HasDisk) return null;
        int[] common = prompt[..prompt.AsSpan().CommonPrefixLength(other.Span)];
        if (_saved < common.Length) _saved = Math.Max(_saved, await model.SaveAsync(_name, common));
        return _saved;
    }

    /// <summary>What a user is told whose Ctrl-C stopped the reading.</summary>
    /// <param name="kept">Tokens in the cache of this process.</param>
    /// <param name="saved">On disk; null: there is none.</param>
    /// <param name="goesOn">Whether this process takes another question.</param>
    public static string Stopped(int kept, int total, int? saved, bool goesOn)
    {
        string said = $"Stopped after reading {Units.Whole(kept)} of {Units.Whole(total)} tokens";
        return (goesOn, saved) switch
        {
            (true, null) => $"{said}; the next question goes on from there.",
            (true, _) => $"{said}; the next question goes on from there, in a later process from {Units.Whole(saved.Value)}.",
            (false, null) => $"{said}; they are lost with this process. --kv-disk FOLDER keeps them for the next one, chat --file takes several questions.",
            _ => $"{said}, of which {Units.Whole(saved.Value)} are saved: the same text is read on from there.",
        };
    }
}

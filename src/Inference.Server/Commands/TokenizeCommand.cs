using System.CommandLine;
using Inference.Runtime.Tokenization;

namespace Inference.Server.Commands;

/// <summary><c>inference tokenize</c>: the tokens of a text. Loads no weights.</summary>
internal static class TokenizeCommand
{
    public static Command Create()
    {
        var text = new Option<string>("--text") { Description = "UTF-8 file; - for standard input.", HelpName = "file", Required = true };
        var plain = new Option<bool>("--no-special") { Description = "Read control tokens written in the text as plain text." };
        var json = new Option<bool>("--json") { Description = "Print {ids, tokens} instead of a table." };
        var command = new Command("tokenize", "Print the tokens of a text.") { text, plain, json };
        var folder = new FolderOption(command);
        command.HasExamples("inference tokenize --text story.txt", "echo -n 'Hello, world' | inference tokenize --text - --json");
        command.Runs((parsed, _) => Task.FromResult(
            Run(FolderTokenizer.Load(folder.Open(parsed).FolderPath), parsed.GetValue(text)!, parsed.GetValue(plain), parsed.GetValue(json))));
        return command;
    }

    private static int Run(ModelTokenizer tokenizer, string file, bool plain, bool json)
    {
        var ids = tokenizer.EncodeFile(file, "--text", plain ? AddedTokenPolicy.None : AddedTokenPolicy.All);
        using var output = new ResultOutput();
        if (json)
        {
            output.Line(w =>
            {
                w.WriteStartObject();
                w.WriteStartArray("ids");
                foreach (int id in ids) w.WriteNumberValue(id);
                w.WriteEndArray();
                w.WriteStartArray("tokens");
                foreach (int id in ids) w.WriteStringValue(tokenizer.TokenText(id));
                w.WriteEndArray();
                w.WriteEndObject();
            });
            return Verb.Done;
        }
        output.Text("      id  token\n");
        foreach (int id in ids) output.Text($"{id,8}  {Visible(tokenizer.TokenText(id))}\n");
        Console.Error.WriteLine($"{Units.Whole(ids.Count)} tokens");
        return Verb.Done;
    }

    /// <summary>A token as in a string literal, so that white space shows.</summary>
    public static string Visible(string? token) => "'" + string.Concat((token ?? "").Select(c => c switch
    {
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        _ when char.IsControl(c) => $"\\u{(int)c:X4}",
        _ => c.ToString(),
    })) + "'";
}

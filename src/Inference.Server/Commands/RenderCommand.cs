using System.CommandLine;
using Inference.Runtime.Chat;
using Inference.Runtime.Models;
using Inference.Server.Hosting;

namespace Inference.Server.Commands;

/// <summary><c>inference render</c>: a conversation as the model will read it. Loads no weights.</summary>
internal static class RenderCommand
{
    public static Command Create()
    {
        var messages = new Option<string>("--messages")
        {
            Description = "JSON file: {messages, thinking_mode?, drop_thinking?, reasoning_effort?, tools?} or an array of messages; - for standard input.",
            HelpName = "file",
            Required = true,
        };
        var json = new Option<bool>("--json") { Description = "Print {prompt, token_ids} instead of the prompt." };
        var command = new Command("render", "Print the prompt that a conversation becomes.") { messages, json };
        var folder = new FolderOption(command);
        command.HasExamples(
            "inference render --messages conversation.json",
            "echo '[{\"role\":\"user\",\"content\":\"Hi\"}]' | inference render --messages - --json");
        command.Runs((parsed, _) => Task.FromResult(Run(folder.Open(parsed), parsed.GetValue(messages)!, parsed.GetValue(json))));
        return command;
    }

    private static int Run(ModelFolder folder, string file, bool json)
    {
        var request = ConversationJson.Read(InputFile.Bytes(file, "--messages"));
        var prompt = ChatEncodings.For(DeepSeekV4Config.Read(folder)).Render(request.Conversation, request.Options);
        using var output = new ResultOutput();
        if (!json)
        {
            output.Text(prompt.Text);
            return Verb.Done;
        }
        var tokenizer = FolderTokenizer.Load(folder.FolderPath);
        output.Line(w =>
        {
            w.WriteStartObject();
            w.WriteString("prompt", prompt.Text);
            w.WriteStartArray("token_ids");
            foreach (int id in tokenizer.Encode(prompt)) w.WriteNumberValue(id);
            w.WriteEndArray();
            w.WriteEndObject();
        });
        return Verb.Done;
    }
}

using Google.Protobuf;
using Grpc.Core;
using Inference.Runtime.Tokenization;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>inference.v1.Tokenization: the tokenizer and the chat encoding of the served model. Keeps nothing.</summary>
internal sealed class TokenizationService(EngineHost host) : V1.Tokenization.TokenizationBase
{
    public override Task<V1.TokenizeResponse> Tokenize(V1.TokenizeRequest request, ServerCallContext context)
    {
        var model = host.Require(request.Model);
        var ids = model.Encode(request.Text, request.PlainText ? AddedTokenPolicy.None : AddedTokenPolicy.All);
        var response = new V1.TokenizeResponse();
        foreach (int id in ids)
        {
            response.TokenIds.Add((uint)id);
            if (request.IncludePieces) response.Pieces.Add(ByteString.CopyFrom(model.Tokenizer.TokenBytes(id).Span));
        }
        return Task.FromResult(response);
    }

    public override Task<V1.DetokenizeResponse> Detokenize(V1.DetokenizeRequest request, ServerCallContext context)
    {
        var model = host.Require(request.Model);
        var checks = new FieldChecks();
        int[] ids = checks.TokenIds("token_ids", request.TokenIds, model.Info.VocabSize);
        checks.ThrowIfAny();
        bool special = !request.HasSpecialTokens || request.SpecialTokens;
        var bytes = new MemoryStream();
        foreach (int id in ids) bytes.Write(model.Tokenizer.TokenBytes(id).Span);
        return Task.FromResult(new V1.DetokenizeResponse
        {
            Text = model.Tokenizer.Decode(ids, skipSpecial: !special),
            Bytes = ByteString.CopyFrom(bytes.GetBuffer(), 0, (int)bytes.Length),
        });
    }

    public override Task<V1.RenderChatResponse> RenderChat(V1.RenderChatRequest request, ServerCallContext context)
    {
        var model = host.Require(request.Model);
        var checks = new FieldChecks();
        ChatRequest? chat = null;
        if (request.Chat is null) checks.Add("chat", "is missing.");
        else chat = ChatReader.Check(request.Chat, "chat", model, checks);
        checks.ThrowIfAny();
        var prompt = chat!.Render(model);
        var ids = model.Encode(prompt);
        var response = new V1.RenderChatResponse { Text = prompt.Text, TokenCount = ids.Count };
        if (!request.HasIncludeTokenIds || request.IncludeTokenIds)
            foreach (int id in ids) response.TokenIds.Add((uint)id);
        return Task.FromResult(response);
    }
}

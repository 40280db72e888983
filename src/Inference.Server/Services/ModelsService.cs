using System.Text;
using Grpc.Core;
using Inference.Backends;
using Inference.Server.Errors;
using Inference.Server.Hosting;

namespace Inference.Server.Services;

/// <summary>inference.v1.Models: what is served here, with limits and defaults. Answers in every state in which there is a model to describe.</summary>
internal sealed class ModelsService(EngineHost host) : V1.Models.ModelsBase
{
    private const int PageSizeMax = 1000;

    public override Task<V1.ListModelsResponse> ListModels(V1.ListModelsRequest request, ServerCallContext context)
    {
        var checks = new FieldChecks();
        checks.Integer("page_size", true, request.PageSize, 0, PageSizeMax, 0);
        // There is one model, hence one page, hence no token that this server gave out.
        if (request.PageToken.Length > 0) checks.Add("page_token", "is none that this server gave out; leave it empty for the first page.");
        checks.ThrowIfAny();
        var response = new V1.ListModelsResponse();
        if (host.Loaded is { } model) response.Models.Add(Describe(model, host.State));
        return Task.FromResult(response);
    }

    public override Task<V1.Model> GetModel(V1.GetModelRequest request, ServerCallContext context)
    {
        if (host.Loaded is { } model && (request.Name.Length == 0 || request.Name == model.Name)) return Task.FromResult(Describe(model, host.State));
        host.Require(request.Name);
        throw new RequestException(ErrorReason.ModelNotFound, "There is no model of the name asked for.");
    }

    private static V1.Model Describe(ServedModel model, ServingState state)
    {
        var d = model.Defaults;
        return new V1.Model
        {
            Name = model.Name,
            Family = model.Info.Family,
            State = state switch
            {
                ServingState.Loading => V1.ModelState.Loading,
                ServingState.Serving => V1.ModelState.Ready,
                ServingState.Failed => V1.ModelState.Failed,
                _ => V1.ModelState.Draining,
            },
            ParameterCount = model.Info.ParameterCount,
            LayerCount = model.Info.LayerCount,
            VocabularySize = model.Info.VocabSize,
            ContextTokensMax = model.ContextMax,
            DefaultSampling = new V1.SamplingOptions
            {
                Temperature = d.Temperature,
                TopK = d.TopK,
                TopP = d.TopP,
                MinP = d.MinP,
                RepetitionPenalty = d.RepetitionPenalty,
                PresencePenalty = d.PresencePenalty,
                FrequencyPenalty = d.FrequencyPenalty,
            },
            DefaultMaxTokens = model.DefaultMaxTokens,
            EndTokenIds = { d.EndTokenIds.Select(id => (uint)id) },
            SupportsChat = model.Chat is not null,
            DefaultThinking = model.DefaultThinking ? V1.ThinkingMode.On : V1.ThinkingMode.Off,
            Backend = model.Backend.Info.Name,
            KvFormat = model.Info.KvFormat,
            Determinism = model.Backend.Info.Determinism switch
            {
                Determinism.AnySchedule => V1.DeterminismClass.AnySchedule,
                Determinism.SameShape => V1.DeterminismClass.SameShape,
                _ => V1.DeterminismClass.Tolerance,
            },
        };
    }
}

using Inference.Runtime.Engine;
using Inference.Server.Hosting;
using Inference.Server.Options;
using Microsoft.Extensions.Logging.Abstractions;

namespace Inference.Server.Commands;

/// <summary>A served model in this process, for one user: loaded, its engine running. Owns it.</summary>
internal sealed class LocalModel : IAsyncDisposable
{
    private LocalModel(ServedModel served) => Served = served;

    public ServedModel Served { get; }

    /// <summary>Whether somebody who waits for an answer is told how far the reading of the prompt is.</summary>
    public bool ShowsPrefill { get; set; }

    /// <summary>Loads the model and waits until its engine is ready.</summary>
    public static async Task<LocalModel> StartAsync(ModelOptions options, CancellationToken cancel)
    {
        var local = new LocalModel(Load(options with { SequencesMax = 1 }));
        try
        {
            local.Served.Engine.Start();
            await local.Served.Engine.WhenReady.WaitAsync(cancel);
            return local;
        }
        catch
        {
            await local.DisposeAsync();
            throw;
        }
    }

    private static ServedModel Load(ModelOptions options)
    {
        if (options.Dummy) Console.Error.WriteLine("The weights are random (--dummy): the answer means nothing.");
        using var progress = new LoadProgressLine();
        return ModelHost.Load(options, NullLoggerFactory.Instance, TimeProvider.System, progress);
    }

    /// <summary>Generates an answer. A cancelled one ends in order, with what was generated so far.</summary>
    /// <param name="onText">Gets new text as it comes; may be empty.</param>
    /// <exception cref="RequestRejectedException">It can never run: too long, a sampling option out of its range.</exception>
    public async Task<GenerationFinished> GenerateAsync(GenerationRequest request, Action<string> onText, CancellationToken cancel)
    {
        using var handle = Served.Engine.Submit(request);
        using var registration = cancel.Register(handle.Cancel);
        using var progress = ShowsPrefill ? new PrefillProgressLine(request.PromptTokenIds.Count, () => Served.Engine.Stats.PromptTokens) : null;
        await foreach (var e in handle.Events.ReadAllAsync(CancellationToken.None))
        {
            if (e is GenerationDelta or GenerationFinished) progress?.Dispose();
            if (e is GenerationDelta delta) onText(delta.Text);
            if (e is not GenerationFinished finished) continue;
            onText(finished.Text);
            return finished.Reason != FinishReason.Error ? finished : throw new AnswerException(finished.Error ?? "the engine gives no reason");
        }
        throw new AnswerException("the engine ended without a word");
    }

    public ValueTask DisposeAsync() => Served.DisposeAsync();
}

/// <summary>The engine could not finish an answer.</summary>
internal sealed class AnswerException(string reason) : Exception($"The answer could not be finished: {reason}.");

using Inference.Runtime.Engine;
using Inference.Runtime.Sampling;
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
            if (e is GenerationStarted started) progress?.Begin(started.CachedTokens);
            if (e is GenerationDelta or GenerationFinished) progress?.Dispose();
            if (e is GenerationDelta delta) onText(delta.Text);
            if (e is not GenerationFinished finished) continue;
            onText(finished.Text);
            return finished.Reason != FinishReason.Error ? finished : throw new AnswerException(finished.Error ?? "the engine gives no reason");
        }
        throw new AnswerException("the engine ended without a word");
    }

    /// <summary>How many of the first of these tokens the cache holds: they need not be computed when a prompt begins with them.</summary>
    public async Task<int> KeptAsync(int[] tokens)
    {
        Name(nameof(KeptAsync), tokens);
        var info = await Served.Sessions.GetAsync("", nameof(KeptAsync));
        await Served.Sessions.DeleteAsync("", nameof(KeptAsync));
        return info.MemoryTokens;
    }

    /// <summary>Whether state can outlive this process.</summary>
    public bool HasDisk => Served.Engine.Options.Disk is not null;

    /// <summary>Saves the state of as many of the first of these tokens as the cache holds, for this and later processes.</summary>
    /// <param name="name">The same for the same tokens; what was saved under it is replaced, unless it is longer.</param>
    /// <returns>How many are saved.</returns>
    /// <exception cref="KvSessionException">The disk is full or fails.</exception>
    public async Task<int> SaveAsync(string name, int[] tokens)
    {
        Name(name, tokens);
        var info = await Served.Sessions.GetAsync("", name);
        if (info.MemoryTokens <= (info.SavedTokens ?? 0)) return info.SavedTokens ?? 0;
        await Served.Sessions.TruncateAsync("", name, info.MemoryTokens);
        var nothing = new GenerationRequest { RequestId = "local", PromptTokenIds = [], Sampling = SamplingParams.Greedy, OutputTokensMax = 0 };
        return (await Served.Sessions.SaveAsync("", name, nothing, CancellationToken.None)).SavedTokens ?? 0;
    }

    private void Name(string name, int[] tokens)
    {
        try
        {
            Served.Sessions.Create("", name);
        }
        catch (KvSessionException e) when (e.Fault == KvSessionFault.Exists)
        {
            // saved by another process, or a turn before
        }
        using var turn = Served.Sessions.Begin("", name);
        turn.Commit(tokens, answerOpen: false);
    }

    public ValueTask DisposeAsync() => Served.DisposeAsync();
}

/// <summary>The engine could not finish an answer.</summary>
internal sealed class AnswerException(string reason) : Exception($"The answer could not be finished: {reason}.");

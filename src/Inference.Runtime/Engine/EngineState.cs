namespace Inference.Runtime.Engine;

/// <summary>An engine's life. Each state leads only to later ones.</summary>
public enum EngineState
{
    /// <summary>Constructed; the model has not made a step yet. Requests are refused.</summary>
    Starting,
    /// <summary>The model has made a step; requests are accepted.</summary>
    Ready,
    /// <summary>Accepted requests run to their end; new ones are refused.</summary>
    Draining,
    /// <summary>Every request has had its end; the engine's memory is given back.</summary>
    Stopped,
    /// <summary>The engine broke (<see cref="InferenceEngine.Failure"/>); every request has been answered with an error.</summary>
    Failed,
}

/// <summary>A consistent picture of the engine after a step. Counters run since the engine was constructed.</summary>
/// <param name="Running">Sequences that hold KV pages.</param>
/// <param name="Stalled">Those of the running and waiting sequences that rest because their reader does not read.</param>
/// <param name="Waiting">Sequences in the queue, preempted ones among them.</param>
/// <param name="PromptTokens">Prompt tokens processed, not counting those processed again after a preemption.</param>
/// <param name="RecomputedTokens">Tokens processed again because their pages had been taken away.</param>
/// <param name="OutputTokens">Tokens generated.</param>
/// <param name="LastStepDuration">Of the last step that ran the model.</param>
/// <param name="LastStepAt">When it ended; null before the first.</param>
/// <param name="Finished">Requests ended, by <see cref="FinishReason"/> as index.</param>
public sealed record EngineStats(
    EngineState State, int Running, int Stalled, int Waiting, IReadOnlyList<KvPoolStats> Kv, long Steps, long PromptTokens, long RecomputedTokens,
    long OutputTokens, long Preemptions, TimeSpan LastStepDuration, DateTimeOffset? LastStepAt, long Accepted, IReadOnlyList<long> Finished)
{
    /// <summary>The disk tier as it is now; null without one.</summary>
    public KvDiskStats? Disk { get; init; }
}

/// <summary>State on disk. Counters run since the engine was constructed.</summary>
/// <param name="Waiting">Prefixes that wait to be written.</param>
/// <param name="Reading">Prefixes that are being read.</param>
/// <param name="Written">Extents (runs of blocks, a file each) written.</param>
/// <param name="Unusable">Extents that were found damaged, foreign or of another model, and dropped.</param>
/// <param name="Paused">Nothing is written for a while, for the disk failed several times in a row.</param>
public sealed record KvDiskStats(
    int Extents, long Bytes, long BytesMax, long SavedBytes, int Waiting, int Reading, long Written, long BytesWritten, long WriteFailures, long ReadsDone,
    long ReadsFailed, long BytesRead, long Unusable, bool Paused);

/// <summary>Pages of one kind of state.</summary>
/// <param name="FreePages">Pages that a request can have: those nobody holds, and <paramref name="KeptPages"/>.</param>
/// <param name="KeptPages">Pages that only kept prefixes hold; given up when a request needs them.</param>
public sealed record KvPoolStats(string Name, int TotalPages, int FreePages, int KeptPages = 0);

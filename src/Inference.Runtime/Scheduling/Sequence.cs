using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;

namespace Inference.Runtime.Scheduling;

/// <summary>Where a sequence is in its life. Waiting -> Prefilling -> Decoding -> Finished; preemption leads back to Waiting, and every state may
/// lead to Finished.</summary>
internal enum SequenceState
{
    /// <summary>In the queue; holds no page.</summary>
    Waiting,
    /// <summary>Some of the tokens it came with have not been processed.</summary>
    Prefilling,
    /// <summary>One token, the last, has not been processed.</summary>
    Decoding,
    /// <summary>Ended; holds no page.</summary>
    Finished,
}

/// <summary>
/// A request's life inside the engine: its tokens, how many of them are in the cache, and the pages that hold them. It knows no text, no
/// client and no sampling. Changed by the <see cref="Scheduler"/> only, on the engine's thread.
/// Invariants: Processed is at most Length; a waiting or finished sequence has Processed = 0 and an empty table.
/// </summary>
internal sealed class Sequence
{
    private int[] _tokens;

    /// <param name="arrival">Place in the line: unique, ascending in the order of submission.</param>
    /// <param name="prefix">Its place among the kept prefixes; null if none are kept.</param>
    /// <param name="deadline">Time after which the answer is of no use, in the scheduler's ticks; long.MaxValue = never.</param>
    public Sequence(long arrival, IReadOnlyList<int> prompt, int outputTokensMax, long deadline, BlockTable table, PrefixPath? prefix = null)
    {
        ArgumentOutOfRangeException.ThrowIfZero(prompt.Count);
        ArgumentOutOfRangeException.ThrowIfNegative(outputTokensMax);
        (Arrival, PromptLength, OutputTokensMax, Deadline, Table, Prefix) = (arrival, prompt.Count, outputTokensMax, deadline, table, prefix);
        _tokens = new int[prompt.Count + Math.Min(outputTokensMax, 64)];
        for (int i = 0; i < prompt.Count; i++) _tokens[i] = prompt[i];
        Length = prompt.Count;
    }

    public long Arrival { get; }
    public int PromptLength { get; }

    /// <summary>0 = its tokens are processed and nothing is drawn.</summary>
    public int OutputTokensMax { get; }
    public long Deadline { get; }

    /// <summary>Time by which its first token must be there; long.MaxValue = any.</summary>
    public long FirstTokenDeadline { get; init; } = long.MaxValue;

    /// <summary>Whose it is: tenants share the engine by weight.</summary>
    public string Tenant { get; init; } = "";

    /// <summary>Among its tenant's requests: each level is worth <see cref="SchedulerLimits.PriorityAhead"/>.</summary>
    public int Priority { get; init; }

    public BlockTable Table { get; }
    public PrefixPath? Prefix { get; }

    public SequenceState State { get; internal set; }

    /// <summary>Tokens: prompt and output.</summary>
    public int Length { get; private set; }

    public int OutputCount => Length - PromptLength;

    /// <summary>Tokens whose rows are in the cache.</summary>
    public int Processed { get; internal set; }

    /// <summary>Prompt tokens that were found in the cache when it started.</summary>
    public int CachedTokens { get; internal set; }

    /// <summary>Of these, read from disk for it.</summary>
    public int DiskTokens { get; internal set; }

    /// <summary>The most that <see cref="Processed"/> has been; tokens below it are processed again after a preemption.</summary>
    public int ProcessedMax { get; internal set; }

    /// <summary>Positions in the cache if it generates all it may: the last token is never processed.</summary>
    public int PositionsMax => PromptLength + Math.Max(0, OutputTokensMax - 1);

    /// <summary>Its reader does not read: it is not scheduled.</summary>
    public bool Stalled { get; internal set; }

    /// <summary>Times it lost its pages to another, not counting those while it was stalled.</summary>
    public int Preemptions { get; internal set; }

    /// <summary>It has left the line: it was given a place, and keeps its turn if it loses it.</summary>
    public bool Started => Turn != long.MaxValue;

    /// <summary>Among those that have started, from 1: who started first comes first, whatever happens to it. long.MaxValue before it starts.</summary>
    public long Turn { get; internal set; } = long.MaxValue;

    /// <summary>Among its tenant's requests in the line: smaller goes first. Fixed when it is submitted.</summary>
    public long Rank { get; internal set; }

    /// <summary>Tokens that requests asked for which went past it while it was first and had no room.</summary>
    public long Bypassed { get; internal set; }

    /// <summary>Those that had started when it was first in the line and could not: 0 = that never was.</summary>
    internal long SkippedAt { get; set; }

    /// <summary>To go past it costs it nothing.</summary>
    internal bool Yields { get; set; }

    /// <summary>The last step in which it was first in the line and could not start.</summary>
    internal long TriedIn { get; set; }

    public TenantAccount Account { get; internal set; } = null!;

    /// <summary>Prompt tokens of the step that is being planned.</summary>
    internal int Share { get; set; }

    /// <summary>Tokens that have to be processed before the next one can be drawn.</summary>
    public int ToGo => Length - Processed;

    /// <summary>The time at which it ends if nothing else happens.</summary>
    public long Due => OutputCount == 0 ? Math.Min(Deadline, FirstTokenDeadline) : Deadline;

    /// <summary>Why it ended, in state Finished.</summary>
    public FinishReason? Finish { get; internal set; }

    /// <summary>What went wrong, with <see cref="FinishReason.Error"/>.</summary>
    public string? Error { get; internal set; }

    /// <summary>Why it was hopeless, with <see cref="FinishReason.DeadlineUnreachable"/>.</summary>
    public DeadlineEstimate? Estimate { get; internal set; }

    /// <summary>All tokens.</summary>
    public ReadOnlyMemory<int> AllTokens => _tokens.AsMemory(0, Length);

    public ReadOnlyMemory<int> Tokens(int start, int count) => _tokens.AsMemory(start, count);

    public int TokenAt(int index) => index < Length ? _tokens[index] : throw new ArgumentOutOfRangeException(nameof(index));

    internal void Append(int token)
    {
        if (Length == _tokens.Length) Array.Resize(ref _tokens, checked(_tokens.Length * 2));
        _tokens[Length++] = token;
    }
}

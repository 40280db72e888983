using Inference.Backends;
using Inference.Runtime.KvCache;
using Inference.Runtime.KvCache.Disk;
using Inference.Runtime.Models;
using Inference.Runtime.Scheduling;

namespace Inference.Runtime.Engine;

/// <summary>
/// What an operator may choose about an engine. Immutable; resolved and checked once, by the engine's constructor, with errors that name
/// the option and what would work (<see cref="EngineOptionsException"/>).
/// </summary>
public sealed record EngineOptions
{
    /// <summary>Token positions that the KV cache holds over all sequences; null = as many as <see cref="KvCapacityBytes"/> allows.</summary>
    public int? KvCapacityTokens { get; init; }

    /// <summary>Bytes that the KV cache may take; null, and no <see cref="KvCapacityTokens"/> = nine tenths of the backend's memory less
    /// <see cref="ReservedBytes"/>, and no more than <see cref="SequencesMax"/> full contexts need.</summary>
    public long? KvCapacityBytes { get; init; }

    /// <summary>Bytes of the backend's memory that are taken already (weights); read only when the capacity is automatic.</summary>
    public long ReservedBytes { get; init; }

    /// <summary>Most positions of one sequence; null = the model's own limit.</summary>
    public int? ContextMax { get; init; }

    /// <summary>Most sequences that hold KV pages at once.</summary>
    public int SequencesMax { get; init; } = 32;

    /// <summary>Most tokens of one step, over all its sequences; at least <see cref="SequencesMax"/>, so that every one of them can decode.</summary>
    public int StepTokensMax { get; init; } = 256;

    /// <summary>Most accepted requests that wait for their first step; more are refused as overloaded.</summary>
    public int QueueMax { get; init; } = 256;

    /// <summary>Most prompt tokens of the requests that wait for their first step; at least one full context. Null = four full contexts, and at
    /// least <see cref="QueueTokensAutomatic"/>.</summary>
    public long? QueueTokensMax { get; init; }

    public const long QueueTokensAutomatic = 1 << 20;

    /// <summary>Shares of the tenants that have another than 1, from <see cref="TenantWeightMin"/> to <see cref="TenantWeightMax"/>. Where requests have
    /// to wait, tenants get tokens in proportion to their weights.</summary>
    public IReadOnlyDictionary<string, double> TenantWeights { get; init; } = new Dictionary<string, double>();

    public const double TenantWeightMin = 0.01, TenantWeightMax = 100;

    /// <summary>A level of priority puts a request ahead of its tenant's others that were submitted up to so much earlier.</summary>
    public TimeSpan PriorityAhead { get; init; } = PriorityAheadDefault;

    public static readonly TimeSpan PriorityAheadDefault = TimeSpan.FromMinutes(1);

    /// <summary>Most prefixes kept for reuse by later requests; 0 = none. Each takes the constant state of a sequence.
    /// Null = <see cref="PrefixesAutomatic"/>, or fewer: what fits an eighth of the cache.</summary>
    public int? PrefixesMax { get; init; }

    /// <summary>Tenants resume from each other's prefixes. Off: nobody can tell by the time to the first token what another tenant has asked.</summary>
    public bool SharePrefixes { get; init; }

    /// <summary>Whose kept prefixes a tenant's requests resume from.</summary>
    internal string PrefixesOf(string tenant) => SharePrefixes ? "" : tenant;

    /// <summary>Prefixes kept where memory allows and nothing else is asked for.</summary>
    public const int PrefixesAutomatic = 64;

    /// <summary>Where kept prefixes and saved sessions go that memory has no room for; null = nowhere.</summary>
    public KvDiskOptions? Disk { get; init; }

    /// <summary>Events kept for a reader that does not read; a sequence whose outbox is full rests until half of it has been read.</summary>
    public int OutboxMax { get; init; } = 128;

    /// <summary>A request is admitted only if it and each running one could grow by this many tokens (or to its end, if that is nearer)
    /// within the free pages: less means fuller steps and more preemptions.</summary>
    public int HeadroomTokens { get; init; } = KvStateSpec.BlockTokens;

    /// <summary>The weakest determinism of a backend that is accepted. Below <see cref="Determinism.AnySchedule"/> an answer may depend on what
    /// else runs, and change when a sequence is preempted.</summary>
    public Determinism DeterminismRequired { get; init; } = Determinism.AnySchedule;

    /// <summary>The same options with everything automatic decided for a model on a backend: <see cref="KvCapacityTokens"/> and
    /// <see cref="ContextMax"/>, <see cref="PrefixesMax"/> and <see cref="QueueTokensMax"/> are set, <see cref="KvCapacityBytes"/> is what they take.</summary>
    /// <exception cref="EngineOptionsException">An option cannot work.</exception>
    public EngineOptions Resolve(ModelInfo model, IReadOnlyList<KvStateSpec> states, BackendInfo backend)
    {
        CheckRanges(model, backend);
        int context = ContextMax ?? model.ContextMax;
        long bytes = KvCapacityBytes ?? Math.Max(0, (backend.MemoryBytes - ReservedBytes) / 10 * 9);
        int prefixes = PrefixesMax ?? (KvCapacityTokens is null ? PrefixesFitting(bytes, states) : PrefixesAutomatic);
        var resolved = this with
        {
            ContextMax = context,
            PrefixesMax = prefixes,
            KvCapacityTokens = CapacityTokens(bytes, prefixes, context, states),
            QueueTokensMax = QueueTokensMax ?? Math.Max(4L * context, QueueTokensAutomatic),
        };
        AtLeast(context, resolved.QueueTokensMax.Value, nameof(QueueTokensMax));
        try
        {
            return resolved with { KvCapacityBytes = resolved.Capacity.BytesOf(states) };
        }
        catch (OverflowException)
        {
            throw new EngineOptionsException(nameof(KvCapacityTokens), $"{resolved.KvCapacityTokens} positions need more pages than can be counted.");
        }
    }

    /// <summary>Of resolved options.</summary>
    internal KvCapacity Capacity => new(KvCapacityTokens!.Value, SequencesMax, StepTokensMax, PrefixesMax!.Value);

    internal SchedulerLimits Scheduling => new(SequencesMax, StepTokensMax, HeadroomTokens)
    {
        PriorityAhead = PriorityAhead.Ticks,
        TenantWeights = TenantWeights,
    };

    private void CheckRanges(ModelInfo model, BackendInfo backend)
    {
        AtLeast(1, SequencesMax, nameof(SequencesMax));
        AtLeast(1, QueueMax, nameof(QueueMax));
        AtLeast(1, OutboxMax, nameof(OutboxMax));
        AtLeast(0, HeadroomTokens, nameof(HeadroomTokens));
        AtLeast(0, PrefixesMax ?? 0, nameof(PrefixesMax));
        if (PriorityAhead < TimeSpan.Zero || PriorityAhead > TimeSpan.FromDays(1))
            throw new EngineOptionsException(nameof(PriorityAhead), $"{PriorityAhead} is not from no time to a day.");
        foreach (var (tenant, weight) in TenantWeights)
            if (!(weight is >= TenantWeightMin and <= TenantWeightMax))
                throw new EngineOptionsException(
                    nameof(TenantWeights), $"the weight {weight} of '{tenant}' is not from {TenantWeightMin} to {TenantWeightMax}.");
        AtLeast(0, ReservedBytes, nameof(ReservedBytes));
        AtLeast(1, KvCapacityTokens ?? 1, nameof(KvCapacityTokens));
        AtLeast(1, KvCapacityBytes ?? 1, nameof(KvCapacityBytes));
        AtLeast(2, ContextMax ?? 2, nameof(ContextMax));
        if (StepTokensMax < SequencesMax)
            throw new EngineOptionsException(
                nameof(StepTokensMax), $"{StepTokensMax} is less than {nameof(SequencesMax)} = {SequencesMax}; every sequence needs a token per step.");
        if (Disk is not null && PrefixesMax == 0)
            throw new EngineOptionsException(nameof(Disk), $"there is nothing to put on disk with {nameof(PrefixesMax)} = 0; keep some prefixes.");
        if (KvCapacityTokens is not null && KvCapacityBytes is not null)
            throw new EngineOptionsException(nameof(KvCapacityBytes), $"set this or {nameof(KvCapacityTokens)}, not both.");
        if (ContextMax > model.ContextMax)
            throw new EngineOptionsException(nameof(ContextMax), $"{ContextMax} is more than the model's {model.ContextMax} positions.");
        if (backend.Determinism > DeterminismRequired)
            throw new EngineOptionsException(
                nameof(DeterminismRequired), $"the backend {backend.Name} is {backend.Determinism}; choose that here to accept it.");
    }

    private int PrefixesFitting(long bytes, IReadOnlyList<KvStateSpec> states)
    {
        long none = new KvCapacity(0, SequencesMax, StepTokensMax).BytesOf(states);
        long each = new KvCapacity(0, SequencesMax, StepTokensMax, 1).BytesOf(states) - none;
        return each == 0 ? PrefixesAutomatic : (int)Math.Clamp((bytes - none) / 8 / each, 0, PrefixesAutomatic);
    }

    private int CapacityTokens(long bytes, int prefixes, int context, IReadOnlyList<KvStateSpec> states)
    {
        if (KvCapacityTokens is { } tokens) return tokens;
        int fitting = KvCapacity.TokensFor(bytes, SequencesMax, StepTokensMax, states, prefixes);
        if (fitting == 0)
            throw new EngineOptionsException(
                nameof(KvCapacityBytes), $"{bytes} bytes do not hold one block of {KvStateSpec.BlockTokens} positions and the constant state of " +
                $"{SequencesMax} sequences ({new KvCapacity(KvStateSpec.BlockTokens, SequencesMax, StepTokensMax, prefixes).BytesOf(states)} bytes); " +
                $"give more, or lower {nameof(SequencesMax)}, {nameof(PrefixesMax)} or {nameof(StepTokensMax)}.");
        return KvCapacityBytes is null ? (int)Math.Min(fitting, (long)SequencesMax * context) : fitting;
    }

    private static void AtLeast(long min, long value, string option)
    {
        if (value < min) throw new EngineOptionsException(option, $"{value} is less than {min}.");
    }
}

/// <summary>A folder for state that outlives memory, and the process.</summary>
/// <param name="Folder">Private: made with mode 0700, or found like that.</param>
/// <param name="BytesMax">Most bytes of state in it; saved sessions' tokens come on top.</param>
public sealed record KvDiskOptions(string Folder, long BytesMax)
{
    /// <summary>How a folder is opened; tests put a simulated disk here.</summary>
    internal Func<string, Func<string, bool>, IDisk> Open { get; init; } = static (folder, isOurs) =>
        OperatingSystem.IsLinux() ? FolderDisk.Open(folder, isOurs) : throw new KvFolderException("KV state on disk needs Linux; leave the folder for it unset.");

    /// <summary>Tokens that the disk must have beyond memory for a prefix to be read from there; null = a block.</summary>
    internal int? WorthTokens { get; init; }

    /// <summary>False: whoever steps the engine by hand runs the disk too.</summary>
    internal bool Threads { get; init; } = true;
}

/// <summary>An option of the engine cannot work.</summary>
/// <param name="option">Name of the property of <see cref="EngineOptions"/>.</param>
public sealed class EngineOptionsException(string option, string message) : Exception($"{option}: {message}")
{
    public string Option { get; } = option;
}

using System.Runtime.CompilerServices;

namespace Inference.Simulation;

/// <summary>The invariants that simulations check, numbered as in docs/simulation.md, which says each in full.</summary>
internal enum Law
{
    /// <summary>An exception of the product where nothing was broken on purpose: its own checks are part of the net.</summary>
    OwnChecks = 0,
    PagesConserved = 1,
    ReferencesCounted = 2,
    FreePagesUntouched = 3,
    OneWriter = 4,
    TableCovers = 5,
    PrefixContent = 6,
    PrefixEviction = 7,
    MemoryBounded = 8,
    PlanWithinLimits = 9,
    DeliveredOnce = 10,
    AnswerDetermined = 11,
    EndsInTime = 12,
    CancelFrees = 13,
    CountersAgree = 14,
    OperationsEndOnce = 15,
    DiskVerified = 16,
    Deterministic = 17,
    StepAllocatesNothing = 18,
    OutboxBounded = 19,
    DrainHolds = 20,
    WorkConserving = 21,
    Progress = 22,
    NoStarvation = 23,
    Fairness = 24,
    PreemptionBounded = 25,
    UnservableRefused = 26,
    EverythingComesBack = 27,
    RetryAfterHonest = 28,
}

/// <summary>A law does not hold.</summary>
internal sealed class LawBrokenException(Law law, string what, Exception? inner = null) : Exception(what, inner)
{
    public Law Law { get; } = law;
}

/// <summary>
/// Checks laws and counts how often: in all, and with a premise that was true, for a law that is never put to the test says nothing. One thread;
/// runs are added up afterwards.
/// </summary>
internal sealed class Laws
{
    public const int Count = 28;

    private readonly long[] _checked = new long[Count + 1];
    private readonly long[] _exercised = new long[Count + 1];

    public long Checked(Law law) => _checked[(int)law];

    /// <summary>Of these, with a true premise.</summary>
    public long Exercised(Law law) => _exercised[(int)law];

    public static IEnumerable<Law> All => Enumerable.Range(1, Count).Select(i => (Law)i);

    /// <summary>The law applies, and holds or not.</summary>
    public void Check(Law law, bool holds, [InterpolatedStringHandlerArgument(nameof(holds))] Otherwise otherwise)
    {
        _checked[(int)law]++;
        _exercised[(int)law]++;
        if (!holds) throw new LawBrokenException(law, otherwise.Text);
    }

    /// <summary>The law applies where the premise is true.</summary>
    public void Check(Law law, bool premise, bool holds, string otherwise)
    {
        _checked[(int)law]++;
        if (!premise) return;
        _exercised[(int)law]++;
        if (!holds) throw new LawBrokenException(law, otherwise);
    }

    /// <summary>Checked by the caller.</summary>
    public void Note(Law law, bool premise = true)
    {
        _checked[(int)law]++;
        if (premise) _exercised[(int)law]++;
    }

    public void Add(Laws other)
    {
        for (int i = 0; i <= Count; i++)
        {
            Interlocked.Add(ref _checked[i], other._checked[i]);
            Interlocked.Add(ref _exercised[i], other._exercised[i]);
        }
    }

    /// <summary>Text that is put together only if a law is broken.</summary>
    [InterpolatedStringHandler]
    internal ref struct Otherwise
    {
        private DefaultInterpolatedStringHandler _text;

        public Otherwise(int literalLength, int formattedCount, bool holds, out bool wanted)
        {
            wanted = !holds;
            if (wanted) _text = new(literalLength, formattedCount);
        }

        public void AppendLiteral(string value) => _text.AppendLiteral(value);
        public void AppendFormatted<T>(T value) => _text.AppendFormatted(value);

        public string Text => _text.ToStringAndClear();
    }
}

/// <summary>
/// What happened in a run: always a hash of it, so that two runs of a seed can be compared; in a replay also its last lines.
/// </summary>
internal sealed class Trace(int linesMax = 0)
{
    private readonly Queue<string> _lines = [];

    public ulong Hash { get; private set; } = 14695981039346656037;

    public bool KeepsLines => linesMax > 0;

    public IReadOnlyCollection<string> Lines => _lines;

    public void Mix(long value) => Hash = (Hash ^ (ulong)value) * 1099511628211;

    public void Line(string line)
    {
        if (_lines.Count == linesMax) _lines.Dequeue();
        _lines.Enqueue(line);
    }
}

/// <summary>One seeded run of a kind of simulation.</summary>
internal interface ISimulation : IDisposable
{
    Laws Laws { get; }
    Trace Trace { get; }

    /// <summary>Steps after each of which the laws were checked.</summary>
    long Steps { get; }

    /// <summary>What the draw led to, by name: it shows whether a run reached what it is there for.</summary>
    IEnumerable<(string Name, long Count)> Reached { get; }

    /// <summary>Runs to the end, or to a <see cref="LawBrokenException"/>.</summary>
    void Run();
}

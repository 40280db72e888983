namespace Inference.Runtime;

/// <summary>
/// Bugs of the catalogue in docs/simulation.md, planted on purpose so that it can be seen that the tests find them. In every build but that of the
/// symbol SEEDED_BUGS this is the constant false and leaves nothing behind.
/// </summary>
internal static class SeededBug
{
#if SEEDED_BUGS
    [ThreadStatic]
    private static int _number;

    /// <summary>The bug that is there on this thread; 0 = none.</summary>
    public static int Number { get => _number; set => _number = value; }

    public static bool Is(int number) => number == _number;
#else
    public static bool Is(int number) => false;
#endif
}

// Lookups that composing to NFC needs: decompositions, combining classes, composites, and whether a character may be
// left alone. Built once from NfcData; read only; shared by all threads.
using System.Runtime.CompilerServices;

namespace Inference.Runtime.Tokenization.Unicode;

internal static class NfcTables
{
    private const int HangulSyllables = 0xAC00;
    private const int HangulLeads = 0x1100;
    private const int HangulVowels = 0x1161;
    private const int HangulTrails = 0x11A7; // one before the first trailing consonant: index 0 means "none"
    private const int LeadCount = 19;
    private const int VowelCount = 21;
    private const int TrailCount = 28;
    private const int SyllableCount = LeadCount * VowelCount * TrailCount;

    private static readonly Dictionary<int, (int First, int Second)> Decompositions = [];
    private static readonly Dictionary<ulong, int> Composites = [];
    private static readonly byte[] Classes = new byte[0x20000]; // combining classes: the last one is U+1E94A
    private static readonly bool[] Unstable = BuildAll();

    /// <summary>The canonical combining class; 0 for starters.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte CombiningClass(int codePoint) => codePoint < Classes.Length ? Classes[codePoint] : (byte)0;

    /// <summary>
    /// True when the character may change or compose with the one before it, so that the text around it needs the whole procedure.
    /// A text of stable characters only is in NFC.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsUnstable(int codePoint) => codePoint < Unstable.Length
        ? Unstable[codePoint]
        : codePoint is >= 0x2F800 and < 0x2FA20;

    /// <summary>One step of canonical decomposition; <c>Second</c> is 0 for a singleton. False when the character has none.</summary>
    public static bool TryDecompose(int codePoint, out (int First, int Second) parts)
    {
        var index = codePoint - HangulSyllables;
        if ((uint)index >= SyllableCount)
            return Decompositions.TryGetValue(codePoint, out parts);
        var trail = index % TrailCount;
        parts = trail != 0
            ? (codePoint - trail, HangulTrails + trail)
            : (HangulLeads + (index / (VowelCount * TrailCount)), HangulVowels + (index / TrailCount % VowelCount));
        return true;
    }

    /// <summary>The primary composite of two characters, or -1.</summary>
    public static int Compose(int first, int second)
    {
        if ((uint)(first - HangulLeads) < LeadCount && (uint)(second - HangulVowels) < VowelCount)
            return HangulSyllables + ((((first - HangulLeads) * VowelCount) + (second - HangulVowels)) * TrailCount);
        if ((uint)(first - HangulSyllables) < SyllableCount && (first - HangulSyllables) % TrailCount == 0
            && second > HangulTrails && second < HangulTrails + TrailCount)
            return first + (second - HangulTrails);
        return Composites.TryGetValue(Pair(first, second), out var composed) ? composed : -1;
    }

    private static ulong Pair(int first, int second) => ((ulong)(uint)first << 32) | (uint)second;

    private static bool[] BuildAll()
    {
        var unstable = new bool[0x20000];
        for (var i = 0; i < NfcData.CombiningClasses.Length; i += 3)
        {
            for (var c = NfcData.CombiningClasses[i]; c <= NfcData.CombiningClasses[i + 1]; c++)
            {
                Classes[c] = (byte)NfcData.CombiningClasses[i + 2];
                unstable[c] = true;
            }
        }
        for (var i = 0; i < NfcData.Composites.Length; i += 3)
        {
            var (composed, first, second) = (NfcData.Composites[i], NfcData.Composites[i + 1], NfcData.Composites[i + 2]);
            Decompositions.Add(composed, (first, second));
            Composites.Add(Pair(first, second), composed);
            unstable[second] = true;
        }
        for (var i = 0; i < NfcData.Excluded.Length; i += 3)
        {
            Decompositions.Add(NfcData.Excluded[i], (NfcData.Excluded[i + 1], NfcData.Excluded[i + 2]));
            unstable[NfcData.Excluded[i]] = true;
        }
        for (var i = 0; i < NfcData.Singletons.Length; i += 2)
        {
            Decompositions.Add(NfcData.Singletons[i], (NfcData.Singletons[i + 1], 0));
            if (NfcData.Singletons[i] < unstable.Length)
                unstable[NfcData.Singletons[i]] = true;
        }
        for (var c = HangulVowels; c < HangulVowels + VowelCount; c++)
            unstable[c] = true;
        for (var c = HangulTrails + 1; c < HangulTrails + TrailCount; c++)
            unstable[c] = true;
        return unstable;
    }
}

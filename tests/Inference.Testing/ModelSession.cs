using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Testing;

/// <summary>
/// A model driven without the engine: one cache, sequences processed in whatever pieces a test wants. Owns cache and runner, not the
/// model and not the backend.
/// </summary>
public sealed class ModelSession : IDisposable
{
    private readonly KvCacheManager _cache;
    private readonly ModelRunner _runner;
    private readonly int _vocab;

    public ModelSession(IModel model, IBackend backend, int tokens = 4096, int sequences = 16, int stepTokens = 2048)
    {
        _vocab = model.Info.VocabSize;
        _cache = new KvCacheManager(model.KvStates, new KvCapacity(tokens, sequences, stepTokens), backend);
        _runner = new ModelRunner(model, backend, _cache, stepTokens, sequences);
    }

    public KvCacheManager Cache => _cache;

    /// <summary>A sequence that has processed nothing yet.</summary>
    public SequenceState Begin() => new(_cache.CreateTable());

    /// <summary>Gives the sequence's pages back.</summary>
    public void End(SequenceState sequence) => _cache.Free(sequence.Table);

    /// <summary>Processes pieces of several sequences in one step; returns each piece's logits, all positions.</summary>
    public float[][][] Step(params (SequenceState Sequence, int[] Tokens)[] pieces) => Step(pieces, out _);

    /// <summary>As <see cref="Step(ValueTuple{SequenceState, int[]}[])"/>; with next tokens on every sequence, the draft's logits too.</summary>
    public float[][][] Step((SequenceState Sequence, int[] Tokens)[] pieces, out float[][][] draft)
    {
        var chunks = new List<SequenceChunk>();
        foreach (var (s, tokens) in pieces)
        {
            if (!_cache.TryExtend(s.Table, s.Length + tokens.Length)) throw new InvalidOperationException("The session's cache is full.");
            var next = s.AllTokens is null ? default : (ReadOnlyMemory<int>)NextTokens(s, tokens.Length);
            chunks.Add(new SequenceChunk(tokens, s.Length, s.Table, 0, next));
        }
        _runner.Run(chunks);
        var logits = new float[pieces.Length][][];
        draft = new float[pieces.Length][][];
        int row = 0;
        for (int p = 0; p < pieces.Length; p++)
        {
            var (s, tokens) = pieces[p];
            logits[p] = new float[tokens.Length][];
            draft[p] = new float[s.AllTokens is null ? 0 : tokens.Length][];
            for (int i = 0; i < tokens.Length; i++, row++)
            {
                logits[p][i] = _runner.Logits(row).ToArray();
                if (s.AllTokens is not null) draft[p][i] = _runner.DraftLogits(row).ToArray();
            }
            s.Length += tokens.Length;
            _cache.Trim(s.Table, s.Length);
        }
        return logits;
    }

    /// <summary>Runs one sequence from its start in pieces of the given sizes (the last repeats) and ends it. Logits per position.</summary>
    public float[][] Run(int[] tokens, params int[] pieceSizes) => Run(tokens, false, out _, pieceSizes);

    /// <summary>As <see cref="Run(int[], int[])"/>, with the draft block's logits (the last position's row is meaningless).</summary>
    public float[][] RunWithDraft(int[] tokens, out float[][] draft, params int[] pieceSizes) => Run(tokens, true, out draft, pieceSizes);

    private float[][] Run(int[] tokens, bool withDraft, out float[][] draft, int[] pieceSizes)
    {
        var sequence = Begin();
        if (withDraft) sequence.AllTokens = tokens;
        var (logits, drafts) = (new List<float[]>(), new List<float[]>());
        for (int i = 0, piece = 0; i < tokens.Length; piece++)
        {
            int size = pieceSizes.Length == 0 ? tokens.Length : pieceSizes[Math.Min(piece, pieceSizes.Length - 1)];
            size = Math.Min(size, tokens.Length - i);
            logits.AddRange(Step([(sequence, tokens[i..(i + size)])], out var d)[0]);
            drafts.AddRange(d[0]);
            i += size;
        }
        End(sequence);
        draft = [.. drafts];
        return [.. logits];
    }

    private static int[] NextTokens(SequenceState s, int count)
    {
        var next = new int[count];
        for (int i = 0; i < count; i++)
            next[i] = s.Length + i + 1 < s.AllTokens!.Length ? s.AllTokens[s.Length + i + 1] : 0;
        return next;
    }

    public void Dispose()
    {
        _runner.Dispose();
        _cache.Dispose();
    }
}

/// <summary>A sequence of a <see cref="ModelSession"/>.</summary>
public sealed class SequenceState(BlockTable table)
{
    public BlockTable Table { get; } = table;
    public int Length { get; internal set; }

    /// <summary>Set to run the draft block too: the whole sequence, from which next tokens are taken.</summary>
    public int[]? AllTokens { get; set; }
}

using Inference.Backends;
using Inference.Backends.Operators;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Testing;

/// <summary>
/// A model whose next-token logits are a hash of the whole prefix, and which remembers that prefix only through the KV cache: in several
/// kinds of state it keeps, per row, what the row must hold, and before each step it reads every row that it may still need through the page
/// tables and compares. A page that is foreign, stale, lost or freed too early is therefore an exception here, and a table of another
/// sequence is a wrong token. What a request must yield is known without any engine: <see cref="Logits(ReadOnlySpan{int}, Span{float})"/>.
///
/// Kinds, in their order: every token (ratio 1), every 4th position and every 128th (or another), a window, a chunk with some before it, the
/// state after the last token alone (as recurrent layers have it).
/// </summary>
public sealed unsafe class HashModel : IModel
{
    private const int HashFloats = 4;  // 16 bits each: exact in F32
    private const int Width = 2 + HashFloats;
    private const int WindowTokens = 11, ChunkTokens = 8, SlotKind = 5;
    private const ulong Root = 0x243F6A8885A308D3;
    private readonly int _vocab;

    /// <param name="pageRows">Rows of a page of the ratio-1 kind: a power of two up to 256; small pages make small pools interesting.</param>
    /// <param name="farRatio">Of the kind with the fewest rows; a block of the prefix cache has so many tokens, or what a page of another kind covers.</param>
    public HashModel(int vocab = 64, int contextMax = 4096, int pageRows = 4, int farRatio = 128)
    {
        _vocab = vocab;
        Info = new("hash", vocab, 1, 1, contextMax, HasDraft: false, ParameterCount: 1);
        KvStates =
        [
            new("tokens", 1, Width, 1, KvRetention.All, 0, 0, pageRows),
            new("every-4th", 2, Width, 4, KvRetention.All, 0, 0, Math.Max(1, pageRows / 2)),
            new($"every-{farRatio}th", 1, Width, farRatio, KvRetention.All, 0, 0, 1),
            KvStateSpec.Window("window", 1, Width, WindowTokens, Math.Max(1, pageRows)),
            KvStateSpec.Chunk("chunk", 1, Width, ChunkTokens, 1, Math.Max(1, pageRows / 2)),
            KvStateSpec.Slot("slot", 2, Width),
        ];
    }

    public ModelInfo Info { get; }
    public IReadOnlyList<KvStateSpec> KvStates { get; }

    public byte[] Identity() => System.Security.Cryptography.SHA256.HashData([(byte)_vocab, (byte)(_vocab >> 8)]);

    /// <summary>A token after which the logits are NaN; -1 = none.</summary>
    public int NanToken { get; init; } = -1;

    /// <summary>Called at the start of each step with its number, from 0; may throw or wait.</summary>
    public Action<int>? BeforeStep { get; set; }

    /// <summary>Steps made.</summary>
    public int Steps { get; private set; }

    /// <summary>
    /// Rows of each kind that are compared before a chunk, besides the last: drawn, another draw in each step; null = all that may be needed. A row
    /// holds the hash of its whole prefix, so it is compared with the row before it, and the last one says whether the token will be right:
    /// what is wrong in a row that was not drawn is found later, or by the token.
    /// </summary>
    public int? RowsCompared { get; set; }

    /// <summary>What the model says after a prefix, by definition.</summary>
    public void Logits(ReadOnlySpan<int> prefix, Span<float> logits) => Logits(HashOf(prefix), prefix[^1], logits);

    /// <summary>The same, of a prefix with this hash and last token.</summary>
    public void Logits(ulong hash, int lastToken, Span<float> logits) => Fill(hash, lastToken, logits);

    public static ulong HashOf(ReadOnlySpan<int> prefix)
    {
        ulong hash = Root;
        foreach (int token in prefix) hash = Next(hash, token);
        return hash;
    }

    /// <summary>The hash of a prefix and one more token.</summary>
    public static ulong Next(ulong hash, int token) => Mix(hash ^ Mix((ulong)(uint)token + 0x13198A2E03707344));

    /// <summary>Whether a row on a page holds what it must, as the state of the prefix with these tokens and the hashes of its beginnings
    /// (<c>hashes[p]</c>: of p + 1 tokens). A row that does not exist yet, or that the next token does not read, may hold anything.</summary>
    public bool Agrees(int kind, Tensor pool, int page, int row, ReadOnlySpan<int> tokens, ReadOnlySpan<ulong> hashes)
    {
        var spec = KvStates[kind];
        int last = (row + 1) * spec.Ratio - 1;
        if (last >= tokens.Length || row < FirstRead(kind, tokens.Length)) return true;
        for (int layer = 0; layer < spec.LayerCount; layer++)
        {
            float* at = pool.F32(page) + ((long)layer * spec.RowsPerPage + row % spec.RowsPerPage) * Width;
            bool same = kind == 0 ? Holds(at, row, tokens[row], hashes[row]) : Holds(at, row, layer, Salted(hashes[last], kind, layer));
            if (!same) return false;
        }
        return true;
    }

    public void Forward(ForwardBatch batch)
    {
        BeforeStep?.Invoke(Steps++);
        int* sequence = batch.Tokens.Sequence.I32();
        int* rows = batch.LogitsRows.I32();
        int row = 0;
        for (int t = 0; t < batch.TokenCount;)
        {
            int end = t;
            while (end < batch.TokenCount && sequence[end] == sequence[t]) end++;
            int start = batch.Tokens.Position.I32()[t];
            ulong hash = RowsCompared is { } count ? VerifySome(batch, sequence[t], start, count) : Verify(batch, sequence[t], start);
            for (; t < end; t++)
            {
                hash = Process(batch, t, hash);
                if (row == batch.LogitsRows.D0 || rows[row] != t) continue;
                Fill(hash, batch.TokenIds.I32()[t], new Span<float>(batch.Logits.F32(row++), _vocab));
            }
        }
    }

    // Reads all that the token at position length may need; returns the hash of the prefix.
    private ulong Verify(ForwardBatch batch, int sequence, int length)
    {
        ulong hash = Root;
        for (int p = 0; p < length; p++)
        {
            float* row = Row(batch, 0, sequence, p, 0);
            int token = (int)row[1];
            hash = Next(hash, token);
            Expect(row, 0, sequence, p, token, hash);
            for (int kind = 1; kind < KvStates.Count; kind++)
            {
                var spec = KvStates[kind];
                if ((p + 1) % spec.Ratio != 0 || p / spec.Ratio < FirstRead(kind, length)) continue;
                for (int layer = 0; layer < spec.LayerCount; layer++)
                    Expect(Row(batch, kind, sequence, p / spec.Ratio, layer), kind, sequence, p / spec.Ratio, layer, Salted(hash, kind, layer));
            }
        }
        return hash;
    }

    // The last row of every token, some others, and of the other kinds some that are needed; returns the hash of the prefix.
    private ulong VerifySome(ForwardBatch batch, int sequence, int length, int count)
    {
        if (length == 0) return Root;
        ulong hash = VerifyToken(batch, sequence, length - 1), draw = Mix(hash + (ulong)Steps);
        for (int i = 0; i < count; i++) VerifyToken(batch, sequence, (int)((draw = Mix(draw + 1)) % (ulong)length));
        for (int kind = 1; kind < KvStates.Count; kind++)
        {
            var spec = KvStates[kind];
            int first = Math.Max(0, FirstRead(kind, length)), rows = length / spec.Ratio - first;
            if (rows <= 0) continue;
            VerifyRow(batch, kind, sequence, first + rows - 1);
            VerifyRow(batch, kind, sequence, first);
            for (int i = 2; i < count; i++) VerifyRow(batch, kind, sequence, first + (int)((draw = Mix(draw + 1)) % (ulong)rows));
        }
        return hash;
    }

    // A token's row against the one before it.
    private ulong VerifyToken(ForwardBatch batch, int sequence, int position)
    {
        ulong before = position == 0 ? Root : HashAt(Row(batch, 0, sequence, position - 1, 0));
        float* row = Row(batch, 0, sequence, position, 0);
        ulong hash = Next(before, (int)row[1]);
        Expect(row, 0, sequence, position, (int)row[1], hash);
        return hash;
    }

    // A row of another kind against that of its last token.
    private void VerifyRow(ForwardBatch batch, int kind, int sequence, int row)
    {
        var spec = KvStates[kind];
        ulong hash = HashAt(Row(batch, 0, sequence, (row + 1) * spec.Ratio - 1, 0));
        for (int layer = 0; layer < spec.LayerCount; layer++)
            Expect(Row(batch, kind, sequence, row, layer), kind, sequence, row, layer, Salted(hash, kind, layer));
    }

    private static ulong HashAt(float* row)
    {
        ulong hash = 0;
        for (int i = 0; i < HashFloats; i++) hash |= (ulong)(ushort)row[2 + i] << (16 * i);
        return hash;
    }

    // What the token at a position reads, said without KvStateSpec: the window with itself, its own chunk and the one before.
    private static int FirstRead(int kind, int position) => kind switch
    {
        3 => position - (WindowTokens - 1),
        4 => position / ChunkTokens * ChunkTokens - ChunkTokens,
        SlotKind => position - 1,
        _ => 0,
    };

    private ulong Process(ForwardBatch batch, int t, ulong hash)
    {
        int sequence = batch.Tokens.Sequence.I32()[t], position = batch.Tokens.Position.I32()[t], token = batch.TokenIds.I32()[t];
        hash = Next(hash, token);
        Write(Row(batch, 0, sequence, position, 0), position, token, hash);
        for (int kind = 1; kind < KvStates.Count; kind++)
        {
            var spec = KvStates[kind];
            if ((position + 1) % spec.Ratio != 0 || (kind == SlotKind && Goes(batch, t) && !IsStored(batch, sequence, position))) continue;
            for (int layer = 0; layer < spec.LayerCount; layer++)
                Write(Row(batch, kind, sequence, position / spec.Ratio, layer), position / spec.Ratio, layer, Salted(hash, kind, layer));
        }
        return hash;
    }

    // Its sequence's next token is in this step too.
    private static bool Goes(ForwardBatch batch, int t) =>
        t + 1 < batch.TokenCount && batch.Tokens.Sequence.I32()[t + 1] == batch.Tokens.Sequence.I32()[t];

    private static bool IsStored(ForwardBatch batch, int sequence, int position)
    {
        var rows = batch.Kv[SlotKind];
        return rows.PageTable.I32(sequence)[position - rows.FirstPage.I32()[sequence]] != BlockTable.NoPage;
    }

    private float* Row(ForwardBatch batch, int kind, int sequence, int row, int layer)
    {
        var rows = batch.Kv[kind];
        int entry = row / rows.RowsPerPage - rows.FirstPage.I32()[sequence];
        if (entry < 0 || entry >= rows.PageTable.D1)
            throw new HashModelException($"{KvStates[kind].Name}: row {row} is outside the page table ({entry} of {rows.PageTable.D1}).");
        int page = rows.PageTable.I32(sequence)[entry];
        if ((uint)page >= (uint)rows.Pool.D0) throw new HashModelException($"{KvStates[kind].Name}: row {row} lies on page {page}.");
        return rows.Pool.F32(page) + ((long)layer * rows.RowsPerPage + row % rows.RowsPerPage) * rows.Width;
    }

    private static void Write(float* row, int index, int tag, ulong hash)
    {
        row[0] = index;
        row[1] = tag;
        for (int i = 0; i < HashFloats; i++) row[2 + i] = (ushort)(hash >> (16 * i));
    }

    private void Expect(float* row, int kind, int sequence, int index, int tag, ulong hash)
    {
        if (!Holds(row, index, tag, hash))
            throw new HashModelException(
                $"{KvStates[kind].Name}: row {index} of sequence {sequence} holds [{row[0]}, {row[1]}, ...], not what was written there.");
    }

    private static bool Holds(float* row, int index, int tag, ulong hash)
    {
        bool same = row[0] == index && row[1] == tag;
        for (int i = 0; i < HashFloats; i++) same &= row[2 + i] == (ushort)(hash >> (16 * i));
        return same;
    }

    private void Fill(ulong hash, int lastToken, Span<float> logits)
    {
        if (lastToken == NanToken)
        {
            logits.Fill(float.NaN);
            return;
        }
        for (int i = 0; i < logits.Length; i++) logits[i] = (Mix(hash + (ulong)(i + 1) * 0x9E3779B97F4A7C15) >> 44) / (float)(1 << 16) - 8;
    }

    private static ulong Salted(ulong hash, int kind, int layer) => Mix(hash + (ulong)(kind * 16 + layer));

    private static ulong Mix(ulong x)
    {
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return x ^ (x >> 31);
    }

    public void Dispose() { }
}

/// <summary>The cache did not hold what the model had put there.</summary>
public sealed class HashModelException(string message) : Exception(message);

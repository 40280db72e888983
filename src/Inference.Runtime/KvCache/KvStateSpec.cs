using Inference.Backends.Operators;

namespace Inference.Runtime.KvCache;

/// <summary>Which rows of a kind of state a sequence still needs once <c>length</c> of its tokens have been processed.</summary>
public enum KvRetention
{
    /// <summary>Every row.</summary>
    All,
    /// <summary>The rows of the last <see cref="KvStateSpec.RetentionTokens"/> positions, the next token's own among them.</summary>
    Window,
    /// <summary>The rows of the unfinished chunk of <see cref="KvStateSpec.RetentionTokens"/> positions, and of
    /// <see cref="KvStateSpec.ChunksBefore"/> whole chunks before it.</summary>
    Chunk,
    /// <summary>The last row: a state that each token makes anew from the one before it. The rows of other positions are stored only where a
    /// snapshot is to be taken; the page tables have -1 for them.</summary>
    Slot,
}

/// <summary>
/// One kind of state that a model keeps for a sequence, the same in each layer that has it: rows of a fixed format, one per
/// <see cref="Ratio"/> token positions, and how long they are needed. Block sizes, pools and page tables follow from it; nothing
/// behind it knows a model family. Row r stands for positions r * Ratio .. r * Ratio + Ratio - 1 and exists once the last of them
/// was processed.
/// </summary>
/// <param name="Name">For messages and metrics, e.g. <c>csa-rows</c>.</param>
/// <param name="LayerCount">Layers that keep this kind of row.</param>
/// <param name="Row">How a row is stored; a number alone means so many F32 elements.</param>
/// <param name="Ratio">Token positions per row.</param>
/// <param name="RetentionTokens">Window or chunk size in token positions; unused for <see cref="KvRetention.All"/> and <see cref="KvRetention.Slot"/>.</param>
/// <param name="ChunksBefore">For <see cref="KvRetention.Chunk"/>.</param>
/// <param name="RowsPerPage">Rows of one physical page; RowsPerPage * Ratio divides <see cref="BlockTokens"/>.</param>
public sealed record KvStateSpec(
    string Name, int LayerCount, RowFormat Row, int Ratio, KvRetention Retention, int RetentionTokens, int ChunksBefore, int RowsPerPage)
{
    /// <summary>Token positions of one logical block, for all kinds of state (design decision 4).</summary>
    public const int BlockTokens = 256;

    /// <summary>Rows that are kept: keys and values or MLA latents (ratio 1), compressed rows and index keys (a higher one).</summary>
    public static KvStateSpec All(string name, int layers, RowFormat row, int ratio) =>
        new(name, layers, row, ratio, KvRetention.All, 0, 0, Math.Max(1, BlockTokens / ratio));

    /// <summary>A row per token for the last <paramref name="tokens"/> of them: sliding windows.</summary>
    public static KvStateSpec Window(string name, int layers, RowFormat row, int tokens, int rowsPerPage) =>
        new(name, layers, row, 1, KvRetention.Window, tokens, 0, rowsPerPage);

    /// <summary>A row per token for the unfinished chunk: compressor inputs, and rows of layers that attend within a chunk of the text only.</summary>
    public static KvStateSpec Chunk(string name, int layers, RowFormat row, int tokens, int chunksBefore, int rowsPerPage) =>
        new(name, layers, row, 1, KvRetention.Chunk, tokens, chunksBefore, rowsPerPage);

    /// <summary>The state of recurrent layers (linear attention, gated DeltaNet, convolutions). Row p is the state after the token at position p; a step
    /// reads the row before its first token, if there is one, and writes those of its positions that have a page, the last one among them.
    /// So no state is ever overwritten, and snapshots of it are references like all others.</summary>
    public static KvStateSpec Slot(string name, int layers, RowFormat row) => new(name, layers, row, 1, KvRetention.Slot, 1, 0, 1);

    /// <summary>Token positions of one page.</summary>
    public int PageTokens => RowsPerPage * Ratio;

    public long PageBytes => (long)LayerCount * RowsPerPage * Row.Bytes;

    /// <summary>The smallest row index still needed to process the token at position <paramref name="length"/> and those after it.</summary>
    public int FirstRowNeeded(int length) => Retention switch
    {
        KvRetention.All => 0,
        KvRetention.Window => Math.Max(0, length - (RetentionTokens - 1)),
        KvRetention.Slot => Math.Max(0, length - 1),
        _ => Math.Max(0, (length / RetentionTokens - ChunksBefore) * RetentionTokens),
    };

    /// <summary>Index of the first page still needed once <paramref name="length"/> tokens were processed.</summary>
    public int FirstPageNeeded(int length) => FirstRowNeeded(length) / RowsPerPage;

    /// <summary>Page table entries, counted from position 0, for the rows of the first <paramref name="length"/> tokens.</summary>
    public int PagesFor(int length) => (length / Ratio + RowsPerPage - 1) / RowsPerPage;

    /// <summary>Pages that must be added to those of <paramref name="start"/> tokens to process the tokens up to <paramref name="end"/>.</summary>
    public int PagesBetween(int start, int end)
    {
        int entries = Math.Max(0, PagesFor(end) - PagesFor(start));
        return Retention == KvRetention.Slot ? Math.Min(1, entries) : entries;
    }

    /// <summary>Most pages that one sequence holds at once while a step takes it from <paramref name="start"/> to <paramref name="end"/> tokens, not
    /// counting those for snapshots on the way.</summary>
    public int PagesHeld(int start, int end) => Math.Max(0, PagesFor(start) - FirstPageNeeded(start)) + PagesBetween(start, end);
}

using Inference.Backends.Operators;
using Inference.Runtime.KvCache;
using Xunit;

namespace Inference.Runtime.Tests.KvCache;

/// <summary>Kinds of state of other families, as declarations alone: what a cache holds for them follows.</summary>
public sealed class KvStateSpecTests
{
    private static int Held(KvCacheManager cache, int kind) => cache.Pools[kind].PageCount - cache.Pools[kind].FreeCount;

    [Fact]
    public void Latents_are_one_row_per_token_in_any_format()
    {
        // Multi-head latent attention: 512 latent and 64 rotary channels per token and layer.
        var latents = KvStateSpec.All("latents", layers: 61, RowFormat.BF16(576), ratio: 1);
        Assert.Equal(61L * 256 * 1152, latents.PageBytes);
        Assert.Equal(61L * 256 * 648, KvStateSpec.All("latents", 61, RowFormat.Fp8(576, 64), 1).PageBytes); // 512 + 128 + 8 scales
        using var cache = new KvCacheManager([latents], new KvCapacity(1024, 1, 256), null);
        var table = cache.CreateTable();
        for (int length = 1; length <= 1024; length++)
        {
            Assert.True(cache.TryExtend(table, length));
            cache.Trim(table, length);
            Assert.Equal((length + 255) / 256, Held(cache, 0));
        }
    }

    [Fact]
    public void Rows_of_a_chunk_go_when_the_next_chunk_begins()
    {
        // Layers that attend within chunks of 8,192 tokens, beside layers that attend to everything.
        const int Chunk = 8192, Page = 256;
        KvStateSpec[] kinds = [KvStateSpec.Chunk("chunk-rows", layers: 36, 2048, Chunk, chunksBefore: 0, Page), KvStateSpec.All("rows", 12, 2048, ratio: 1)];
        using var cache = new KvCacheManager(kinds, new KvCapacity(4 * Chunk, 1, Page), null);
        var table = cache.CreateTable();
        for (int length = Page; length <= 4 * Chunk; length += Page)
        {
            Assert.True(cache.TryExtend(table, length), $"{length} tokens");
            cache.Trim(table, length);
            Assert.Equal(length % Chunk / Page, Held(cache, 0)); // none at a boundary: the next token sees itself only
            Assert.Equal(length / Page, Held(cache, 1));
        }
        cache.Free(table);
        Assert.All(cache.Pools, p => Assert.Equal(p.PageCount, p.FreeCount));
    }
}

using Inference.Backends;

namespace Inference.Runtime.KvCache;

/// <summary>
/// The pages of one kind of state: device memory and who holds what. Reference counted, so that sequences can share a page whose
/// rows follow from a common prefix; a page returns to the free list with its last reference. Owned by the
/// <see cref="KvCacheManager"/>; used by the engine thread only.
/// Invariant: each page is either free once, or has a positive count.
/// </summary>
public sealed class KvPool : IDisposable
{
    private readonly int[] _references;
    private readonly int[] _free;
    private int _freeCount;
    private readonly DeviceBuffer? _buffer;

    /// <param name="backend">Null for simulations that keep no numbers.</param>
    public KvPool(KvStateSpec spec, int pageCount, IBackend? backend)
    {
        Spec = spec;
        PageCount = pageCount;
        _references = new int[pageCount];
        _free = new int[pageCount];
        for (int i = 0; i < pageCount; i++) _free[i] = pageCount - 1 - i;
        _freeCount = pageCount;
        if (backend is null) return;
        _buffer = backend.Allocate(checked(spec.PageBytes * pageCount), $"KV pages of kind {spec.Name}");
        Tensor = Tensor.Create(_buffer, DType.F32, pageCount, spec.LayerCount, spec.RowsPerPage, spec.RowWidth);
    }

    public KvStateSpec Spec { get; }
    public int PageCount { get; }
    public int FreeCount => _freeCount;

    /// <summary>F32 [pages, layers, rows per page, row width]; absent without a backend.</summary>
    public Tensor Tensor { get; }

    /// <summary>Takes a free page with one reference. The caller has checked <see cref="FreeCount"/>.</summary>
    public int Take()
    {
        if (_freeCount == 0) throw new InvalidOperationException($"KV pool {Spec.Name}: no free page of {PageCount}.");
        int page = _free[--_freeCount];
        if (_references[page] != 0) throw new InvalidOperationException($"KV pool {Spec.Name}: free page {page} is referenced.");
        _references[page] = 1;
        return page;
    }

    /// <summary>Adds a holder to a page in use.</summary>
    public void Share(int page)
    {
        if (_references[page] <= 0) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} is free and cannot be shared.");
        _references[page]++;
    }

    /// <summary>Drops one holder.</summary>
    public void Release(int page)
    {
        if (_references[page] <= 0) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} released twice.");
        if (--_references[page] == 0) _free[_freeCount++] = page;
    }

    public int References(int page) => _references[page];

    public void Dispose() => _buffer?.Dispose();
}

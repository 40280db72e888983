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
    private readonly int[] _kept;  // of these, by kept prefixes
    private readonly int[] _free;
    private int _freeCount;
    private readonly DeviceBuffer? _buffer;

    /// <param name="backend">Null for simulations that keep no numbers.</param>
    public KvPool(KvStateSpec spec, int pageCount, IBackend? backend)
    {
        Spec = spec;
        PageCount = pageCount;
        _references = new int[pageCount];
        _kept = new int[pageCount];
        _free = new int[pageCount];
        for (int i = 0; i < pageCount; i++) _free[i] = pageCount - 1 - i;
        _freeCount = pageCount;
        if (backend is null) return;
        _buffer = backend.Allocate(checked(spec.PageBytes * pageCount), $"KV pages of kind {spec.Name}");
        Tensor = Tensor.Create(_buffer, spec.Row.DType, pageCount, spec.LayerCount, spec.RowsPerPage, spec.Row.StoredElements);
    }

    public KvStateSpec Spec { get; }
    public int PageCount { get; }
    public int FreeCount => _freeCount;

    /// <summary>Pages that nobody but kept prefixes holds: free as soon as those are given up.</summary>
    public int KeptCount { get; private set; }

    /// <summary>[pages, layers, rows per page, <see cref="Backends.Operators.RowFormat.StoredElements"/>]; absent without a backend.</summary>
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
        CheckHeld(page, "shared");
        if (_references[page]++ == _kept[page]) KeptCount--;
    }

    /// <summary>Drops one holder.</summary>
    public void Release(int page)
    {
        CheckHeld(page, "released");
        if (_references[page] == _kept[page]) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} has no holder but kept prefixes.");
        if (--_references[page] == 0) _free[_freeCount++] = page;
        else if (_references[page] == _kept[page]) KeptCount++;
    }

    /// <summary>Adds a kept prefix to the holders of a page in use.</summary>
    public void Keep(int page)
    {
        CheckHeld(page, "kept");
        _references[page]++;
        _kept[page]++;
    }

    /// <summary>Drops a kept prefix from the holders.</summary>
    public void GiveUp(int page)
    {
        CheckHeld(page, "given up");
        if (_kept[page] == 0) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} is kept by no prefix.");
        bool keptOnly = _references[page] == _kept[page];
        _kept[page]--;
        if (--_references[page] != 0) return;
        if (!keptOnly) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} lost its last holder twice.");
        KeptCount--;
        _free[_freeCount++] = page;
    }

    private void CheckHeld(int page, string what)
    {
        if (_references[page] <= 0) throw new InvalidOperationException($"KV pool {Spec.Name}: page {page} is free and cannot be {what}.");
    }

    public int References(int page) => _references[page];

    /// <summary>Of the references, those of kept prefixes; for tests.</summary>
    internal int KeptReferences(int page) => _kept[page];

    /// <summary>The free pages; for tests.</summary>
    internal ReadOnlySpan<int> Free => _free.AsSpan(0, _freeCount);

    public void Dispose() => _buffer?.Dispose();
}

using System.Runtime.InteropServices;
using Inference.Backends;
using Inference.Backends.Operators;
using Inference.Runtime.KvCache;
using Inference.Runtime.Models;

namespace Inference.Runtime.Engine;

/// <summary>One sequence's part of a step: the tokens to process and where its rows lie.</summary>
/// <param name="TokenIds">Tokens at positions Start, Start + 1, ...</param>
/// <param name="Table">Has room for Start + TokenIds.Length positions.</param>
/// <param name="LogitsFrom">Index into TokenIds of the first token whose logits are wanted; TokenIds.Length = none.</param>
/// <param name="NextTokenIds">For draft logits: the token after each token (same length); empty = no draft.</param>
public readonly record struct SequenceChunk(
    ReadOnlyMemory<int> TokenIds, int Start, BlockTable Table, int LogitsFrom, ReadOnlyMemory<int> NextTokenIds = default);

/// <summary>
/// Puts a step's chunks into the arrays that a model reads, runs the model and brings the logits back. Owns these arrays on the
/// device and nothing else; decides nothing. One thread.
/// </summary>
public sealed class ModelRunner : IDisposable
{
    private readonly IModel _model;
    private readonly IBackend _backend;
    private readonly KvCacheManager _cache;
    private readonly int _tokensMax;
    private readonly int _sequencesMax;
    private readonly List<int> _tokenIds = [], _sequence = [], _position = [], _logitsRows = [], _nextTokenIds = [];
    private readonly DeviceArray _tokenIdsD, _sequenceD, _positionD, _logitsRowsD, _nextTokenIdsD;
    private readonly DeviceArray _logitsD, _draftLogitsD;
    private readonly PageTables[] _tables;
    private float[] _logits = [], _draftLogits = [];

    /// <param name="tokensMax">Most tokens of one step.</param>
    /// <param name="sequencesMax">Most sequences of one step.</param>
    public ModelRunner(IModel model, IBackend backend, KvCacheManager cache, int tokensMax, int sequencesMax)
    {
        (_model, _backend, _cache, _tokensMax, _sequencesMax) = (model, backend, cache, tokensMax, sequencesMax);
        _tokenIdsD = new(backend, "token ids");
        _sequenceD = new(backend, "sequence of each token");
        _positionD = new(backend, "positions");
        _logitsRowsD = new(backend, "logits rows");
        _nextTokenIdsD = new(backend, "next token ids");
        _logitsD = new(backend, "logits");
        _draftLogitsD = new(backend, "draft logits");
        _tables = [.. cache.Pools.Select(p => new PageTables(backend, p))];
    }

    /// <summary>Logits of the last <see cref="Run"/>: rows in the order of the chunks and their tokens, vocabulary wide.</summary>
    public ReadOnlySpan<float> Logits(int row) => _logits.AsSpan(row * _model.Info.VocabSize, _model.Info.VocabSize);

    /// <summary>Draft logits of the last <see cref="Run"/>, same rows.</summary>
    public ReadOnlySpan<float> DraftLogits(int row) => _draftLogits.AsSpan(row * _model.Info.VocabSize, _model.Info.VocabSize);

    /// <summary>Processes the chunks in one step. Returns the number of logits rows.</summary>
    public int Run(IReadOnlyList<SequenceChunk> chunks)
    {
        Flatten(chunks);
        bool draft = _nextTokenIds.Count > 0;
        int vocab = _model.Info.VocabSize, rows = _logitsRows.Count;
        var batch = new ForwardBatch
        {
            TokenIds = _tokenIdsD.Put(_tokenIds),
            Tokens = new TokenLayout(_sequenceD.Put(_sequence), _positionD.Put(_position)),
            Kv = [.. _tables.Select((t, kind) => t.Put(chunks, kind))],
            LogitsRows = _logitsRowsD.Put(_logitsRows),
            Logits = _logitsD.Matrix(rows, vocab),
            NextTokenIds = draft ? _nextTokenIdsD.Put(_nextTokenIds) : default,
            DraftLogits = draft ? _draftLogitsD.Matrix(rows, vocab) : default,
        };
        _model.Forward(batch);
        Download(batch.Logits, ref _logits);
        if (draft) Download(batch.DraftLogits, ref _draftLogits);
        return rows;
    }

    private void Flatten(IReadOnlyList<SequenceChunk> chunks)
    {
        _tokenIds.Clear();
        _sequence.Clear();
        _position.Clear();
        _logitsRows.Clear();
        _nextTokenIds.Clear();
        if (chunks.Count > _sequencesMax) throw new ArgumentException($"{chunks.Count} sequences in a step, at most {_sequencesMax}.");
        for (int s = 0; s < chunks.Count; s++)
        {
            var chunk = chunks[s];
            if (chunk.Start + chunk.TokenIds.Length > chunk.Table.Length)
                throw new ArgumentException($"Chunk {s} ends at {chunk.Start + chunk.TokenIds.Length}, its table at {chunk.Table.Length}.");
            for (int i = 0; i < chunk.TokenIds.Length; i++)
            {
                if (i >= chunk.LogitsFrom) _logitsRows.Add(_tokenIds.Count);
                _tokenIds.Add(chunk.TokenIds.Span[i]);
                _sequence.Add(s);
                _position.Add(chunk.Start + i);
            }
            _nextTokenIds.AddRange(chunk.NextTokenIds.Span);
        }
        if (_tokenIds.Count > _tokensMax) throw new ArgumentException($"{_tokenIds.Count} tokens in a step, at most {_tokensMax}.");
        if (_nextTokenIds.Count > 0 && _nextTokenIds.Count != _tokenIds.Count)
            throw new ArgumentException("Next token ids must be given for all chunks or for none.");
    }

    private void Download(in Tensor source, ref float[] destination)
    {
        int count = checked((int)source.ElementCount);
        if (destination.Length < count) destination = new float[count];
        if (count > 0) _backend.Download(source, MemoryMarshal.AsBytes(destination.AsSpan(0, count)));
    }

    public void Dispose()
    {
        foreach (var array in (DeviceArray[])[_tokenIdsD, _sequenceD, _positionD, _logitsRowsD, _nextTokenIdsD, _logitsD, _draftLogitsD])
            array.Dispose();
        foreach (var table in _tables) table.Dispose();
    }

    /// <summary>Device memory that grows when a step needs more than any before.</summary>
    private sealed class DeviceArray(IBackend backend, string purpose) : IDisposable
    {
        private DeviceBuffer? _buffer;

        public Tensor Put(List<int> values)
        {
            var tensor = Tensor.Create(Room((long)values.Count * sizeof(int)), DType.I32, values.Count);
            if (values.Count > 0) backend.Upload(MemoryMarshal.AsBytes(CollectionsMarshal.AsSpan(values)), tensor);
            return tensor;
        }

        public Tensor Matrix(int rows, int columns) =>
            Tensor.Create(Room((long)rows * columns * sizeof(float)), DType.F32, rows, columns);

        public DeviceBuffer Room(long bytes)
        {
            if (_buffer is not null && _buffer.SizeBytes >= bytes) return _buffer;
            _buffer?.Dispose();
            return _buffer = backend.Allocate(Math.Max(256, checked(bytes + bytes / 2)), purpose);
        }

        public void Dispose() => _buffer?.Dispose();
    }

    /// <summary>One kind's page tables of a step's sequences, padded to the longest.</summary>
    private sealed class PageTables(IBackend backend, KvPool pool) : IDisposable
    {
        private readonly DeviceArray _pages = new(backend, $"page table of {pool.Spec.Name}");
        private readonly DeviceArray _first = new(backend, $"first pages of {pool.Spec.Name}");
        private readonly List<int> _pageValues = [], _firstValues = [];

        public PagedRows Put(IReadOnlyList<SequenceChunk> chunks, int kind)
        {
            _pageValues.Clear();
            _firstValues.Clear();
            int width = 1;
            foreach (var chunk in chunks) width = Math.Max(width, chunk.Table.Pages(kind).Count);
            foreach (var chunk in chunks)
            {
                var pages = chunk.Table.Pages(kind);
                _pageValues.AddRange(pages);
                for (int i = pages.Count; i < width; i++) _pageValues.Add(-1);
                _firstValues.Add(chunk.Table.FirstPage(kind));
            }
            var flat = _pages.Put(_pageValues);
            return new PagedRows(pool.Tensor, pool.Spec.Row, 0, flat.As(chunks.Count, width), _first.Put(_firstValues));
        }

        public void Dispose()
        {
            _pages.Dispose();
            _first.Dispose();
        }
    }
}

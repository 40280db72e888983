// An open checkpoint: every tensor of one safetensors file, or of the shards that an index lists, by name.
//
// Opening checks all headers against each other and the files, maps the files and copies nothing: a 900 GB model opens
// in the time its headers take. It knows no model family: which tensors a model needs is decided elsewhere.
// One Checkpoint owns all mappings; TensorViews borrow from it until Dispose.
// Invariant: each name has exactly one tensor, and its byte range lies inside of its file.
using System.Collections.Immutable;
using System.Diagnostics.CodeAnalysis;
using System.Security.Cryptography;
using Inference.Backends;

namespace Inference.Runtime.Weights;

/// <summary>The tensors of a model folder, memory-mapped read only.</summary>
/// <remarks>Reading from several threads is safe; <see cref="Dispose"/> must wait for all readers.</remarks>
public sealed class Checkpoint : IDisposable
{
    /// <summary>The file of a checkpoint in one piece.</summary>
    public const string SingleFileName = "model.safetensors";

    /// <summary>The index of a checkpoint in shards.</summary>
    public const string IndexFileName = "model.safetensors.index.json";

    private const int NamesListed = 5;

    private readonly Dictionary<string, TensorView> _tensors = new(StringComparer.Ordinal);
    private readonly List<WeightRegion> _regions = [];

    private Checkpoint(string location) => Location = location;

    /// <summary>The folder or file it was opened from.</summary>
    public string Location { get; }

    /// <summary>All tensors by name.</summary>
    public IReadOnlyDictionary<string, TensorView> Tensors => _tensors;

    /// <summary>The weight files.</summary>
    public IEnumerable<string> Files => _regions.Select(region => region.Name);

    /// <summary>Bytes of all tensors together.</summary>
    public long ByteLength => _tensors.Values.Sum(tensor => tensor.ByteLength);

    /// <summary>The tensor of that name.</summary>
    /// <exception cref="CheckpointException">There is none (<see cref="CheckpointFault.TensorMissing"/>).</exception>
    public TensorView this[string name] => _tensors.TryGetValue(name, out var tensor)
        ? tensor
        : throw new CheckpointException(CheckpointFault.TensorMissing, Location, name,
            $"there is no such tensor among the {_tensors.Count} of this checkpoint", "Check that the weights belong to the config.json beside them.");

    /// <summary>Opens the weights of a model folder: its shards if there is an index, else its single file.</summary>
    /// <exception cref="CheckpointException">Anything that is not a complete, consistent checkpoint.</exception>
    public static Checkpoint Open(string folder, CheckpointOptions? options = null)
    {
        options ??= CheckpointOptions.Default;
        if (!Directory.Exists(folder))
            throw new CheckpointException(CheckpointFault.FileMissing, folder, null, "no such folder", "Give the folder that holds config.json and the weights.");
        var hasIndex = File.Exists(Path.Combine(folder, IndexFileName));
        var hasSingle = File.Exists(Path.Combine(folder, SingleFileName));
        if (hasIndex)
            return OpenShards(folder, hasSingle, options);
        if (hasSingle)
            return OpenFiles(folder, [SingleFileName], options);
        throw NoWeights(folder);
    }

    /// <summary>Opens one safetensors file as a whole checkpoint.</summary>
    /// <exception cref="CheckpointException">The file is missing, damaged or not a safetensors file.</exception>
    public static Checkpoint OpenFile(string path, CheckpointOptions? options = null)
    {
        var checkpoint = new Checkpoint(path);
        return checkpoint.Guarded(() => checkpoint.Add(WeightRegion.Map(path, path), options ?? CheckpointOptions.Default));
    }

    /// <summary>Opens the image of a safetensors file that is already in memory. The array is pinned and must not change.</summary>
    /// <param name="name">What messages call it.</param>
    /// <param name="image">The whole file.</param>
    /// <param name="options">Limits.</param>
    /// <exception cref="CheckpointException">The image is not a safetensors file.</exception>
    public static Checkpoint FromImage(string name, byte[] image, CheckpointOptions? options = null)
    {
        var checkpoint = new Checkpoint(name);
        return checkpoint.Guarded(() => checkpoint.Add(WeightRegion.Pin(name, image), options ?? CheckpointOptions.Default));
    }

    /// <summary>Makes a checkpoint in memory: as large as its tensors, each aligned to a cache line, filled on all processors.</summary>
    /// <param name="location">What messages call it.</param>
    /// <param name="tensors">Names, dtypes and shapes.</param>
    /// <param name="fill">Gives the data, in the pieces in which <see cref="CheckpointWriter"/> asks for it.</param>
    /// <param name="cancel">Looked at between pieces.</param>
    internal static unsafe Checkpoint Filled(string location, IReadOnlyList<TensorSpec> tensors, TensorFill fill, CancellationToken cancel)
    {
        const int Line = 64, PieceBytes = CheckpointWriter.PieceBytes;
        var checkpoint = new Checkpoint(location);
        var starts = new long[tensors.Count + 1];
        for (int i = 0; i < tensors.Count; i++) starts[i + 1] = checked(starts[i] + (tensors[i].ByteLength + Line - 1) / Line * Line);
        var region = WeightRegion.Allocate(location, starts[^1]);
        return checkpoint.Guarded(() =>
        {
            checkpoint._regions.Add(region);
            for (int i = 0; i < tensors.Count; i++)
                checkpoint._tensors.Add(tensors[i].Name, new TensorView(region, tensors[i].Name, tensors[i].DType, tensors[i].Shape, starts[i], tensors[i].ByteLength));
            var pieces = from i in Enumerable.Range(0, tensors.Count)
                         from piece in Enumerable.Range(0, (int)((tensors[i].ByteLength + PieceBytes - 1) / PieceBytes))
                         select (Tensor: i, Offset: (long)piece * PieceBytes);
            Parallel.ForEach(pieces, new ParallelOptions { CancellationToken = cancel }, p =>
                fill(p.Tensor, p.Offset, new Span<byte>(
                    region.Pointer + starts[p.Tensor] + p.Offset, (int)Math.Min(PieceBytes, tensors[p.Tensor].ByteLength - p.Offset))));
        });
    }

    /// <summary>A checkpoint of names, dtypes and shapes without data, to check or size a model from its description; reading throws.</summary>
    internal static Checkpoint WithoutData(string location, IEnumerable<(string Name, DType DType, ImmutableArray<long> Shape)> tensors)
    {
        var checkpoint = new Checkpoint(location);
        var region = WeightRegion.WithoutData(location);
        foreach (var (name, dtype, shape) in tensors)
        {
            var bytes = dtype.ByteLength(shape.Aggregate(1L, static (product, dimension) => checked(product * dimension)));
            checkpoint._tensors.Add(name, new TensorView(region, name, dtype, shape, 0, bytes));
        }
        return checkpoint;
    }

    /// <summary>
    /// 32 bytes that tell this checkpoint from others: SHA-256 over every file's name, length, header and data; of the data of a large file 256
    /// samples, so that naming a checkpoint of 900 GB takes a moment. Files that differ in a few numbers only may share it.
    /// </summary>
    public byte[] Digest()
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (var region in _regions.OrderBy(region => region.Name, StringComparer.Ordinal))
            region.AppendTo(hash);
        return hash.GetHashAndReset();
    }

    /// <summary>The tensor of that name, if there is one.</summary>
    public bool TryGet(string name, [NotNullWhen(true)] out TensorView? tensor) => _tensors.TryGetValue(name, out tensor);

    /// <summary>Unmaps the files. Spans and pointers taken before are dangling from here on.</summary>
    public void Dispose()
    {
        foreach (var region in _regions)
            region.Dispose();
    }

    private static Checkpoint OpenShards(string folder, bool hasSingle, CheckpointOptions options)
    {
        var indexPath = Path.Combine(folder, IndexFileName);
        var json = ModelPaths.ReadSmallFile(ModelPaths.Resolve(folder, IndexFileName, options.LinkRoot), options.IndexBytesMax,
            "Download the index again.");
        var map = ShardIndex.Parse(indexPath, json, options);
        var shards = map.Values.Distinct(StringComparer.Ordinal).Order(StringComparer.Ordinal).ToList();
        if (hasSingle && !shards.Contains(SingleFileName))
        {
            throw new CheckpointException(CheckpointFault.IndexMismatch, folder, null,
                $"there are both {SingleFileName} and an index that does not list it", "Remove the one that is not wanted.");
        }
        RequirePresent(folder, shards);
        var checkpoint = OpenFiles(folder, shards, options);
        return checkpoint.Guarded(() => checkpoint.RequireAgreement(indexPath, map));
    }

    private static Checkpoint OpenFiles(string folder, IReadOnlyList<string> names, CheckpointOptions options)
    {
        var checkpoint = new Checkpoint(folder);
        return checkpoint.Guarded(() =>
        {
            foreach (var name in names)
            {
                var real = ModelPaths.Resolve(folder, name, options.LinkRoot);
                checkpoint.Add(WeightRegion.Map(Path.Combine(folder, name), real), options);
            }
        });
    }

    /// <summary>Missing shards are reported together: the usual cause is a download that was cut off.</summary>
    private static void RequirePresent(string folder, List<string> shards)
    {
        var missing = shards.Where(shard => !File.Exists(Path.Combine(folder, shard))).ToList();
        if (missing.Count == 0)
            return;
        throw new CheckpointException(CheckpointFault.FileMissing, folder, null,
            $"{missing.Count} of the {shards.Count} files that {IndexFileName} lists are not there: {Listed(missing)}", "Complete the download of the model.");
    }

    private static CheckpointException NoWeights(string folder)
    {
        List<string> others;
        try
        {
            others = Directory.EnumerateFiles(folder).Select(path => Path.GetFileName(path))
                .Where(name => Path.GetExtension(name) is ".safetensors" or ".bin" or ".pt" or ".pth" or ".gguf")
                .Take(NamesListed + 1).Order(StringComparer.Ordinal).ToList();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return ModelPaths.Unreadable(folder, e.Message, "Check the permissions of the model folder.", e);
        }
        var found = others.Count == 0 ? "no weight files" : "only " + Listed(others);
        return new CheckpointException(CheckpointFault.FileMissing, folder, null,
            $"neither {SingleFileName} nor {IndexFileName} is there ({found})",
            others.Any(name => name.EndsWith(".safetensors", StringComparison.Ordinal))
                ? $"Shards need their {IndexFileName}; a single file must be called {SingleFileName}."
                : "Give a folder with weights in the safetensors format.");
    }

    private static string Listed(List<string> names) =>
        string.Join(", ", names.Take(NamesListed).Select(Printable.Text)) + (names.Count > NamesListed ? ", ..." : "");

    private Checkpoint Guarded(Action open)
    {
        try
        {
            open();
            return this;
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    private unsafe void Add(WeightRegion region, CheckpointOptions options)
    {
        _regions.Add(region);
        var start = new ReadOnlySpan<byte>(region.Pointer, (int)Math.Min(region.Length, SafetensorsHeader.PrefixBytes));
        var headerLength = SafetensorsHeader.ReadLength(region.Name, start, region.Length, options);
        var dataStart = SafetensorsHeader.PrefixBytes + headerLength;
        var json = new ReadOnlySpan<byte>(region.Pointer + SafetensorsHeader.PrefixBytes, headerLength);
        foreach (var entry in SafetensorsHeader.Parse(region.Name, json, region.Length - dataStart, options))
        {
            if (_tensors.Count == options.TensorCountMax)
            {
                throw new CheckpointException(CheckpointFault.LimitExceeded, region.Name, entry.Name,
                    $"the checkpoint has more than {options.TensorCountMax} tensors", "Is this the right folder? If it is, raise the limit.");
            }
            var view = new TensorView(region, entry.Name, entry.DType, entry.Shape, dataStart + entry.Offset, entry.ByteLength);
            if (!_tensors.TryAdd(entry.Name, view))
            {
                throw new CheckpointException(CheckpointFault.TensorDuplicate, region.Name, entry.Name,
                    $"{Printable.Text(_tensors[entry.Name].File)} holds it too", "Take shards that were published together.");
            }
        }
    }

    private void RequireAgreement(string indexPath, Dictionary<string, string> map)
    {
        var problems = new List<string>();
        var count = 0;
        foreach (var (name, shard) in map)
        {
            if (!_tensors.TryGetValue(name, out var tensor))
                Report($"{Printable.Quote(name)} is not in {Printable.Text(shard)}, nor in any other shard");
            else if (Path.GetFileName(tensor.File) != shard)
                Report($"{Printable.Quote(name)} is in {Printable.Text(Path.GetFileName(tensor.File))}, not in {Printable.Text(shard)}");
        }
        foreach (var (name, tensor) in _tensors)
        {
            if (!map.ContainsKey(name))
                Report($"{Printable.Quote(name)} is in {Printable.Text(Path.GetFileName(tensor.File))}, but not in the index");
        }
        if (count == 0)
            return;
        if (count > problems.Count)
            problems.Add($"... and {count - problems.Count} more");
        throw new CheckpointException(CheckpointFault.IndexMismatch, indexPath,
            $"index and shards disagree about {count} tensors", problems, "Take the index that was published with these shards.");

        void Report(string problem)
        {
            if (count++ < 4 * NamesListed)
                problems.Add(problem);
        }
    }
}

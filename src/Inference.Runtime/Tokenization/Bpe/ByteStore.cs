namespace Inference.Runtime.Tokenization.Bpe;

/// <summary>One byte string per id in [0, Count), in one array; empty for ids that have none. Immutable.</summary>
internal sealed class ByteStore
{
    private readonly byte[] _bytes;
    private readonly int[] _starts; // [Count + 1]

    private ByteStore(byte[] bytes, int[] starts) => (_bytes, _starts) = (bytes, starts);

    public int Count => _starts.Length - 1;

    public ReadOnlySpan<byte> this[int id] => _bytes.AsSpan(_starts[id], _starts[id + 1] - _starts[id]);

    public ReadOnlyMemory<byte> Memory(int id) => _bytes.AsMemory(_starts[id], _starts[id + 1] - _starts[id]);

    /// <summary>Copies the strings; null entries become empty.</summary>
    public static ByteStore From(byte[]?[] strings)
    {
        var starts = new int[strings.Length + 1];
        for (var i = 0; i < strings.Length; i++)
            starts[i + 1] = checked(starts[i] + (strings[i]?.Length ?? 0));
        var bytes = new byte[starts[^1]];
        for (var i = 0; i < strings.Length; i++)
            strings[i]?.CopyTo(bytes, starts[i]);
        return new ByteStore(bytes, starts);
    }
}

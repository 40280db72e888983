using System.IO.Hashing;
using System.Security.Cryptography;
using System.Text;
using Inference.Runtime.KvCache.Disk;
using Microsoft.Extensions.Logging;

namespace Inference.Runtime.Engine;

/// <summary>A session as it is on disk: all that it is, its tokens. Their state is in the disk tier; where it is missing it is computed.</summary>
internal sealed record SavedSession(string Tenant, string Id, DateTimeOffset CreatedAt, DateTimeOffset UsedAt, bool AnswerOpen, int[] Tokens)
{
    private const ulong Magic = 0x31_53_45_53_4B_56_4E_49;
    private const int NameBytesMax = 1024;

    /// <summary>What the file is called: names of clients never become names of files.</summary>
    public static string FileName(string tenant, string id) =>
        Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(tenant + "\0" + id)).AsSpan(0, 16)) + Extension;

    public const string Extension = ".session";

    /// <summary>Fixed fields and names, tokens, and at the end a checksum of all before it. Little endian.</summary>
    /// <param name="model">32 bytes: sessions of other models are left alone.</param>
    public byte[] Encode(ReadOnlySpan<byte> model)
    {
        using var stream = new MemoryStream();
        using (var writer = new BinaryWriter(stream, Encoding.UTF8, leaveOpen: true))
        {
            writer.Write(Magic);
            writer.Write(model);
            writer.Write(Tenant);
            writer.Write(Id);
            writer.Write(CreatedAt.UtcTicks);
            writer.Write(UsedAt.UtcTicks);
            writer.Write(AnswerOpen);
            writer.Write(Tokens.Length);
            foreach (int token in Tokens) writer.Write(token);
        }
        stream.Write(XxHash128.Hash(stream.GetBuffer().AsSpan(0, (int)stream.Length)));
        return stream.ToArray();
    }

    /// <summary>Null if the bytes are no whole session.</summary>
    /// <param name="foreign">They are one of another model.</param>
    public static SavedSession? Decode(ReadOnlySpan<byte> bytes, ReadOnlySpan<byte> model, int vocabSize, out bool foreign)
    {
        foreign = false;
        const int checksum = 16;
        if (bytes.Length < 64 + checksum || !XxHash128.Hash(bytes[..^checksum]).AsSpan().SequenceEqual(bytes[^checksum..])) return null;
        try
        {
            using var reader = new BinaryReader(new MemoryStream(bytes[..^checksum].ToArray()), Encoding.UTF8);
            if (reader.ReadUInt64() != Magic) return null;
            foreign = !reader.ReadBytes(model.Length).AsSpan().SequenceEqual(model);
            if (foreign) return null;
            var session = new SavedSession(
                reader.ReadString(), reader.ReadString(), new DateTimeOffset(reader.ReadInt64(), TimeSpan.Zero),
                new DateTimeOffset(reader.ReadInt64(), TimeSpan.Zero), reader.ReadBoolean(), []);
            int count = reader.ReadInt32();
            if (session.Tenant.Length + session.Id.Length > NameBytesMax || count < 0 || count * 4L != reader.BaseStream.Length - reader.BaseStream.Position) return null;
            var tokens = new int[count];
            for (int i = 0; i < count; i++)
                if ((uint)(tokens[i] = reader.ReadInt32()) >= (uint)vocabSize) return null;
            return session with { Tokens = tokens };
        }
        catch (Exception e) when (e is EndOfStreamException or ArgumentException or IOException or FormatException)
        {
            return null;
        }
    }
}

/// <summary>
/// The saved sessions of a server, a file each, published as the state is: written, flushed, renamed, folder flushed. One
/// thread at a time.
/// </summary>
internal sealed class SavedSessions(IDisk disk, byte[] model, int vocabSize, ILogger log) : IDisposable
{
    private const string Temporary = ".tmp";
    private const long BytesMax = 1L << 31;

    public static bool IsOurs(string name) => name.EndsWith(SavedSession.Extension, StringComparison.Ordinal) || name.EndsWith(Temporary, StringComparison.Ordinal);

    /// <summary>The sessions of this model. Files that are damaged, and those of other models, are left where they are, and logged.</summary>
    public IReadOnlyList<SavedSession> Load()
    {
        int damaged = 0, others = 0;
        var sessions = new List<SavedSession>();
        foreach (var (name, length) in disk.List().OrderBy(f => f.Name, StringComparer.Ordinal))
        {
            if (name.EndsWith(Temporary, StringComparison.Ordinal)) disk.Delete(name);
            if (!name.EndsWith(SavedSession.Extension, StringComparison.Ordinal)) continue;
            if (Read(name, length, out bool foreign) is { } session && SavedSession.FileName(session.Tenant, session.Id) == name) sessions.Add(session);
            else if (foreign) others++;
            else damaged++;
        }
        if (damaged + others > 0) KvDiskLog.SessionsLeft(log, damaged, others);
        return sessions;
    }

    /// <exception cref="IOException">The disk reports an error; what was saved under this name before is still there.</exception>
    public void Save(SavedSession session)
    {
        string name = SavedSession.FileName(session.Tenant, session.Id);
        var bytes = session.Encode(model);
        using (var file = disk.Create(name + Temporary, bytes.Length))
        {
            file.WriteAt(bytes, 0);
            file.Flush();
        }
        disk.Rename(name + Temporary, name);
        disk.FlushFolder();
    }

    /// <exception cref="IOException">The disk reports an error.</exception>
    public void Delete(string tenant, string id)
    {
        disk.Delete(SavedSession.FileName(tenant, id));
        disk.FlushFolder();
    }

    private SavedSession? Read(string name, long length, out bool foreign)
    {
        foreign = false;
        if (length > BytesMax) return null;
        try
        {
            var bytes = new byte[length];
            using var file = disk.OpenRead(name);
            int read = 0;
            while (read < bytes.Length && file.ReadAt(bytes.AsSpan(read), read) is var n and > 0) read += n;
            return read < bytes.Length ? null : SavedSession.Decode(bytes, model, vocabSize, out foreign);
        }
        catch (IOException)
        {
            return null;
        }
    }

    public void Dispose() => disk.Dispose();
}

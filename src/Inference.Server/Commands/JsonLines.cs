using System.Buffers;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace Inference.Server.Commands;

/// <summary>Writes JSON values to standard output, one a line, in UTF-8 whatever the terminal's encoding. Owns nothing but its buffer.</summary>
internal sealed class JsonLines : IDisposable
{
    private const int BufferBytes = 64 << 10;

    private readonly Stream _output = Console.OpenStandardOutput();
    private readonly ArrayBufferWriter<byte> _buffer = new(BufferBytes);
    private readonly Utf8JsonWriter _writer;

    // Relaxed: control tokens stay readable. The output is no HTML.
    public JsonLines(bool indented = false) =>
        _writer = new Utf8JsonWriter(_buffer, new JsonWriterOptions { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping, Indented = indented });

    /// <summary>One value.</summary>
    public void Line(Action<Utf8JsonWriter> write)
    {
        write(_writer);
        _writer.Flush();
        _writer.Reset();
        _buffer.Write("\n"u8);
        if (_buffer.WrittenCount >= BufferBytes) Flush();
    }

    /// <summary>A value that is JSON text already.</summary>
    public void Raw(string json) => Line(w => w.WriteRawValue(json));

    public void Flush()
    {
        _output.Write(_buffer.WrittenSpan);
        _output.Flush();
        _buffer.ResetWrittenCount();
    }

    public void Dispose()
    {
        Flush();
        _writer.Dispose();
    }
}

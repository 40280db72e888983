using System.Buffers;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace Inference.Server.Commands;

/// <summary>Writes results to standard output: JSON values, one a line, and text; in UTF-8 whatever the terminal's encoding. Owns its buffer.</summary>
internal sealed class ResultOutput : IDisposable
{
    private const int BufferBytes = 64 << 10;

    private readonly Stream _output = Console.OpenStandardOutput();
    private readonly ArrayBufferWriter<byte> _buffer = new(BufferBytes);
    private readonly Utf8JsonWriter _writer;

    /// <summary>Relaxed, so that control tokens stay readable: the output is no HTML.</summary>
    public static JavaScriptEncoder Encoder => JavaScriptEncoder.UnsafeRelaxedJsonEscaping;

    public ResultOutput(bool indented = false) =>
        _writer = new Utf8JsonWriter(_buffer, new JsonWriterOptions { Encoder = Encoder, Indented = indented });

    /// <summary>One value.</summary>
    public void Line(Action<Utf8JsonWriter> write)
    {
        write(_writer);
        _writer.Flush();
        _writer.Reset();
        _buffer.Write("\n"u8);
        if (_buffer.WrittenCount >= BufferBytes) Flush();
    }

    /// <summary>Text as it is.</summary>
    public void Text(string text) => _buffer.Write(Encoding.UTF8.GetBytes(text));

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

using System.Buffers.Binary;
using System.Text;

namespace Inference.Runtime.Tests.Weights;

/// <summary>Builds safetensors files out of a header text, right or wrong.</summary>
internal static class SafetensorsImage
{
    /// <summary>The header, its length before it, and that many data bytes counting up from 0.</summary>
    public static byte[] Of(string header, int dataBytes) => Of(Encoding.UTF8.GetBytes(header), dataBytes);

    public static byte[] Of(ReadOnlySpan<byte> header, int dataBytes)
    {
        var image = new byte[8 + header.Length + dataBytes];
        BinaryPrimitives.WriteInt64LittleEndian(image, header.Length);
        header.CopyTo(image.AsSpan(8));
        for (var i = 0; i < dataBytes; i++)
            image[8 + header.Length + i] = (byte)i;
        return image;
    }
}

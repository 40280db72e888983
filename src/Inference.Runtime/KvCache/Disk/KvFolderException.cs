namespace Inference.Runtime.KvCache.Disk;

/// <summary>A folder that KV state must not be kept in, or cannot be; the message names it, the reason and the way out.</summary>
public sealed class KvFolderException(string message, Exception? inner = null) : Exception(message, inner);

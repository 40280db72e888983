namespace Inference.Server.Commands;

/// <summary>How far a measurement is: one line on standard error, rewritten in place; silent when that is no terminal. Any thread.</summary>
internal sealed class BenchProgress : IDisposable
{
    private readonly bool _visible = !Console.IsErrorRedirected;
    private readonly Lock _lock = new();

    public void Show(string text)
    {
        if (!_visible) return;
        lock (_lock) Console.Error.Write($"\r{text}\u001b[K");
    }

    public void Dispose()
    {
        if (_visible) Console.Error.Write("\r\u001b[K");
    }
}

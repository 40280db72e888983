namespace Inference.Server.Commands;

/// <summary>How far a measurement is: one line on standard error, rewritten in place; silent when that is no terminal.</summary>
internal sealed class BenchProgress(int cells) : IDisposable
{
    private readonly bool _visible = !Console.IsErrorRedirected;
    private readonly Lock _lock = new();
    private BenchCell? _cell;
    private int _index, _done, _requests;

    public void Begin(BenchCell cell, int requests)
    {
        lock (_lock)
        {
            (_cell, _requests, _done) = (cell, requests, 0);
            _index++;
            Show();
        }
    }

    /// <summary>One more request has ended. Any thread.</summary>
    public void Ended()
    {
        lock (_lock)
        {
            _done++;
            Show();
        }
    }

    private void Show()
    {
        if (_visible)
            Console.Error.Write(
                $"\r{_index}/{cells}: prompt {_cell!.PromptTokens}, output {_cell.OutputTokens}, {_cell.Concurrency} at a time: " +
                $"{_done} of {_requests} requests\u001b[K");
    }

    public void Dispose()
    {
        if (_visible) Console.Error.Write("\r\u001b[K");
    }
}

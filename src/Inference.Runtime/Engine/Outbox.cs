using System.Diagnostics.CodeAnalysis;
using System.Threading.Channels;

namespace Inference.Runtime.Engine;

/// <summary>
/// The events of one request on their way to its reader. Bounded, and the engine never waits for it: when <see cref="TryStall"/> says that it is
/// full the engine stops scheduling the sequence, and the reader, having read half of it, calls back once. The start and the end always
/// have room.
/// Written by the engine's thread, read by one reader.
/// </summary>
internal sealed class Outbox
{
    private readonly Channel<GenerationEvent> _channel;
    private readonly int _max;
    private readonly Action _caughtUp;
    private int _stalled;

    /// <param name="caughtUp">Called on the reader's thread, once per stall.</param>
    public Outbox(int max, Action caughtUp)
    {
        (_max, _caughtUp) = (max, caughtUp);
        // One more than max, because a delta is written whenever fewer than max are there, and the end.
        _channel = Channel.CreateBounded<GenerationEvent>(new BoundedChannelOptions(max + 2) { SingleWriter = true });
        Reader = new StallEndingReader(this);
    }

    public ChannelReader<GenerationEvent> Reader { get; }

    public int Count => _channel.Reader.Count;

    public void Write(GenerationEvent e)
    {
        if (!_channel.Writer.TryWrite(e)) throw new InvalidOperationException($"An outbox of {_max} events has no room for {e.GetType().Name}.");
    }

    public void Complete(GenerationFinished end)
    {
        Write(end);
        _channel.Writer.Complete();
    }

    /// <summary>True if it is full now; the reader will call back.</summary>
    public bool TryStall()
    {
        if (Count < _max) return false;
        Volatile.Write(ref _stalled, 1);
        // The reader may have read everything before it could see the mark.
        return !EndStall();
    }

    private bool EndStall() => Count <= _max / 2 && Interlocked.Exchange(ref _stalled, 0) == 1;

    private sealed class StallEndingReader(Outbox outbox) : ChannelReader<GenerationEvent>
    {
        private readonly ChannelReader<GenerationEvent> _inner = outbox._channel.Reader;

        public override bool CanCount => true;
        public override bool CanPeek => true;
        public override int Count => _inner.Count;
        public override Task Completion => _inner.Completion;

        public override bool TryPeek([MaybeNullWhen(false)] out GenerationEvent item) => _inner.TryPeek(out item);

        public override bool TryRead([MaybeNullWhen(false)] out GenerationEvent item)
        {
            if (!_inner.TryRead(out item)) return false;
            if (Volatile.Read(ref outbox._stalled) == 1 && outbox.EndStall()) outbox._caughtUp();
            return true;
        }

        public override ValueTask<bool> WaitToReadAsync(CancellationToken cancellationToken = default) =>
            _inner.WaitToReadAsync(cancellationToken);
    }
}

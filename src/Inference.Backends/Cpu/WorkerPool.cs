// A few threads that share loops. The calling thread takes part in every loop; a loop too small to share runs on it alone.
//
// A loop of `items` is cut into chunks that threads take from a shared counter, so a thread that the system has descheduled delays a loop
// by one chunk at most, and one that never woke up delays it not at all. Which thread computes which item changes nothing: kernels
// compute an item from its inputs alone (the determinism of this backend rests on that, not on the partition).
//
// Life of a loop. The caller writes the job's fields, then opens the gate: `_gate` = ticket << 32 | Open. A worker that sees a new ticket
// enters by adding 1 to the gate, takes chunks until there are none, and leaves by subtracting 1. The caller, out of chunks, closes the gate
// (nobody enters any more) and waits until nobody is inside; only then may the fields change again. It looks for 150 microseconds, then
// sleeps, and the last to leave wakes it: a worker that lost its core to another thread can go on on the caller's.
// Workers look for a new ticket for a few tens of microseconds, then sleep on their own semaphore; whoever clears a worker's `parked` flag
// owes it a release.
//
// One thread at a time may call; bodies must not call back. No allocation per loop. An exception in a body is rethrown to the caller.
using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;

namespace Inference.Backends.Cpu;

/// <summary>The body of a parallel loop: plain data that lives on the caller's stack while the loop runs.</summary>
internal interface IParallelBody
{
    /// <summary>Computes items <paramref name="start"/> .. <paramref name="end"/> - 1 as worker <paramref name="worker"/> (0 is the caller).</summary>
    void Run(int start, int end, int worker);
}

internal sealed unsafe class WorkerPool : IDisposable
{
    private const long Open = 1L << 31;
    private const long InsideMask = Open - 1;
    private const int SpinsBeforeSleep = 200;       // for a loop: 75 us
    private const int SpinsBeforeSleepInside = 400; // for a worker that is inside: the length of a chunk, seldom more

    /// <summary>Multiply-adds that are worth waking a thread for: about ten microseconds of one.</summary>
    public const long DefaultGrainWork = 200_000;

    [StructLayout(LayoutKind.Explicit, Size = 128)]
    private struct PaddedLong
    {
        [FieldOffset(64)] public long Value;
    }

    private sealed class Seat : IDisposable
    {
        public readonly SemaphoreSlim Wake = new(0);
        public int Parked;
        public Thread? Thread;

        public void Dispose()
        {
            Thread!.Join();
            Wake.Dispose();
        }
    }

    private readonly Seat[] _seats;
    private readonly long _grainWork;
    private PaddedLong _gate; // ticket << 32 | Open | threads inside
    private PaddedLong _next; // chunks taken
    private readonly SemaphoreSlim _callerWake = new(0);
    private int _callerWaits;
    private long _ticket;
    private volatile bool _stopping;

    private delegate*<void*, int, int, int, void> _invoke;
    private void* _body;
    private int _items, _chunk;
    private ExceptionDispatchInfo? _failure;

    /// <param name="threads">Threads in all, the caller included; at least 1.</param>
    /// <param name="grainWork">Multiply-adds of the smallest piece that is given to a thread.</param>
    public WorkerPool(int threads, long grainWork = DefaultGrainWork)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threads, 1);
        Threads = threads;
        _grainWork = grainWork;
        _seats = new Seat[threads - 1];
        for (var i = 0; i < _seats.Length; i++)
        {
            var worker = i + 1;
            var seat = _seats[i] = new Seat();
            seat.Thread = new Thread(() => Work(seat, worker)) { IsBackground = true, Name = $"cpu-backend-{worker}" };
            seat.Thread.Start();
        }
    }

    public int Threads { get; }

    /// <summary>Workers that wait to be woken; for tests.</summary>
    internal int SleepingWorkers => _seats.Count(seat => Volatile.Read(ref seat.Parked) != 0);

    /// <summary>Items per piece so that a piece is worth a thread.</summary>
    /// <param name="workPerItem">Multiply-adds of an item, roughly; an exponential counts as twenty.</param>
    public int Grain(long workPerItem) => (int)Math.Clamp(_grainWork / Math.Max(workPerItem, 1), 1, int.MaxValue / 4);

    /// <summary>Runs the body over 0 .. items - 1, in pieces of at least <paramref name="grain"/> items; below two grains on the caller alone.</summary>
    public void For<TBody>(ref TBody body, int items, int grain) where TBody : unmanaged, IParallelBody
    {
        if (items <= 0) return;
        if (Threads == 1 || items < 2L * grain)
        {
            body.Run(0, items, 0);
            return;
        }
        // Four chunks per thread even out uneven threads; fewer when they would fall below the grain.
        _chunk = Math.Max(Math.Max(grain, 1), (items + Threads * 4 - 1) / (Threads * 4));
        _items = items;
        _invoke = &Invoke<TBody>;
        _body = Unsafe.AsPointer(ref body); // a stack or pinned location: TBody is unmanaged and callers pass locals
        _next.Value = 0;
        _ticket = (_ticket + 1) & 0x7FFFFFFF;
        Interlocked.Exchange(ref _gate.Value, _ticket << 32 | Open);
        WakeSleepers((items + _chunk - 1) / _chunk - 1);
        TakeChunks(0);
        CloseGate();
        if (_failure is { } failure)
        {
            _failure = null;
            failure.Throw();
        }
    }

    private static void Invoke<TBody>(void* body, int start, int end, int worker) where TBody : unmanaged, IParallelBody =>
        ((TBody*)body)->Run(start, end, worker);

    private void WakeSleepers(int wanted)
    {
        foreach (var seat in _seats)
        {
            if (wanted-- <= 0) return;
            if (Volatile.Read(ref seat.Parked) != 0 && Interlocked.Exchange(ref seat.Parked, 0) != 0)
                seat.Wake.Release();
        }
    }

    private void TakeChunks(int worker)
    {
        try
        {
            while (true)
            {
                var start = (Interlocked.Increment(ref _next.Value) - 1) * _chunk;
                if (start >= _items) return;
                _invoke(_body, (int)start, (int)Math.Min(start + _chunk, _items), worker);
            }
        }
        catch (Exception e)
        {
            Interlocked.CompareExchange(ref _failure, ExceptionDispatchInfo.Capture(e), null);
            Interlocked.Add(ref _next.Value, int.MaxValue); // no more chunks for anybody
        }
    }

    private void CloseGate()
    {
        Interlocked.And(ref _gate.Value, ~Open);
        for (var spins = 0; (Volatile.Read(ref _gate.Value) & InsideMask) != 0; spins++)
        {
            if (spins < SpinsBeforeSleepInside)
            {
                Thread.SpinWait(10);
                continue;
            }
            // The worker inside has lost its core, to the network perhaps: this one becomes free for it.
            Interlocked.Exchange(ref _callerWaits, 1);
            if ((Volatile.Read(ref _gate.Value) & InsideMask) != 0 || Interlocked.Exchange(ref _callerWaits, 0) == 0) _callerWake.Wait();
        }
    }

    private void Work(Seat seat, int worker)
    {
        long served = 0;
        while (!_stopping)
        {
            if (TryEnter(ref served))
            {
                TakeChunks(worker);
                if (Interlocked.Decrement(ref _gate.Value) is var gate && (gate & (Open | InsideMask)) == 0 && Interlocked.Exchange(ref _callerWaits, 0) != 0)
                    _callerWake.Release();
                continue;
            }
            if (SpinForTicket(served)) continue;

            Interlocked.Exchange(ref seat.Parked, 1);
            if (_stopping || HasTicket(served))
            {
                // A loop began between the last look and the flag. If its caller saw the flag, a release is on its way and must be taken.
                if (Interlocked.Exchange(ref seat.Parked, 0) != 0) continue;
            }
            seat.Wake.Wait();
        }
    }

    private bool SpinForTicket(long served)
    {
        for (var i = 0; i < SpinsBeforeSleep; i++)
        {
            if (HasTicket(served) || _stopping) return true;
            Thread.SpinWait(10);
        }
        return false;
    }

    private bool HasTicket(long served)
    {
        var gate = Volatile.Read(ref _gate.Value);
        return (gate & Open) != 0 && gate >> 32 != served;
    }

    private bool TryEnter(ref long served)
    {
        var gate = Volatile.Read(ref _gate.Value);
        while ((gate & Open) != 0 && gate >> 32 != served)
        {
            var seen = Interlocked.CompareExchange(ref _gate.Value, gate + 1, gate);
            if (seen == gate)
            {
                served = gate >> 32;
                return true;
            }
            gate = seen;
        }
        return false;
    }

    public void Dispose()
    {
        _stopping = true;
        foreach (var seat in _seats)
        {
            if (Interlocked.Exchange(ref seat.Parked, 0) != 0) seat.Wake.Release();
        }
        foreach (var seat in _seats)
            seat.Dispose();
        _callerWake.Dispose();
    }
}

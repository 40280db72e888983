// What the machine can do: reading memory and multiplying, with nothing else. The yardsticks of a roofline, to be measured in the same run as what is
// compared with them, and through the same kind of worker pool as the kernels.
//
// It computes nothing that anybody needs. It owns its threads and the memory that it reads.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Inference.Backends.Cpu;

/// <summary>How fast a number of threads read memory and multiply.</summary>
/// <param name="threads">As many as the backend that is measured has.</param>
public sealed unsafe class Peaks(int threads) : DevicePeaks
{
    private const long MemoryBytes = 384L << 20; // ten times a large last-level cache

    private readonly WorkerPool _pool = new(threads);
    private readonly HostBuffer _memory = Filled();

    private static HostBuffer Filled()
    {
        var memory = new HostBuffer(MemoryBytes);
        new Span<byte>(memory.Data, (int)MemoryBytes).Fill(1);
        return memory;
    }

    public override int Threads => _pool.Threads;

    public override double ReadBytes => MemoryBytes;

    public override double MultiplyOperations => 2.0 * 4 * _pool.Threads * MultiplyItem;

    public override void Read() => Read(_pool, _memory.Data, MemoryBytes);

    public override void Multiply() => Multiply(_pool, 4 * _pool.Threads);

    public override void Dispose()
    {
        _pool.Dispose();
        _memory.Dispose();
    }

    private static ulong s_sink;
    private static float s_floatSink;

    /// <summary>Adds up a range of memory: four streams side by side with prefetch, the fastest plain read found here.</summary>
    internal static void Read(WorkerPool pool, byte* data, long bytes)
    {
        var body = new ReadBody { Data = data };
        pool.For(ref body, (int)(bytes >> 16), 1);
    }

    private struct ReadBody : IParallelBody
    {
        public byte* Data;

        public readonly void Run(int start, int end, int worker)
        {
            var sum = 0UL;
            for (var item = start; item < end; item++)
                sum += Streams(Data + ((long)item << 16));
            Interlocked.Add(ref s_sink, sum);
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private static ulong Streams(byte* p)
        {
            const int Stream = 1 << 14;
            Vector512<ulong> a = Vector512<ulong>.Zero, b = a, c = a, d = a;
            for (nint i = 0; i < Stream; i += 64)
            {
                nint ahead = i < Stream - 2048 ? i + 2048 : i + 2048 + 3 * Stream; // from a stream's end to the next item
                if (Sse.IsSupported)
                {
                    Sse.Prefetch1(p + ahead);
                    Sse.Prefetch1(p + Stream + ahead);
                    Sse.Prefetch1(p + 2 * Stream + ahead);
                    Sse.Prefetch1(p + 3 * Stream + ahead);
                }
                a += Vector512.Load((ulong*)(p + i));
                b += Vector512.Load((ulong*)(p + i + Stream));
                c += Vector512.Load((ulong*)(p + i + 2 * Stream));
                d += Vector512.Load((ulong*)(p + i + 3 * Stream));
            }
            return Vector512.Sum(a + b + c + d);
        }
    }

    /// <summary>Multiply-adds of one item of <see cref="Multiply"/>.</summary>
    internal const long MultiplyItem = 1_000_000L * 12 * 16;

    /// <summary>Fused multiply-adds on registers.</summary>
    internal static void Multiply(WorkerPool pool, int items)
    {
        var body = new MultiplyBody();
        pool.For(ref body, items, 1);
    }

    private struct MultiplyBody : IParallelBody
    {
        public readonly void Run(int start, int end, int worker)
        {
            for (var i = start; i < end; i++)
            {
                if (Vector512.IsHardwareAccelerated) Multiply512();
                else Multiply256();
            }
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Multiply512()
    {
        Vector512<float> x = Vector512.Create(1.0000001f), y = Vector512.Create(1e-9f);
        Vector512<float> a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x, a10 = x, a11 = x;
        for (var i = 0; i < 1_000_000; i++)
        {
            a0 = Vector512.FusedMultiplyAdd(a0, x, y);
            a1 = Vector512.FusedMultiplyAdd(a1, x, y);
            a2 = Vector512.FusedMultiplyAdd(a2, x, y);
            a3 = Vector512.FusedMultiplyAdd(a3, x, y);
            a4 = Vector512.FusedMultiplyAdd(a4, x, y);
            a5 = Vector512.FusedMultiplyAdd(a5, x, y);
            a6 = Vector512.FusedMultiplyAdd(a6, x, y);
            a7 = Vector512.FusedMultiplyAdd(a7, x, y);
            a8 = Vector512.FusedMultiplyAdd(a8, x, y);
            a9 = Vector512.FusedMultiplyAdd(a9, x, y);
            a10 = Vector512.FusedMultiplyAdd(a10, x, y);
            a11 = Vector512.FusedMultiplyAdd(a11, x, y);
        }
        s_floatSink += Vector512.Sum(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Multiply256()
    {
        Vector256<float> x = Vector256.Create(1.0000001f), y = Vector256.Create(1e-9f);
        Vector256<float> a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x, a10 = x, a11 = x;
        for (var i = 0; i < 2_000_000; i++)
        {
            a0 = Vector256.FusedMultiplyAdd(a0, x, y);
            a1 = Vector256.FusedMultiplyAdd(a1, x, y);
            a2 = Vector256.FusedMultiplyAdd(a2, x, y);
            a3 = Vector256.FusedMultiplyAdd(a3, x, y);
            a4 = Vector256.FusedMultiplyAdd(a4, x, y);
            a5 = Vector256.FusedMultiplyAdd(a5, x, y);
            a6 = Vector256.FusedMultiplyAdd(a6, x, y);
            a7 = Vector256.FusedMultiplyAdd(a7, x, y);
            a8 = Vector256.FusedMultiplyAdd(a8, x, y);
            a9 = Vector256.FusedMultiplyAdd(a9, x, y);
            a10 = Vector256.FusedMultiplyAdd(a10, x, y);
            a11 = Vector256.FusedMultiplyAdd(a11, x, y);
        }
        s_floatSink += Vector256.Sum(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11);
    }
}

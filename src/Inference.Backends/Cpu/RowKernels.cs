// Rotation by position, and the making of cached rows: KV rows and compressed rows (Operators/Attention.cs; deepseek-v4 2.1, 2.4, 2.6).
//
// A row is normed and rotated in double, rounded to F32 once, and then rounded to the grid its model was trained to see; near a grid
// midpoint the last bit decides, so these steps follow the scalar definition as closely as double allows. Angles are F32 products
// (RotaryTable). Each token is computed on its own.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

/// <summary>
/// Cosines and sines of one position, each twice and the first sine of a pair negative, so that
/// rotated = value * cosine + neighbour * sine. Lives in its user's memory: 2 x channels doubles, filled up to whole vectors.
/// </summary>
internal unsafe struct RotaryTable
{
    private readonly float* _frequencies;
    private readonly double* _cosines, _sines;
    private readonly int _pairs;

    /// <param name="memory"><see cref="Doubles"/> of them.</param>
    public RotaryTable(float* frequencies, int pairs, double* memory)
    {
        _frequencies = frequencies;
        _pairs = pairs;
        _cosines = memory;
        _sines = memory + Padded(pairs);
    }

    public static int Doubles(int pairs) => 2 * Padded(pairs);

    private static int Padded(int pairs) => (2 * pairs + 15) / 16 * 16;

    public readonly int Channels => 2 * _pairs;

    /// <summary>Computes the table of a position.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public readonly void Fill(int position, bool inverse)
    {
        for (var i = 0; i < _pairs; i += 8)
        {
            var lanes = Math.Min(8, _pairs - i);
            var frequencies = lanes == 8 ? Vector256.Load(_frequencies + i) : Lanes.LoadPartial(_frequencies + i, lanes).GetLower();
            var angle = frequencies * Vector256.Create((float)position); // an F32 product: the model was trained with it
            var (low, high) = Vector256.Widen(angle);
            var (sine, cosine) = VectorMath.SineCosine(Vector512.Create(low, high));
            if (inverse) sine = -sine;
            Spread(cosine, cosine, _cosines + 2 * i);
            Spread(-sine, sine, _sines + 2 * i);
        }
    }

    /// <summary>Sixteen doubles: even[0], odd[0], even[1], odd[1] ... The table is padded to whole groups of them.</summary>
    private static void Spread(Vector512<double> even, Vector512<double> odd, double* destination)
    {
        var values = stackalloc double[16];
        even.Store(values);
        odd.Store(values + 8);
        for (var j = 0; j < 8; j++)
        {
            destination[2 * j] = values[j];
            destination[2 * j + 1] = values[8 + j];
        }
    }

    /// <summary>Rotates <see cref="Channels"/> floats in place, in double.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public readonly void Apply(float* x)
    {
        var i = 0;
        for (; i + 8 <= Channels; i += 8)
        {
            var (low, high) = Vector256.Widen(Vector256.Load(x + i));
            var rotated = Rotate(Vector512.Create(low, high), i);
            Vector256.Narrow(rotated.GetLower(), rotated.GetUpper()).Store(x + i);
        }
        for (; i < Channels; i += 2)
        {
            double a = x[i], b = x[i + 1];
            x[i] = (float)Math.FusedMultiplyAdd(a, _cosines[i], b * _sines[i]);
            x[i + 1] = (float)Math.FusedMultiplyAdd(b, _cosines[i + 1], a * _sines[i + 1]);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public readonly void Apply(double* x)
    {
        var i = 0;
        for (; i + 8 <= Channels; i += 8)
            Rotate(Vector512.Load(x + i), i).Store(x + i);
        for (; i < Channels; i += 2)
        {
            double a = x[i], b = x[i + 1];
            x[i] = Math.FusedMultiplyAdd(a, _cosines[i], b * _sines[i]);
            x[i + 1] = Math.FusedMultiplyAdd(b, _cosines[i + 1], a * _sines[i + 1]);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private readonly Vector512<double> Rotate(Vector512<double> v, int i)
    {
        var neighbours = Vector512.Shuffle(v, Vector512.Create(1L, 0, 3, 2, 5, 4, 7, 6));
        return Vector512.FusedMultiplyAdd(v, Vector512.Load(_cosines + i), neighbours * Vector512.Load(_sines + i));
    }
}

internal sealed unsafe class RowKernels(WorkerPool pool) : IDisposable
{
    private readonly Scratch _workers = new(), _seen = new();

    public void Run(in Rotate op)
    {
        var pairs = op.Rope.Frequencies.D0;
        var body = new RotateBody
        {
            Vectors = op.Vectors.F32(),
            Stride = op.Vectors.RowStride,
            Heads = op.Vectors.D1,
            Width = op.Vectors.D2,
            Positions = op.Positions.I32(),
            Frequencies = op.Rope.Frequencies.F32(),
            Pairs = pairs,
            Inverse = op.Inverse,
            Memory = _workers.Get<double>((long)RotaryTable.Doubles(pairs) * pool.Threads),
        };
        pool.For(ref body, op.Vectors.D0, pool.Grain((op.Vectors.D1 + 20L) * pairs * 4));
    }

    private struct RotateBody : IParallelBody
    {
        public float* Vectors, Frequencies;
        public int* Positions;
        public double* Memory;
        public long Stride;
        public int Heads, Width, Pairs;
        public bool Inverse;

        public readonly void Run(int start, int end, int worker)
        {
            var table = new RotaryTable(Frequencies, Pairs, Memory + (long)worker * RotaryTable.Doubles(Pairs));
            for (var t = start; t < end; t++)
            {
                if (Positions[t] < 0) throw CpuChecks.Wrong($"Rotate.Positions: token {t} has position {Positions[t]}.");
                table.Fill(Positions[t], Inverse);
                for (var h = 0; h < Heads; h++)
                    table.Apply(Vectors + t * Stride + (long)(h + 1) * Width - 2 * Pairs);
            }
        }
    }

    public void Run(in KvInsert op)
    {
        CpuChecks.Tokens("KvInsert", op.Tokens, op.Rows.PageTable.D0, _seen);
        int width = op.Input.D1, pairs = op.Rope.Frequencies.D0, doubles = (width + 7) / 8 * 8 + RotaryTable.Doubles(pairs);
        var body = new InsertBody
        {
            Input = op.Input.F32(),
            Stride = op.Input.RowStride,
            Sequence = op.Tokens.Sequence.I32(),
            Position = op.Tokens.Position.I32(),
            Rows = new RowMap(op.Rows, RowMap.Operand.KvInsertRows),
            Finish = new RowFinish(op.Norm, op.Epsilon, op.Rope, op.Rounding, op.Rows.Format),
            Memory = _workers.Get<double>((long)doubles * pool.Threads),
            Doubles = doubles,
            Width = width,
        };
        pool.For(ref body, op.Input.D0, pool.Grain(width * 40L));
    }

    private struct InsertBody : IParallelBody
    {
        public float* Input;
        public int* Sequence, Position;
        public double* Memory;
        public long Stride;
        public RowMap Rows;
        public RowFinish Finish;
        public int Doubles, Width;

        public readonly void Run(int start, int end, int worker)
        {
            double* values = Memory + (long)worker * Doubles, table = values + (Width + 7) / 8 * 8;
            for (var t = start; t < end; t++)
            {
                var input = Input + t * Stride;
                RowFinish.Widen(input, values, Width);
                Finish.Write(values, Position[t], Rows.Row(Sequence[t], Position[t]), table);
            }
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
    }
}

/// <summary>The last steps of a cached row: RMSNorm, rotation, F32, rounding, storing.</summary>
internal unsafe struct RowFinish(in Tensor norm, float epsilon, in Rope rope, RowRounding rounding, RowFormat format)
{
    private readonly float* _norm = norm.F32();
    private readonly float* _frequencies = rope.Frequencies.F32();
    private readonly int _width = norm.D0, _pairs = rope.Frequencies.D0;
    private readonly float _epsilon = epsilon;
    private readonly RowRounding _rounding = rounding;
    private readonly RowCodec _codec = new(format);

    /// <param name="values">The row before the norm, used up.</param>
    /// <param name="table">Memory for a <see cref="RotaryTable"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public readonly void Write(double* values, int position, byte* stored, double* table)
    {
        var rho = 1 / Math.Sqrt(SumOfSquares(values, _width) / _width + _epsilon);
        var scale = Vector512.Create(rho);
        var n = 0;
        for (; n + 8 <= _width; n += 8)
            (Vector512.Load(values + n) * (scale * Widened(_norm + n))).Store(values + n);
        for (; n < _width; n++)
            values[n] *= rho * _norm[n];
        var rotary = new RotaryTable(_frequencies, _pairs, table);
        rotary.Fill(position, inverse: false);
        rotary.Apply(values + _width - 2 * _pairs);
        var row = _codec.IsF32 ? (float*)stored : (float*)values; // narrowing in place never runs ahead of what it reads
        for (n = 0; n + 8 <= _width; n += 8)
            Vector256.Narrow(Vector256.Load(values + n), Vector256.Load(values + n + 4)).Store(row + n);
        for (; n < _width; n++)
            row[n] = (float)values[n];
        GridRounding.Round(row, _width, 2 * _pairs, _rounding);
        if (!_codec.IsF32) _codec.Encode(row, stored);
    }

    public static void Widen(float* source, double* destination, int count)
    {
        var i = 0;
        for (; i + 8 <= count; i += 8)
            Widened(source + i).Store(destination + i);
        for (; i < count; i++)
            destination[i] = source[i];
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector512<double> Widened(float* eight)
    {
        var (low, high) = Vector256.Widen(Vector256.Load(eight));
        return Vector512.Create(low, high);
    }

    /// <summary>Eight lanes, joined as Lanes.Sum joins them.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static double SumOfSquares(double* x, int count)
    {
        var sums = Vector512<double>.Zero;
        var i = 0;
        for (; i + 8 <= count; i += 8)
        {
            var v = Vector512.Load(x + i);
            sums = Vector512.FusedMultiplyAdd(v, v, sums);
        }
        var sum = Lanes.Sum(sums);
        for (; i < count; i++)
            sum = Math.FusedMultiplyAdd(x[i], x[i], sum);
        return sum;
    }
}

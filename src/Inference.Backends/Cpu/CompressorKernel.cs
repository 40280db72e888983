// The compressor: values and gates of tokens go to the state; the last token of a block pools its block into a row (Operators/Attention.cs;
// deepseek-v4 2.6).
//
// Two passes over the tokens of the step, for a block may have begun in this very step: first all state rows, then the rows to emit. The pool is a
// softmax channel by channel over the slots, in the order of position, in double; norm, rotation and rounding as for every cached row.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class CompressorKernel(WorkerPool pool) : IDisposable
{
    private readonly Scratch _workers = new(), _seen = new();

    public void Run(in CompressorUpdate op)
    {
        CpuChecks.Tokens("CompressorUpdate", op.Tokens, op.State.PageTable.D0, _seen);
        int channels = op.Values.D1, width = op.Norm.D0, pairs = op.Rope.Frequencies.D0;
        var body = new Body
        {
            Values = op.Values.F32(),
            ValuesStride = op.Values.RowStride,
            Gates = op.Gates.F32(),
            GatesStride = op.Gates.RowStride,
            Ape = op.Ape.F32(),
            ApeStride = op.Ape.RowStride,
            Sequence = op.Tokens.Sequence.I32(),
            Position = op.Tokens.Position.I32(),
            State = new RowMap(op.State, RowMap.Operand.CompressorState),
            Rows = new RowMap(op.Rows, RowMap.Operand.CompressorRows),
            Finish = new RowFinish(op.Norm, op.Epsilon, op.Rope, op.Rounding, op.Rows.Format),
            Ratio = op.Ratio,
            Overlap = op.Overlap,
            Channels = channels,
            Width = width,
        };
        body.Doubles = (width + 15) / 16 * 16 + RotaryTable.Doubles(pairs) + 2 * op.Ratio;
        body.Memory = _workers.Get<double>((long)body.Doubles * pool.Threads);
        pool.For(ref body, op.Values.D0, pool.Grain(channels * 4L));
        body.Emitting = true;
        var slots = (op.Overlap ? 2L : 1L) * op.Ratio;
        pool.For(ref body, op.Values.D0, pool.Grain(slots * width * 12 / op.Ratio));
    }

    private struct Body : IParallelBody
    {
        public float* Values, Gates, Ape;
        public int* Sequence, Position;
        public double* Memory;
        public long ValuesStride, GatesStride, ApeStride;
        public RowMap State, Rows;
        public RowFinish Finish;
        public int Ratio, Channels, Width, Doubles;
        public bool Overlap, Emitting;

        public readonly void Run(int start, int end, int worker)
        {
            for (var t = start; t < end; t++)
            {
                if (!Emitting) Insert(t);
                else if ((Position[t] + 1L) % Ratio == 0) Emit(Sequence[t], Position[t] / Ratio, Memory + (long)worker * Doubles);
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Insert(int t)
        {
            var state = (float*)State.Row(Sequence[t], Position[t]);
            float* gates = Gates + t * GatesStride, ape = Ape + Position[t] % Ratio * ApeStride;
            ElementwiseKernels.Copy(Values + t * ValuesStride, state, Channels);
            for (var i = 0; i < Channels; i++)
                state[Channels + i] = gates[i] + ape[i];
        }

        private readonly void Emit(int sequence, int block, double* memory)
        {
            double* pooled = memory, table = pooled + (Width + 15) / 16 * 16;
            var slots = (float**)(memory + Doubles - 2 * Ratio);
            var count = 0;
            // A slot points at the part of a token's values that counts; the gates of that part lie one row of channels further on.
            for (var i = 0; Overlap && block > 0 && i < Ratio; i++)
                slots[count++] = (float*)State.Row(sequence, (block - 1) * Ratio + i);
            for (var i = 0; i < Ratio; i++)
                slots[count++] = (float*)State.Row(sequence, block * Ratio + i) + (Overlap ? Width : 0);
            for (var channel = 0; channel < Width; channel += 8)
                Pool(slots, count, channel, Math.Min(8, Width - channel)).Store(pooled + channel);
            Finish.Write(pooled, block * Ratio, Rows.Row(sequence, block), table);
        }

        /// <summary>sum of exp(gate - max) value / sum of exp(gate - max) over the slots, for eight channels.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly Vector512<double> Pool(float** slots, int count, int channel, int lanes)
        {
            var max = Load(slots[0] + Channels + channel, lanes);
            for (var i = 1; i < count; i++)
                max = Vector512.Max(max, Load(slots[i] + Channels + channel, lanes));
            Vector512<double> sum = Vector512<double>.Zero, weighted = sum;
            for (var i = 0; i < count; i++)
            {
                var weight = VectorMath.ExpOfNegative(Load(slots[i] + Channels + channel, lanes) - max);
                sum += weight;
                weighted = Vector512.FusedMultiplyAdd(weight, Load(slots[i] + channel, lanes), weighted);
            }
            return weighted / sum;
        }

        private static Vector512<double> Load(float* source, int lanes)
        {
            var v = lanes == 8 ? Vector256.Load(source) : Lanes.LoadPartial(source, lanes).GetLower();
            var (low, high) = Vector256.Widen(v);
            return Vector512.Create(low, high);
        }
    }

    public void Dispose()
    {
        _workers.Dispose();
        _seen.Dispose();
    }
}

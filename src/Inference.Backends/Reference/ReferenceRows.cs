using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>
/// Rotation, and the making of cached rows: KV rows and compressed rows (Operators/Attention.cs; deepseek-v4 2.1, 2.4, 2.6). A row is
/// normed and rotated in double, becomes F32, and only then is rounded as <see cref="RowRounding"/> says. Static; the pools belong to the
/// caller.
/// </summary>
internal static unsafe class ReferenceRows
{
    public static void Run(in Rotate op)
    {
        var vector = new double[op.Vectors.D2];
        for (var t = 0; t < op.Vectors.D0; t++)
        {
            var position = op.Positions.I32()[t];
            if (position < 0) throw HostRows.Wrong($"Rotate.Positions: token {t} has position {position}.");
            for (var h = 0; h < op.Vectors.D1; h++)
            {
                var stored = HostRows.Row(op.Vectors, t).Slice(h * vector.Length, vector.Length);
                for (var i = 0; i < vector.Length; i++)
                    vector[i] = stored[i];
                Rotate(vector, position, op.Rope, op.Inverse);
                for (var i = 0; i < vector.Length; i++)
                    stored[i] = (float)vector[i];
            }
        }
    }

    public static void Run(in KvInsert op)
    {
        HostRows.CheckTokens("KvInsert", op.Tokens, op.Rows.PageTable.D0);
        var values = new double[op.Input.D1];
        var row = new float[values.Length];
        for (var t = 0; t < op.Input.D0; t++)
        {
            var input = HostRows.Row(op.Input, t);
            for (var i = 0; i < values.Length; i++)
                values[i] = input[i];
            int sequence = op.Tokens.Sequence.I32()[t], position = op.Tokens.Position.I32()[t];
            FinishRow(values, op.Norm, op.Epsilon, position, op.Rope, op.Rounding, row);
            HostRows.Write("KvInsert.Rows", op.Rows, sequence, position, row);
        }
    }

    public static void Run(in CompressorUpdate op)
    {
        HostRows.CheckTokens("CompressorUpdate", op.Tokens, op.State.PageTable.D0);
        for (var t = 0; t < op.Values.D0; t++)
            InsertState(op, t);
        for (var t = 0; t < op.Values.D0; t++)
        {
            if ((op.Tokens.Position.I32()[t] + 1L) % op.Ratio == 0)
                EmitRow(op, op.Tokens.Sequence.I32()[t], op.Tokens.Position.I32()[t] / op.Ratio);
        }
    }

    /// <summary>Keeps a token's values and its gates, these with the position's bias, at the row of its position.</summary>
    private static void InsertState(in CompressorUpdate op, int t)
    {
        var position = op.Tokens.Position.I32()[t];
        var state = new Span<float>(State(op, op.Tokens.Sequence.I32()[t], position), op.State.Width);
        Span<float> values = HostRows.Row(op.Values, t), gates = HostRows.Row(op.Gates, t), ape = HostRows.Row(op.Ape, position % op.Ratio);
        values.CopyTo(state);
        for (var i = 0; i < gates.Length; i++)
            state[values.Length + i] = gates[i] + ape[i];
    }

    /// <summary>Pools one block (with overlap: and the one before it) into its row.</summary>
    private static void EmitRow(in CompressorUpdate op, int sequence, int block)
    {
        int channels = op.Values.D1, width = op.Norm.D0;
        // A slot is the address of the part of a token's values that counts; the gates of that part lie one row of channels further on.
        var slots = new List<nint>();
        for (var i = 0; op.Overlap && block > 0 && i < op.Ratio; i++)
            slots.Add((nint)State(op, sequence, (block - 1L) * op.Ratio + i));
        for (var i = 0; i < op.Ratio; i++)
            slots.Add((nint)(State(op, sequence, (long)block * op.Ratio + i) + (op.Overlap ? width : 0)));

        var pooled = new double[width];
        for (var channel = 0; channel < width; channel++)
        {
            var max = double.NegativeInfinity;
            foreach (float* slot in slots)
                max = Math.Max(max, slot[channels + channel]);
            double sum = 0, weighted = 0;
            foreach (float* slot in slots)
            {
                var weight = Math.Exp(slot[channels + channel] - max);
                sum += weight;
                weighted += weight * slot[channel];
            }
            pooled[channel] = weighted / sum;
        }
        var row = new float[width];
        FinishRow(pooled, op.Norm, op.Epsilon, block * op.Ratio, op.Rope, op.Rounding, row);
        HostRows.Write("CompressorUpdate.Rows", op.Rows, sequence, block, row);
    }

    private static float* State(in CompressorUpdate op, int sequence, long position) =>
        (float*)HostRows.RowPointer("CompressorUpdate.State", op.State, sequence, position);

    /// <summary>RMSNorm, rotation by the position, store as F32, rounding. Uses up <paramref name="values"/>.</summary>
    private static void FinishRow(
        Span<double> values, in Tensor norm, float epsilon, int position, in Rope rope, RowRounding rounding, Span<float> row)
    {
        var squares = 0.0;
        foreach (var value in values)
            squares += value * value;
        var rho = 1 / Math.Sqrt(squares / values.Length + epsilon);
        for (var i = 0; i < values.Length; i++)
            values[i] *= rho * norm.F32()[i];
        Rotate(values, position, rope, inverse: false);
        for (var i = 0; i < row.Length; i++)
            row[i] = (float)values[i];
        Round(row, rope, rounding);
    }

    /// <summary>Rotates the last channels of a vector, pairs of neighbours, by position x frequency.</summary>
    public static void Rotate(Span<double> vector, int position, in Rope rope, bool inverse)
    {
        var rotary = vector[^rope.Channels..];
        for (var i = 0; i < rope.Frequencies.D0; i++)
        {
            // The angle as the models were trained: an F32 product, though it is off by 0.03 rad at a position of a million.
            double angle = (float)((float)position * rope.Frequencies.F32()[i]);
            double cos = Math.Cos(angle), sin = inverse ? -Math.Sin(angle) : Math.Sin(angle);
            double a = rotary[2 * i], b = rotary[2 * i + 1];
            rotary[2 * i] = a * cos - b * sin;
            rotary[2 * i + 1] = a * sin + b * cos;
        }
    }

    /// <summary>Replaces a row by what its stored form would give back.</summary>
    public static void Round(Span<float> row, in Rope rope, RowRounding rounding)
    {
        var plain = row.Length - rope.Channels;
        switch (rounding)
        {
            case RowRounding.BF16:
                RoundToBFloat16(row);
                break;
            case RowRounding.Fp8Block64 or RowRounding.Fp8Row:
                for (var start = 0; start < plain; start += RowFormat.Fp8Block)
                    Numerics.QuantizeFp8Block(row.Slice(start, RowFormat.Fp8Block));
                if (rounding == RowRounding.Fp8Row) RoundToBFloat16(row[plain..]);
                break;
            case RowRounding.HadamardFp8:
                Numerics.Hadamard(row);
                Numerics.QuantizeFp8Block(row);
                break;
            case RowRounding.HadamardFp4Block32:
                Numerics.Hadamard(row);
                Numerics.QuantizeFp4Block32(row);
                break;
        }
    }

    private static void RoundToBFloat16(Span<float> values)
    {
        foreach (ref var x in values)
            x = Numerics.RoundToBFloat16(x);
    }
}

// Choosing experts: scores of all, the best of them, their weights (Operators/Experts.cs; deepseek-v4 2.10).
// Scores one by one in lanes; sums of the chosen in the order of choice. A token's choice depends on its logits alone.
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Inference.Backends.Operators;

namespace Inference.Backends.Cpu;

internal sealed unsafe class RouteKernel(WorkerPool pool) : IDisposable
{
    private readonly Scratch _scores = new();

    public void Run(in Route op)
    {
        var padded = (op.Logits.D1 + 15) / 16 * 16;
        var body = new Body
        {
            Logits = op.Logits.F32(),
            LogitsStride = op.Logits.RowStride,
            Experts = op.Logits.D1,
            Scoring = op.Scoring,
            Bias = op.Bias.IsPresent ? op.Bias.F32() : null,
            HashTable = op.HashTable.IsPresent ? op.HashTable.I32() : null,
            HashStride = op.HashTable.IsPresent ? op.HashTable.RowStride : 0,
            HashRows = op.HashTable.D0,
            TokenIds = op.HashTable.IsPresent ? op.TokenIds.I32() : null,
            Scale = op.Scale,
            PerToken = op.ExpertIds.D1,
            Ids = op.ExpertIds.I32(),
            IdsStride = op.ExpertIds.RowStride,
            Weights = op.ExpertWeights.F32(),
            WeightsStride = op.ExpertWeights.RowStride,
            Scores = _scores.Get<float>((long)padded * pool.Threads),
            ScoresStride = padded,
        };
        pool.For(ref body, op.Logits.D0, pool.Grain(padded * 40L));
    }

    private struct Body : IParallelBody
    {
        public float* Logits, Bias, Weights, Scores;
        public int* HashTable, TokenIds, Ids;
        public long LogitsStride, HashStride, IdsStride, WeightsStride;
        public int Experts, HashRows, PerToken, ScoresStride;
        public RouterScoring Scoring;
        public float Scale;

        public readonly void Run(int start, int end, int worker)
        {
            var scores = Scores + (long)worker * ScoresStride;
            for (var t = start; t < end; t++)
            {
                var ids = Ids + t * IdsStride;
                Score(Logits + t * LogitsStride, scores);
                if (HashTable is not null) Look(t, ids);
                else Choose(scores, ids);

                var weights = Weights + t * WeightsStride;
                var sum = 0f;
                for (var s = 0; s < PerToken; s++)
                    sum += scores[ids[s]];
                for (var s = 0; s < PerToken; s++)
                    weights[s] = scores[ids[s]] / sum * Scale;
            }
        }

        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Score(float* logits, float* scores)
        {
            var shift = Vector512<float>.Zero;
            if (Scoring == RouterScoring.Softmax)
            {
                var max = float.NegativeInfinity;
                for (var e = 0; e < Experts; e++)
                    max = MathF.Max(max, logits[e]);
                shift = Vector512.Create(max);
            }
            var sum = Vector512<float>.Zero;
            for (var e = 0; e < Experts; e += 16)
            {
                var lanes = Math.Min(16, Experts - e);
                var x = lanes == 16 ? Vector512.Load(logits + e) : Lanes.LoadPartial(logits + e, lanes);
                var score = Scoring switch
                {
                    RouterScoring.SqrtSoftplus => Vector512.Sqrt(VectorMath.Softplus(x)),
                    RouterScoring.Sigmoid => VectorMath.Sigmoid(x),
                    _ => VectorMath.Exp(x - shift),
                };
                score.Store(scores + e); // the row of scores has room for whole vectors
                if (lanes < 16) new Span<float>(scores + e + lanes, 16 - lanes).Clear();
                sum += Vector512.Load(scores + e);
            }
            if (Scoring != RouterScoring.Softmax) return;
            var total = Vector512.Create(Lanes.Sum(sum));
            for (var e = 0; e < Experts; e += 16)
                (Vector512.Load(scores + e) / total).Store(scores + e);
        }

        private readonly void Look(int t, int* ids)
        {
            var token = CpuChecks.Index("Route.TokenIds", "token", t, TokenIds[t], HashRows);
            for (var s = 0; s < PerToken; s++)
                ids[s] = CpuChecks.Index("Route.HashTable", "an expert of token id", token, HashTable[token * HashStride + s], Experts);
        }

        /// <summary>The largest of score + bias in descending order; of equal ones the smaller id, NaN last.</summary>
        [MethodImpl(MethodImplOptions.AggressiveOptimization)]
        private readonly void Choose(float* scores, int* ids)
        {
            var best = stackalloc float[PerToken];
            var count = 0;
            for (var e = 0; e < Experts; e++)
            {
                var value = scores[e] + (Bias is null ? 0 : Bias[e]);
                var place = count;
                while (place > 0 && (value > best[place - 1] || (float.IsNaN(best[place - 1]) && !float.IsNaN(value))))
                    place--;
                if (place == PerToken) continue;
                if (count < PerToken) count++;
                for (var s = count - 1; s > place; s--)
                    (best[s], ids[s]) = (best[s - 1], ids[s - 1]);
                (best[place], ids[place]) = (value, e);
            }
        }
    }

    public void Dispose() => _scores.Dispose();
}

using Inference.Backends.Operators;

namespace Inference.Backends.Reference;

/// <summary>Routing and the routed experts (Operators/Experts.cs; deepseek-v4 2.10). Static; owns nothing.</summary>
internal static unsafe class ReferenceExperts
{
    public static void Run(in Route op)
    {
        var perToken = op.ExpertIds.D1;
        double[] scores = new double[op.Logits.D1], biased = new double[op.Logits.D1];
        for (var t = 0; t < op.Logits.D0; t++)
        {
            Scores(HostRows.Row(op.Logits, t), op.Scoring, scores);
            var ids = new Span<int>(op.ExpertIds.I32(t), perToken);
            if (op.HashTable.IsPresent)
            {
                var token = HostRows.Index("Route.TokenIds", $"token {t}", op.TokenIds.I32()[t], op.HashTable.D0);
                new ReadOnlySpan<int>(op.HashTable.I32(token), perToken).CopyTo(ids);
                foreach (var id in ids)
                    HostRows.Index("Route.HashTable", $"an expert of token id {token}", id, scores.Length);
            }
            else
            {
                for (var e = 0; e < scores.Length; e++)
                    biased[e] = scores[e] + (op.Bias.IsPresent ? op.Bias.F32()[e] : 0);
                ReferenceAttention.Largest(biased, ids);
            }
            var sum = 0.0;
            foreach (var id in ids)
                sum += scores[id];
            for (var s = 0; s < perToken; s++)
                op.ExpertWeights.F32(t)[s] = (float)(scores[ids[s]] / sum * op.Scale);
        }
    }

    private static void Scores(ReadOnlySpan<float> logits, RouterScoring scoring, Span<double> scores)
    {
        double max = double.NegativeInfinity, sum = 0;
        foreach (double logit in logits)
            max = Math.Max(max, logit);
        foreach (double logit in logits)
            sum += Math.Exp(logit - max);
        for (var e = 0; e < scores.Length; e++)
        {
            double logit = logits[e];
            scores[e] = scoring switch
            {
                RouterScoring.SqrtSoftplus => Math.Sqrt(Softplus(logit)),
                RouterScoring.Sigmoid => 1 / (1 + Math.Exp(-logit)),
                _ => Math.Exp(logit - max) / sum,
            };
        }
    }

    /// <summary>log(1 + e^x); the identity above 20, as the models were trained.</summary>
    private static double Softplus(double x) => x > 20 ? x : LogOnePlus(Math.Exp(x));

    /// <summary>log(1 + y) for y >= 0 without losing small y, whose digits 1 + y drops: the quotient restores them.</summary>
    private static double LogOnePlus(double y)
    {
        var sum = 1 + y;
        return sum == 1 ? y : Math.Log(sum) * (y / (sum - 1));
    }

    public static void Run(in ExpertGateUp op)
    {
        int perToken = op.ExpertIds.D1, inner = op.Output.D2;
        var row = new double[op.Input.D1];
        for (var t = 0; t < op.Input.D0; t++)
        {
            var input = HostRows.Row(op.Input, t);
            for (var s = 0; s < perToken; s++)
            {
                var expert = Expert("ExpertGateUp.ExpertIds", op.ExpertIds, t, s, op.Gate.Length);
                ReferenceWeight gate = (ReferenceWeight)op.Gate[expert], up = (ReferenceWeight)op.Up[expert];
                for (var i = 0; i < inner; i++)
                {
                    gate.DecodeRow(i, row);
                    var gateValue = ReferenceDense.Dot(row, input);
                    up.DecodeRow(i, row);
                    var hidden = ReferenceDense.SwiGlu(gateValue, ReferenceDense.Dot(row, input), op.Limit);
                    op.Output.F32(t)[s * inner + i] = (float)(op.ExpertWeights.F32(t)[s] * hidden);
                }
            }
        }
    }

    public static void Run(in ExpertDownCombine op)
    {
        int perToken = op.ExpertIds.D1, inner = op.Hidden.D2;
        var row = new double[inner];
        var sum = new double[op.Output.D1];
        for (var t = 0; t < op.Hidden.D0; t++)
        {
            for (var d = 0; d < sum.Length; d++)
                sum[d] = op.Shared.IsPresent ? op.Shared.F32(t)[d] : 0;
            for (var s = 0; s < perToken; s++)
            {
                var down = (ReferenceWeight)op.Down[Expert("ExpertDownCombine.ExpertIds", op.ExpertIds, t, s, op.Down.Length)];
                for (var d = 0; d < sum.Length; d++)
                {
                    down.DecodeRow(d, row);
                    sum[d] += ReferenceDense.Dot(row, HostRows.Row(op.Hidden, t).Slice(s * inner, inner));
                }
            }
            for (var d = 0; d < sum.Length; d++)
                op.Output.F32(t)[d] = (float)sum[d];
        }
    }

    private static int Expert(string operand, in Tensor ids, int t, int s, int count) =>
        HostRows.Index(operand, $"slot {s} of token {t}", ids.I32(t)[s], count);
}

using Inference.Backends.Operators;
using Xunit;

namespace Inference.Backends.Tests.Conformance;

/// <summary>Cases of Operators/Experts.cs.</summary>
internal static class ExpertCases
{
    public static IEnumerable<OperatorCase> All =>
    [
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 9, experts: 32, perToken: 6, bias: true)),
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 3, experts: 7, perToken: 2, bias: false)),
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 5, experts: 12, perToken: 4, bias: true, RouteInputs.Ties)),
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 4, experts: 16, perToken: 3, bias: true, RouteInputs.Extreme)),
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 4, experts: 16, perToken: 5, bias: false, RouteInputs.Low)),
        .. Enum.GetValues<RouterScoring>().Select(s => new RouteCase(s, tokens: 6, experts: 8, perToken: 2, bias: false, RouteInputs.Hash)),
        new RouteCase(RouterScoring.SqrtSoftplus, tokens: 2, experts: 1, perToken: 1, bias: true),
        new RouteCase(RouterScoring.SqrtSoftplus, tokens: 2, experts: 5, perToken: 5, bias: true),
        new RouteCase(RouterScoring.SqrtSoftplus, tokens: 2, experts: 384, perToken: 6, bias: true),
        new RouteCase(RouterScoring.SqrtSoftplus, tokens: 0, experts: 8, perToken: 2, bias: true),

        .. DenseCases.Schemes.Select(s => new ExpertGateUpCase(s, tokens: 6, experts: 5, perToken: 3, columns: 160, inner: 34, limit: 10)),
        new ExpertGateUpCase(WeightScheme.BF16, tokens: 70, experts: 4, perToken: 2, columns: 33, inner: 9, limit: 0.5f),
        new ExpertGateUpCase(WeightScheme.F32, tokens: 3, experts: 1, perToken: 1, columns: 1, inner: 1, limit: float.PositiveInfinity),
        new ExpertGateUpCase(DenseCases.Fp4, tokens: 1, experts: 16, perToken: 6, columns: 64, inner: 32, limit: 10),
        new ExpertGateUpCase(WeightScheme.F32, tokens: 0, experts: 2, perToken: 1, columns: 8, inner: 8, limit: 10),

        .. DenseCases.Schemes.Select(s =>
            new ExpertDownCombineCase(s, tokens: 6, experts: 5, perToken: 3, inner: 160, width: 34, SharedOperand.Apart)),
        new ExpertDownCombineCase(WeightScheme.BF16, tokens: 70, experts: 4, perToken: 2, inner: 33, width: 9, SharedOperand.InPlace),
        new ExpertDownCombineCase(DenseCases.Fp4, tokens: 3, experts: 4, perToken: 2, inner: 32, width: 64, SharedOperand.Absent),
        new ExpertDownCombineCase(WeightScheme.F32, tokens: 3, experts: 1, perToken: 1, inner: 1, width: 1, SharedOperand.Absent),
        new ExpertDownCombineCase(WeightScheme.F32, tokens: 0, experts: 2, perToken: 1, inner: 8, width: 8, SharedOperand.Apart),
    ];
}

internal enum RouteInputs
{
    Normal,
    /// <summary>Few distinct logits and biases, so that many experts have exactly the same key.</summary>
    Ties,
    /// <summary>Logits of +-80.</summary>
    Extreme,
    /// <summary>Logits of -10 to -70, whose exponentials vanish beside 1.</summary>
    Low,
    Hash,
}

internal sealed class RouteCase : OperatorCase
{
    private const int Vocabulary = 20;
    private readonly RouterScoring _scoring;
    private readonly int _experts, _perToken;
    private readonly float _scale = 1.5f;
    private readonly float[] _logits, _bias;
    private readonly int[] _hashTable, _tokenIds;

    public RouteCase(RouterScoring scoring, int tokens, int experts, int perToken, bool bias, RouteInputs inputs = RouteInputs.Normal)
        : base($"Route {scoring} T={tokens} E={experts} k={perToken}{(bias ? " bias" : "")} {inputs}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_scoring, _experts, _perToken) = (scoring, experts, perToken);
        _logits = Draws.Floats(random, tokens * experts, inputs == RouteInputs.Extreme ? 40 : 1.5);
        _bias = bias ? Draws.Floats(random, experts, 0.25) : [];
        if (inputs == RouteInputs.Extreme) _logits = Array.ConvertAll(_logits, x => Math.Clamp(x, -80, 80));
        if (inputs == RouteInputs.Low) _logits = Array.ConvertAll(_logits, x => -10 - 15 * Math.Abs(x));
        if (inputs == RouteInputs.Ties)
        {
            _logits = Array.ConvertAll(_logits, x => MathF.Round(x));
            _bias = Array.ConvertAll(_bias, x => x > 0 ? 0.25f : 0);
        }
        _hashTable = inputs != RouteInputs.Hash ? []
            : [.. Enumerable.Range(0, Vocabulary).SelectMany(_ => Draws.Permutation(random, experts).Take(perToken))];
        _tokenIds = [.. Enumerable.Range(0, tokens).Select(t => t == 0 ? Vocabulary - 1 : random.Next(Vocabulary))];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        var bias = _bias.Length == 0 ? default : device.Vector(_bias);
        var table = _hashTable.Length == 0 ? default : device.In(_hashTable, Vocabulary, _perToken);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var logits = device.In(Pick(_logits, _experts, tokens), tokens.Length, _experts);
            var tokenIds = table.IsPresent ? device.In(Pick(_tokenIds, 1, tokens), tokens.Length) : default;
            Tensor ids = device.Out(DType.I32, tokens.Length, _perToken), weights = device.Out(DType.F32, tokens.Length, _perToken);
            device.Run(new Route(logits, _scoring, bias, table, tokenIds, _scale, ids, weights));
            outputs.Scatter("Ids", this, tokens, device.ReadI32(ids));
            outputs.Scatter("Weights", this, tokens, device.Read(weights));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model() => throw new NotSupportedException("depends on the chosen experts");

    public override void CheckReference(Outputs reference) => CheckChoice(reference, slackPart: 1e-6, weightPart: 1e-6);

    public override void Check(Outputs reference, Outputs actual) => CheckChoice(actual, slackPart: 1, weightPart: 1);

    /// <summary>
    /// The ids must be those of the largest keys, in descending order, where keys within the error of F32 may change places but equal
    /// inputs may not; the weights must be right for the ids.
    /// </summary>
    private void CheckChoice(Outputs outputs, double slackPart, double weightPart)
    {
        for (var t = 0; t < Tokens; t++)
        {
            var logits = _logits.AsSpan(t * _experts, _experts).ToArray();
            var ids = outputs.Ints["Ids"].AsSpan(t * _perToken, _perToken).ToArray();
            var scores = Scores(logits);
            if (_hashTable.Length > 0) Assert.Equal(_hashTable.AsSpan(_tokenIds[t] * _perToken, _perToken).ToArray(), ids);
            else CheckOrder(logits, scores, ids, slackPart);

            var sum = ids.Sum(id => scores.Values[id]);
            var sumError = ids.Sum(id => scores.Errors[id]) / sum + Approx.Eps * (_perToken + 2);
            for (var s = 0; s < _perToken; s++)
            {
                var weight = scores.Values[ids[s]] / sum * _scale;
                var error = weight * (weightPart * (scores.Errors[ids[s]] / scores.Values[ids[s]] + sumError) + Approx.Eps);
                Assert.InRange(outputs.Floats["Weights"][t * _perToken + s], weight - error, weight + error);
            }
        }
    }

    private void CheckOrder(float[] logits, Approx scores, int[] ids, double slackPart)
    {
        Assert.Equal(ids.Length, ids.Distinct().Count());
        Assert.All(ids, id => Assert.InRange(id, 0, _experts - 1));
        float Bias(int e) => _bias.Length == 0 ? 0 : _bias[e];
        double Key(int e) => scores.Values[e] + Bias(e);
        double Slack(int e) => slackPart * (scores.Errors[e] + Approx.Eps * (Math.Abs(Key(e)) + Math.Abs(Bias(e))));
        for (var s = 0; s < ids.Length; s++)
        {
            for (var e = 0; e < _experts; e++) // every expert that comes later, or not at all
            {
                if (ids.AsSpan(0, s + 1).Contains(e)) continue;
                var slack = Slack(e) + Slack(ids[s]);
                Assert.True(Key(e) <= Key(ids[s]) + slack, $"expert {e} (key {Key(e):R}) belongs before {ids[s]} (key {Key(ids[s]):R})");
                var tie = logits[e] == logits[ids[s]] && Bias(e) == Bias(ids[s]);
                Assert.True(!tie || ids[s] < e, $"expert {e} ties with {ids[s]} and is smaller");
            }
        }
    }

    private Approx Scores(float[] logits)
    {
        var scores = new Approx(_experts);
        double max = logits.Max(), logSum = max + Math.Log(logits.Sum(l => Math.Exp(l - max)));
        for (var e = 0; e < _experts; e++)
        {
            double l = logits[e];
            // softplus(l) = max(l, 0) + log(1 + exp(-|l|)); 2 atanh(y / (2 + y)) is log(1 + y) without cancellation.
            var y = Math.Exp(-Math.Abs(l));
            var softplus = l > 20 ? l : Math.Max(l, 0) + 2 * Math.Atanh(y / (2 + y));
            scores[e] = _scoring switch
            {
                RouterScoring.SqrtSoftplus => (Math.Sqrt(softplus), 0),
                RouterScoring.Sigmoid => ((1 + Math.Tanh(l / 2)) / 2, 0),
                _ => (Math.Exp(l - logSum), 0),
            };
            if (_scoring == RouterScoring.Sigmoid && l < -10) scores[e] = (y / (1 + y), 0); // where 1 + tanh cancels
            var range = _scoring == RouterScoring.Softmax ? (max - l) + Math.Sqrt(_experts) : 0; // the rounding of logit - max, then of the sum
            scores.Errors[e] = Approx.Eps * (16 + range) * scores.Values[e] + Approx.Tiny;
        }
        return scores;
    }
}

internal sealed class ExpertGateUpCase : OperatorCase
{
    private readonly RandomWeight[] _gate, _up;
    private readonly float[] _input, _weights;
    private readonly int[] _ids;
    private readonly int _perToken, _columns, _inner;
    private readonly float _limit;

    public ExpertGateUpCase(WeightScheme scheme, int tokens, int experts, int perToken, int columns, int inner, float limit)
        : base($"ExpertGateUp {scheme}, T={tokens} E={experts} k={perToken} D={columns} I={inner} limit {limit}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_perToken, _columns, _inner, _limit) = (perToken, columns, inner, limit);
        _gate = [.. Enumerable.Range(0, experts).Select(_ => new RandomWeight(random, scheme, inner, columns, 0.25))];
        _up = [.. Enumerable.Range(0, experts).Select(_ => new RandomWeight(random, scheme, inner, columns, 0.25))];
        _input = Draws.Floats(random, tokens * columns);
        _ids = [.. Enumerable.Range(0, tokens).SelectMany(_ => Draws.Permutation(random, experts).Take(perToken))];
        _weights = [.. Enumerable.Range(0, tokens * perToken).Select(_ => random.NextSingle())];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stores = new Stores(device.Placement);
        PreparedWeight[] gate = stores.Prepare(device, _gate), up = stores.Prepare(device, _up);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var input = device.In(Pick(_input, _columns, tokens), tokens.Length, _columns);
            var ids = device.In(Pick(_ids, _perToken, tokens), tokens.Length, _perToken);
            var weights = device.In(Pick(_weights, _perToken, tokens), tokens.Length, _perToken);
            var output = device.Out(DType.F32, tokens.Length, _perToken, _inner);
            device.Run(new ExpertGateUp(input, ids, weights, gate, up, _limit, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(Tokens * _perToken * _inner);
        for (var i = 0; i < output.Length; i++)
        {
            int slot = i / _inner, row = i % _inner, expert = _ids[slot];
            var input = _input.AsSpan(slot / _perToken * _columns, _columns);
            var (value, error) = SwiGluCase.Value(Approx.Dot(_gate[expert].Row(row), input), Approx.Dot(_up[expert].Row(row), input), _limit);
            output[i] = (_weights[slot] * value, _weights[slot] * (error + 2 * Approx.Eps * Math.Abs(value)));
        }
        return new() { ["Output"] = output };
    }
}

internal enum SharedOperand { Absent, Apart, InPlace }

internal sealed class ExpertDownCombineCase : OperatorCase
{
    private readonly RandomWeight[] _down;
    private readonly float[] _hidden, _shared;
    private readonly int[] _ids;
    private readonly int _perToken, _inner, _width;
    private readonly SharedOperand _operand;

    public ExpertDownCombineCase(WeightScheme scheme, int tokens, int experts, int perToken, int inner, int width, SharedOperand shared)
        : base($"ExpertDownCombine {scheme}, T={tokens} E={experts} k={perToken} I={inner} D={width} shared {shared}", Independent(tokens))
    {
        var random = Draws.For(Name);
        (_perToken, _inner, _width, _operand) = (perToken, inner, width, shared);
        _down = [.. Enumerable.Range(0, experts).Select(_ => new RandomWeight(random, scheme, width, inner))];
        _hidden = Draws.Floats(random, tokens * perToken * inner);
        _shared = Draws.Floats(random, tokens * width);
        _ids = [.. Enumerable.Range(0, tokens).SelectMany(_ => Draws.Permutation(random, experts).Take(perToken))];
    }

    public override Outputs Run(TestDevice device, Schedule schedule)
    {
        using var stores = new Stores(device.Placement);
        var down = stores.Prepare(device, _down);
        var outputs = new Outputs();
        foreach (var tokens in schedule.Steps)
        {
            var hidden = device.In(Pick(_hidden, _perToken * _inner, tokens), tokens.Length, _perToken, _inner);
            var ids = device.In(Pick(_ids, _perToken, tokens), tokens.Length, _perToken);
            var values = Pick(_shared, _width, tokens);
            var shared = _operand switch
            {
                SharedOperand.Absent => default,
                SharedOperand.Apart => device.In(values, tokens.Length, _width),
                _ => device.InOut(values, tokens.Length, _width),
            };
            var output = _operand == SharedOperand.InPlace ? shared : device.Out(DType.F32, tokens.Length, _width);
            device.Run(new ExpertDownCombine(hidden, ids, down, shared, output));
            outputs.Scatter("Output", this, tokens, device.Read(output));
        }
        return outputs;
    }

    public override Dictionary<string, Approx> Model()
    {
        var output = new Approx(Tokens * _width);
        for (var i = 0; i < output.Length; i++)
        {
            int t = i / _width, row = i % _width;
            double value = _operand == SharedOperand.Absent ? 0 : _shared[i], magnitude = Math.Abs(value), error = 0;
            for (var s = _perToken - 1; s >= 0; s--)
            {
                var slot = t * _perToken + s;
                var dot = Approx.Dot(_down[_ids[slot]].Row(row), _hidden.AsSpan(slot * _inner, _inner));
                value += dot.Value;
                error += dot.Error;
                magnitude += Math.Abs(dot.Value);
            }
            output[i] = (value, error + (_perToken + 1) * Approx.Eps * magnitude);
        }
        return new() { ["Output"] = output };
    }
}

/// <summary>The stored bytes behind the experts of one run.</summary>
internal sealed class Stores(Random? placement) : IDisposable
{
    private readonly List<StoredWeight> _stored = [];

    public PreparedWeight[] Prepare(TestDevice device, RandomWeight[] weights) => Array.ConvertAll(weights, w =>
    {
        _stored.Add(w.Store(placement));
        return device.Weight(_stored[^1]);
    });

    public void Dispose() => _stored.ForEach(s => s.Dispose());
}

// A whole model at positions that no test computes its way to: both backends get the same rows of a text of that length (copies of real ones, each
// scaled by a factor of its own so that index scores differ), and process the tokens that come next. What is compared is all that a token does there: page tables
// and page arithmetic of every kind, choice among that many index rows, attention over that many rows of ratio 128, rotary angles.
using System.Runtime.InteropServices;
using Inference.Backends;
using Inference.Runtime.Engine;
using Inference.Runtime.KvCache;
using Inference.Testing;
using Xunit;

namespace Inference.Runtime.Tests.Models;

public sealed class FarPositionsTests
{
    private const int Real = 1024, Next = 6, StepTokens = 256;
    private const double Tolerance = 2e-5;  // of log-probabilities; both sum in F32, in orders of their own

    public static TheoryData<int> Lengths() => Environment.GetEnvironmentVariable("INFERENCE_SWEEP") == "full"
        ? [131_072, 524_286, 1_000_001] : [65_533, 262_143];

    [Theory]
    [MemberData(nameof(Lengths))]
    public void Backends_agree_on_what_comes_after_a_long_text(int length)
    {
        string pebble = RepositoryPaths.Pebble;
        using var cpu = new Side(TestModels.Load(pebble, "cpu"), length);
        using var reference = new Side(TestModels.Load(pebble, "reference"), length);
        var random = new Random(length);
        int[] text = [.. Enumerable.Range(0, Real).Select(_ => random.Next(300, 1000))];
        cpu.Compute(text);
        cpu.Fill(length, random);
        reference.Take(cpu);

        int[] next = [.. Enumerable.Range(0, Next).Select(_ => random.Next(300, 1000))];
        var together = cpu.Run(next, keep: false);
        var expected = reference.Run(next, keep: true);
        double worst = 0;
        for (int i = 0; i < Next; i++)
        {
            Assert.Equal(together[i], cpu.Run([next[i]], keep: true)[0]);  // alone: the same bits
            var (a, b) = (LogProbabilities(together[i]), LogProbabilities(expected[i]));
            for (int v = 0; v < a.Length; v++) worst = Math.Max(worst, Math.Abs(a[v] - b[v]));
        }
        TestContext.Current.SendDiagnosticMessage($"{length} tokens: log-probabilities within {worst:0.0e+0}");
        Assert.InRange(worst, 0, Tolerance);
        // Words after this text mean something: were the distribution flat, agreement would too.
        Assert.Contains(expected, e => LogProbabilities(e).Max() > Math.Log(0.1));
    }

    private static double[] LogProbabilities(float[] logits)
    {
        double max = logits.Max(), sum = Math.Log(logits.Sum(l => Math.Exp(l - max)));
        return [.. logits.Select(l => l - max - sum)];
    }

    /// <summary>A model on a backend with one sequence. Owns the model.</summary>
    private sealed class Side : IDisposable
    {
        private readonly LoadedModel _loaded;
        private readonly KvCacheManager _cache;
        private readonly ModelRunner _runner;
        private readonly BlockTable _table;
        private byte[][][] _real = [];  // per kind, pages that were computed
        private int _length;

        public Side(LoadedModel loaded, int length)
        {
            _loaded = loaded;
            _cache = new(loaded.Model.KvStates, new KvCapacity(length + Next, 1, StepTokens), loaded.Backend);
            _runner = new(loaded.Model, loaded.Backend, _cache, StepTokens, 1);
            _table = _cache.CreateTable();
        }

        public void Compute(int[] text)
        {
            foreach (int[] part in text.Chunk(StepTokens))
            {
                Run(part, keep: false);
                _length += part.Length;
                // Before the trim: every kind has pages full of rows.
                _real = [.. _cache.Pools.Select((_, k) => _table.Pages(k).Select(p => Page(k, p)).ToArray())];
                _cache.Trim(_table, _length);
            }
        }

        /// <summary>Logits after each token.</summary>
        public float[][] Run(int[] tokens, bool keep)
        {
            Assert.True(_cache.TryExtend(_table, _length + tokens.Length));
            _runner.Run([new SequenceChunk(tokens, _length, _table, 0)]);
            if (keep)
            {
                _length += tokens.Length;
                _cache.Trim(_table, _length);
            }
            return [.. Enumerable.Range(0, tokens.Length).Select(i => _runner.Logits(i).ToArray())];
        }

        public void Fill(int length, Random random)
        {
            int kinds = _cache.Pools.Count;
            while (_length < length)
            {
                int to = Math.Min(length, _length + StepTokens);
                int[] before = [.. Enumerable.Range(0, kinds).Select(k => _table.Pages(k).Count)];
                Assert.True(_cache.TryExtend(_table, to));
                for (int k = 0; k < kinds; k++)
                    for (int i = before[k]; i < _table.Pages(k).Count; i++)
                    {
                        byte[] page = [.. _real[k][random.Next(_real[k].Length)]];
                        var floats = MemoryMarshal.Cast<byte, float>(page.AsSpan());
                        int width = _cache.Pools[k].Spec.Row.Width;
                        for (int row = 0; row < floats.Length; row += width)
                        {
                            float factor = 0.9f + 0.2f * random.NextSingle();
                            foreach (ref float f in floats.Slice(row, width)) f *= factor;
                        }
                        _loaded.Backend.Upload(page, _cache.Pools[k].Tensor.Slice(_table.Pages(k)[i], 1));
                    }
                _length = to;
                _cache.Trim(_table, _length);
            }
        }

        /// <summary>The same state, on pages of its own.</summary>
        public void Take(Side other)
        {
            while (_length < other._length)
            {
                _length = Math.Min(other._length, _length + StepTokens);
                Assert.True(_cache.TryExtend(_table, _length));
                _cache.Trim(_table, _length);
            }
            for (int k = 0; k < _cache.Pools.Count; k++)
            {
                Assert.Equal(other._table.FirstPage(k), _table.FirstPage(k));
                Assert.Equal(other._table.Pages(k).Count, _table.Pages(k).Count);
                for (int i = 0; i < _table.Pages(k).Count; i++)
                    _loaded.Backend.Upload(other.Page(k, other._table.Pages(k)[i]), _cache.Pools[k].Tensor.Slice(_table.Pages(k)[i], 1));
            }
        }

        private byte[] Page(int kind, int page)
        {
            var bytes = new byte[_cache.Pools[kind].Spec.PageBytes];
            _loaded.Backend.Download(_cache.Pools[kind].Tensor.Slice(page, 1), bytes);
            return bytes;
        }

        public void Dispose()
        {
            _runner.Dispose();
            _cache.Dispose();
            _loaded.Dispose();
        }
    }
}
